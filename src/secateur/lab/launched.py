"""One training on many devices or machines: what the processes that a launcher starts do with one recipe.

    accelerate launch --multi_gpu --num_processes 4 -m secateur run recipe.toml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m secateur run recipe.toml

Every process runs the same recipe. A training is done by all of them together, each with its share of every batch;
everything else is done by the first alone, and the others wait for what it stores. The first alone writes the store,
so all of them must see its folder.

>>> rank()
(0, 1)
"""

from __future__ import annotations

import os
import time

from secateur.errors import StoreError
from secateur.lab.computing import compute, state_after, threads
from secateur.lab.display.progress import Progress
from secateur.lab.plan import PlannedTrial
from secateur.lab.store import Outcome, Store

__all__ = ["follow", "rank"]

_LOOK_EVERY = 0.1
_PATIENCE = 24 * 3600.0  # seconds a process waits for what the first one computes


def rank() -> tuple[int, int]:
    """(which of the launched processes this is, how many there are); (0, 1) where nothing was launched."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def follow(trial: PlannedTrial, store: Store) -> None:
    """What every process but the first does with a trial: help where all must train, else wait."""
    for position, planned in enumerate(trial.steps):
        if planned.step.kind() in ("train", "retrain") and not store.has(planned.key):
            _help(trial, position, store)
        _wait(store, planned.key, planned.label)


def _help(trial: PlannedTrial, position: int, store: Store) -> Outcome:
    class Nowhere:
        """Keeps nothing: the first process does."""

        def put(self, data: bytes) -> str:
            return ""

    with threads(trial.recipe.lab.threads):
        return compute(
            trial,
            position,
            before=lambda count: state_after(trial, count, store),
            objects=Nowhere(),
            checkpoint=store.checkpoint(trial.steps[position].key),
            progress=Progress(),
        )


def _wait(store: Store, key: str, label: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not store.has(key):
        if time.monotonic() > end:
            raise StoreError(
                f"step {label!r}: the first process has stored nothing for a day; look at its output"
            )
        time.sleep(_LOOK_EVERY)
