"""`smallest`: the smallest file at most so much accuracy below the dense model.

>>> VERBS[0].__name__
'smallest'
"""

from __future__ import annotations

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


def smallest(
    recipe: RecipePath,
    lost: Annotated[
        float, typer.Option("--lost", help="Accuracy that may be lost, as a share: 0.01.")
    ] = 0.01,
    tries: Annotated[int, typer.Option("--tries", min=1, help="How many files are tried.")] = 10,
    keep: Annotated[float, typer.Option("--keep", help="Share of weights that stay, to begin with.")] = 0.1,
    bits: Annotated[int, typer.Option("--bits", min=1, max=8, help="Bits of a value, to begin with.")] = 3,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Price of a bit, to begin with.")] = 0.01,
    epochs: Annotated[int, typer.Option("--epochs", min=2, help="Epochs of the pruning training.")] = 20,
    lr: Annotated[float, typer.Option("--lr", help="Its learning rate (Adam).")] = 0.002,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Its batch size.")] = 128,
    crop: Annotated[int, typer.Option("--crop", min=0, help="Shift its images by up to so many pixels.")] = 0,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    store: StoreFolder = STORE,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for the smallest file of the recipe's model that holds the accuracy; prints the front of accuracy against
    bytes. Stopped, it goes on where it stood."""
    import sys

    from secateur.lab import tables
    from secateur.lab.display import progress_display
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store
    from secateur.search.smallest import SizeAttempt, SmallestOptions
    from secateur.search.smallest import smallest as search

    opened = Store(store)
    train = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    if crop:
        train |= {"augment": {"crop": crop, "flip": False}}  # type: ignore[dict-item]
    found = search(
        Recipe.read(recipe, settings_of(set_, seed, device)),
        opened,
        lost=lost,
        attempts=tries,
        options=SmallestOptions(keep, bits, rate, train),
        progress=progress_display(quiet),
        on_message=None if quiet else lambda line: print(line, file=sys.stderr),
    )
    if out is not None:
        tables.write_results(found.ran, opened, out)
    if json:

        def row(one: SizeAttempt) -> dict[str, object]:
            s = one.settings
            bits = s.bits if isinstance(s.bits, int) else dict(s.bits)
            return {"keep": s.keep, "bits": bits, "rate": s.rate, "bytes": one.size, "accuracy": one.accuracy}

        print_json(
            {
                "dense": found.dense,
                "limit": found.limit,
                "tries": [row(one) for one in found.attempts],
                "front": [row(one) for one in found.front],
                "best": row(found.best),
                "final": [item.to_dict() for item in found.final],
            }
        )
        return
    print(found)


VERBS = (smallest,)
"""All verbs of this file."""
