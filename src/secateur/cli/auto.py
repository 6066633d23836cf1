"""`auto`: at most so much accuracy lost, and as fast or as small as can be.

>>> VERBS[0].__name__
'auto'
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from secateur.cli.options import (
    STORE,
    Debug,
    Device,
    Json,
    Out,
    Quiet,
    RecipePath,
    Seed,
    Set,
    StoreFolder,
    settings_of,
)
from secateur.cli.output import print_json

__all__ = ["VERBS"]


class Goal(StrEnum):
    """What is to become little: multiply-accumulates, or bytes."""

    fast = "fast"
    small = "small"


def auto(
    recipe: RecipePath,
    lost: Annotated[
        float, typer.Option("--lost", help="Accuracy that may be lost, as a share: 0.01.")
    ] = 0.01,
    goal: Annotated[
        Goal, typer.Option("--goal", help="fast: channels leave; small: a small file.")
    ] = Goal.fast,
    tries: Annotated[int, typer.Option("--tries", min=1, help="How many cuts are tried.")] = 6,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of retraining after a cut.")] = 5,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the retraining.")] = 0.02,
    allocation: Annotated[
        str,
        typer.Option(
            "--allocation", help="scan: cut where it hurts least; uniform: all alike; between; best: any."
        ),
    ] = "best",
    bits: Annotated[int, typer.Option("--bits", min=1, max=8, help="Bits of a shared weight (small).")] = 4,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    store: StoreFolder = STORE,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune the recipe's model as far as the accuracy allows, with the why of every decision. Stopped, it goes on
    where it stood."""
    import sys

    from secateur.lab import tables
    from secateur.lab.display import progress_display
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store
    from secateur.search.auto import AutoOptions
    from secateur.search.auto import auto as search

    opened = Store(store)
    found = search(
        Recipe.read(recipe, settings_of(set_, seed, device)),
        opened,
        lost=lost,
        goal=goal.value,
        attempts=tries,
        options=AutoOptions(allocation, {"epochs": epochs, "lr": lr}, bits),
        progress=progress_display(quiet),
        on_message=None if quiet else lambda line: print(line, file=sys.stderr),
    )
    if out is not None:
        tables.write_results(found.ran, opened, out)
    if json:
        rows = [
            {"keep": t.keep, "accuracy": t.accuracy, "holds": t.holds, "why": t.why} for t in found.attempts
        ]
        final = [item.to_dict() for item in found.final]
        print_json({"dense": found.dense, "limit": found.limit, "tries": rows, "final": final})
        return
    print(found)


VERBS = (auto,)
