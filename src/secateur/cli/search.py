"""The verb `search`: the best of a recipe's values, for several objectives at once.

>>> [verb.__name__ for verb in VERBS]
['search']
"""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import STORE, Debug, Json, Quiet, RecipePath, Seed, Set, StoreFolder, settings_of
from secateur.cli.output import print_json, show_table

__all__ = ["VERBS"]


def search(
    recipe: RecipePath,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="KEY=A:B", help="KEY=first:last, KEY=first:last:log or KEY=a,b. Repeatable."
        ),
    ] = None,
    maximize: Annotated[
        list[str] | None, typer.Option("--maximize", help="A measured name. Repeatable.")
    ] = None,
    minimize: Annotated[
        list[str] | None, typer.Option("--minimize", help="A measured name. Repeatable.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor", metavar="NAME=X", help="Give a trial up when this falls below X. Repeatable."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trials in all, those of before included.")
    ] = 20,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at a time.")] = 1,
    name: Annotated[
        str | None, typer.Option("--name", help="The study's name; default: the recipe's.")
    ] = None,
    set_: Set = None,
    seed: Seed = None,
    store: StoreFolder = STORE,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search recipe values with Optuna; the result is the Pareto front. The same command again goes on."""
    from dataclasses import asdict

    from secateur.errors import OptionError
    from secateur.lab.display import progress_display
    from secateur.lab.recipe import Recipe, parse_setting
    from secateur.lab.searching import SearchOptions
    from secateur.lab.searching import search as look
    from secateur.lab.store import Store

    settings = settings_of(set_, seed)
    floors: dict[str, float] = {}
    for key, value in (parse_setting(text, "--floor") for text in floor or []):
        if not isinstance(value, int | float):
            raise OptionError(f"--floor {key}={value}: expected a number")
        floors[key] = value
    axes = dict(text.partition("=")[::2] for text in over or [])
    up, down = list(maximize or []), list(minimize or [])
    found = look(
        Recipe.read(recipe, settings),
        Store(store),
        axes,
        maximize=up,
        minimize=down,
        options=SearchOptions(trials, jobs, floors, name),
        progress=progress_display(quiet, many=True),
    )
    if json:
        print_json(asdict(found))
        return
    rows = [
        [
            str(one.number),
            *(str(one.settings[key]) for key in axes),
            *(f"{one.values[key]:g}" for key in up + down),
        ]
        for one in found.front
    ]
    show_table(["trial", *axes, *up, *down], rows)
    ended = sum(1 for one in found.tried if not one.values)
    print(
        f"{len(found.front)} of {len(found.tried)} trials are on the front; {ended} were given up or failed"
    )


VERBS = (search,)
