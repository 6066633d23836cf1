"""The verb `search`: the best of a recipe's values, for several objectives at once.

>>> [verb.__name__ for verb in VERBS]
['search']
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import (
    STORE,
    ProgressFlags,
    RecipeChanges,
    RecipePath,
    StoreFolder,
    results_folder,
)
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say
from secateur.errors import BudgetNotMetError, OptionError, SecateurError

if TYPE_CHECKING:
    from secateur.lab.searching import TrialSearchResult

__all__ = ["VERBS"]


@dataclass(frozen=True)
class SearchFlags:
    """What is varied, and the objectives."""

    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="KEY=A:B", help="KEY=first:last, KEY=first:last:log or KEY=a,b. Repeatable."
        ),
    ] = None
    maximize: Annotated[
        list[str] | None, typer.Option("--maximize", metavar="NAME", help="A measured name. Repeatable.")
    ] = None
    minimize: Annotated[
        list[str] | None, typer.Option("--minimize", metavar="NAME", help="A measured name. Repeatable.")
    ] = None
    floor: Annotated[
        list[str] | None,
        typer.Option("--floor", metavar="NAME=X", help="Stop a trial when this falls below X. Repeatable."),
    ] = None
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trials in total, those of earlier calls included.")
    ] = 20
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at a time.")] = 1
    name: Annotated[str | None, typer.Option("--name", help="The search's name; default: the recipe's.")] = (
        None
    )
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the weights and files of the trials on the front.",
            callback=results_folder,
        ),
    ] = None

    def floors(self) -> dict[str, float]:
        """The floor of each measured name."""
        from secateur.lab.recipe import parse_setting

        floors: dict[str, float] = {}
        for key, value in (parse_setting(text, "--floor") for text in self.floor or []):
            if not isinstance(value, int | float):
                raise OptionError(f"--floor {key}={value}: expected a number")
            floors[key] = value
        return floors


@with_flags
def search(
    recipe: RecipePath,
    flags: SearchFlags,
    changes: RecipeChanges,
    store: StoreFolder = STORE,
    *,
    output: ProgressFlags,
) -> None:
    """Search recipe values with Optuna; the result is the Pareto front. The same command again continues."""
    from secateur.lab.display import progress_display
    from secateur.lab.searching import SearchOptions, write_front
    from secateur.lab.searching import search as look
    from secateur.lab.store import Store

    axes = dict(text.partition("=")[::2] for text in flags.over or [])
    floors = flags.floors()
    read, opened = changes.read(recipe), Store(store)
    found = look(
        read,
        opened,
        axes,
        maximize=flags.maximize or [],
        minimize=flags.minimize or [],
        options=SearchOptions(flags.trials, flags.jobs, floors, flags.name),
        progress=progress_display(output.quiet, many=True),
    )
    if output.json:
        print_json(_plain(found))
    else:
        _show(found, list(axes), [*(flags.maximize or []), *(flags.minimize or [])])
    _raise_without_result(found)  # before anything of an earlier search is replaced
    if flags.out is not None:
        for number in write_front(found, read, opened, flags.out):
            say(
                f"trial {number + 1} is not written: the store does not hold its last step as this recipe computes it "
                "on this machine; secateur run with its values computes it again",
                error=True,
            )


def _raise_without_result(found: TrialSearchResult) -> None:
    """A search none of whose trials has values has failed, and writes nothing."""
    if found.front or not found.tried:
        return
    ended = [one for one in found.tried if one.why != "interrupted"] or list(found.tried)
    below = all(one.why.startswith("stopped: ") for one in ended)
    kind = BudgetNotMetError if below else SecateurError
    raise kind(
        f"none of {len(found.tried)} trials has values, so there is no front; trial {ended[0].number + 1}: "
        f"{ended[0].why}; "
        + ("lower --floor or let --over reach further" if below else "--json has the reason of every trial")
    )


def _plain(found: TrialSearchResult) -> dict[str, object]:
    """The result as plain data, with trials also counted from 1, as in the table."""
    from dataclasses import asdict

    return {part: [_numbered(asdict(one)) for one in getattr(found, part)] for part in ("tried", "front")}


def _numbered(trial: dict[str, object]) -> dict[str, object]:
    """A trial by its two numbers."""
    number = int(str(trial.pop("number")))
    return {"trial": number, "trial_number": number + 1, **trial}


def _show(found: TrialSearchResult, axes: list[str], objectives: list[str]) -> None:
    """Print the front, and the number of trials that have no values."""
    rows = [
        [
            str(one.number + 1),
            *(str(one.settings[key]) for key in axes),
            *(f"{one.values[key]:g}" for key in objectives),
        ]
        for one in found.front
    ]
    show_table(["trial", *axes, *objectives], rows)
    ended = sum(1 for one in found.tried if not one.values)
    say(f"{len(found.front)} of {len(found.tried)} trials are on the front; {ended} were stopped or failed")


VERBS = (search,)
