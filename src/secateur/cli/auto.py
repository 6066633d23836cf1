"""`auto`: find the fastest or the smallest model that loses at most `--lost` accuracy.

>>> VERBS[0].__name__
'auto'
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, Evaluate, Out, ProgressFlags, RecipeChanges, RecipePath, StoreFolder
from secateur.cli.output import print_json
from secateur.core.terminal import say

if TYPE_CHECKING:
    from secateur.search.auto import AutoResult

__all__ = ["VERBS"]


class Goal(StrEnum):
    """What is minimized: the multiply-accumulates, or the file."""

    fast = "fast"
    small = "small"


@dataclass(frozen=True)
class AutoFlags:
    """How far the search goes, and how each attempt is retrained."""

    lost: Annotated[float, typer.Option("--lost", help="Accuracy that may be lost, as a share: 0.01.")] = 0.01
    goal: Annotated[Goal, typer.Option("--goal", help="fast: fewer channels; small: a small file.")] = (
        Goal.fast
    )
    tries: Annotated[int, typer.Option("--tries", min=1, help="Number of attempts.")] = 6
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of retraining after a cut.")] = 5
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the retraining.")] = 0.02
    allocation: Annotated[
        str,
        typer.Option(
            "--allocation",
            help="scan: by measured sensitivity; uniform: all alike; between: the mean of both; best: any.",
        ),
    ] = "best"
    bits: Annotated[int, typer.Option("--bits", min=1, max=8, help="Bits of a shared weight (small).")] = 4
    calibrate: Annotated[
        int,
        typer.Option(
            "--calibrate",
            min=0,
            metavar="IMAGES",
            help="First refit the remaining weights on this number of training images, without labels; retrain "
            "only if that is not enough.",
        ),
    ] = 0
    evaluate: Evaluate = None


@with_flags
def auto(
    recipe: RecipePath,
    flags: AutoFlags,
    changes: RecipeChanges,
    store: StoreFolder = STORE,
    out: Out = None,
    *,
    output: ProgressFlags,
) -> None:
    """Prune the recipe's model as far as the accuracy allows, with the reason for every decision. If it is stopped,
    the same command continues."""
    from secateur.lab import tables
    from secateur.lab.display import progress_display
    from secateur.lab.store import Store
    from secateur.search.auto import AutoOptions
    from secateur.search.auto import auto as search

    opened = Store(store)
    found = search(
        changes.read(recipe),
        opened,
        lost=flags.lost,
        goal=flags.goal.value,
        attempts=flags.tries,
        options=AutoOptions(
            flags.allocation,
            {"epochs": flags.epochs, "lr": flags.lr},
            flags.bits,
            flags.calibrate,
            flags.evaluate,
        ),
        progress=progress_display(output.quiet),
        on_message=None if output.quiet else lambda line: say(line, error=True),
    )
    if out is not None:
        tables.write_results(found.ran, opened, out)
    if output.json:
        print_json(_plain(found))
        return
    say(found)


def _plain(found: AutoResult) -> dict[str, object]:
    """The result as plain data."""
    from secateur.lab import tables

    attempts = [
        {"keep": t.keep, "accuracy": t.accuracy, "holds": t.holds, "why": t.why} for t in found.attempts
    ]
    final = tables.numbered(found.final)
    return {"dense": found.dense, "limit": found.limit, "attempts": attempts, "final": final}


VERBS = (auto,)
