"""`smallest`: find the smallest file whose accuracy is at most `--lost` below the dense model's.

>>> VERBS[0].__name__
'smallest'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, Evaluate, Out, ProgressFlags, RecipeChanges, RecipePath, StoreFolder
from secateur.cli.output import print_json
from secateur.core.terminal import say

if TYPE_CHECKING:
    from secateur.search.smallest import SizeAttempt, SmallestResult

__all__ = ["VERBS"]


@dataclass(frozen=True)
class SmallestFlags:
    """The starting values of the search, and how each attempt is trained."""

    lost: Annotated[float, typer.Option("--lost", help="Accuracy that may be lost, as a share: 0.01.")] = 0.01
    tries: Annotated[int, typer.Option("--tries", min=1, help="Number of attempts.")] = 10
    target: Annotated[
        int | None,
        typer.Option(
            "--target",
            min=1,
            metavar="BYTES",
            help="Bytes to train for, at the start: a 40th of the dense model's.",
        ),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            help="Prune and share weights in place of training for bytes: share of weights that stay, at the start.",
        ),
    ] = None
    bits: Annotated[
        int | None,
        typer.Option("--bits", min=1, max=8, help="The same: bits of a value, at the start."),
    ] = None
    rate: Annotated[
        float | None, typer.Option("--rate", min=0, help="The same: price of a bit, at the start.")
    ] = None
    epochs: Annotated[int, typer.Option("--epochs", min=2, help="Epochs of the training.")] = 20
    lr: Annotated[float, typer.Option("--lr", help="Its learning rate (Adam).")] = 0.002
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Its batch size.")] = 128
    crop: Annotated[
        int, typer.Option("--crop", min=0, help="Shift its images by at most this many pixels.")
    ] = 0
    calibrate: Annotated[
        int,
        typer.Option(
            "--calibrate",
            min=0,
            metavar="IMAGES",
            help="First refit the remaining weights on this number of training images, without labels; train only "
            "if that is not enough.",
        ),
    ] = 0
    evaluate: Evaluate = None

    def training(self) -> dict[str, Any]:
        """The options of the pruning training, as a recipe writes them."""
        train: dict[str, Any] = {"epochs": self.epochs, "lr": self.lr, "batch_size": self.batch_size}
        return train | ({"augment": {"crop": self.crop, "flip": False}} if self.crop else {})


@with_flags
def smallest(
    recipe: RecipePath,
    flags: SmallestFlags,
    changes: RecipeChanges,
    store: StoreFolder = STORE,
    out: Out = None,
    *,
    output: ProgressFlags,
) -> None:
    """Search for the smallest file of the recipe's model that keeps the accuracy; prints the front of accuracy against
    bytes. If it is stopped, the same command continues."""
    from secateur.lab import tables
    from secateur.lab.display import progress_display
    from secateur.lab.store import Store
    from secateur.search.smallest import SmallestOptions
    from secateur.search.smallest import smallest as search

    opened = Store(store)
    found = search(
        changes.read(recipe),
        opened,
        lost=flags.lost,
        attempts=flags.tries,
        options=SmallestOptions(
            flags.keep,
            flags.bits,
            flags.rate,
            flags.training(),
            flags.calibrate,
            flags.target,
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


def _plain(found: SmallestResult) -> dict[str, object]:
    """The result as plain data."""
    from secateur.lab import tables

    return {
        "dense": found.dense,
        "limit": found.limit,
        "attempts": [_attempt(one) for one in found.attempts],
        "front": [_attempt(one) for one in found.front],
        "best": _attempt(found.best),
        "final": tables.numbered(found.final),
    }


def _attempt(one: SizeAttempt) -> dict[str, object]:
    """One attempt as plain data."""
    from secateur.search.smallest import ByteSettings

    s = one.settings
    if isinstance(s, ByteSettings):
        return {"target": s.target, "file_bytes": one.size, "accuracy": one.accuracy}
    bits = s.bits if isinstance(s.bits, int) else dict(s.bits)
    return {"keep": s.keep, "bits": bits, "rate": s.rate, "file_bytes": one.size, "accuracy": one.accuracy}


VERBS = (smallest,)
