"""A recipe run by several processes that a launcher has started: one training on several devices or machines.

    accelerate launch --multi_gpu --num_processes 4 -m secateur run recipe.toml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m secateur run recipe.toml

Every process runs the same recipe. All of them train together, each with its share of every batch: in every step whose
class says `trains`. The first process does everything else, and the others wait for its outcomes. Only the first writes
to the store, so all of them must see the store's folder.

>>> rank()
(0, 1)
"""

from __future__ import annotations

import os
import time

from secateur.errors import StoreError
from secateur.lab.computing import compute, state_after, threads
from secateur.lab.display.progress import Progress
from secateur.lab.planning import PlannedTrial
from secateur.lab.store import Outcome, Store

__all__ = ["follow", "rank"]

_LOOK_EVERY = 0.1  # seconds between two looks into the store
_PATIENCE = 24 * 3600.0  # seconds a process waits for an outcome of the first one


def rank() -> tuple[int, int]:
    """The number of this process and how many were launched; (0, 1) where none was launched."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def follow(trial: PlannedTrial, store: Store) -> None:
    """Take part in a trial as any process but the first: train in the steps that train, wait for the others.

    Args:
        trial: The trial that the first process runs.
        store: The store that the first process writes.

    Raises:
        StoreError: The first process stored nothing for a day.
    """
    for position, planned in enumerate(trial.steps):
        if planned.step.trains and not store.has(planned.key):
            _train_along(trial, position, store)
        _wait(store, planned.key, planned.label)


class _NoObjects:
    """Keeps no object: the first process does."""

    def put(self, data: bytes) -> str:
        return ""


def _train_along(trial: PlannedTrial, position: int, store: Store) -> Outcome:
    """Compute a step together with the first process; the outcome is not stored."""
    with threads(trial.recipe.lab.threads):
        return compute(
            trial,
            position,
            before=lambda count: state_after(trial, count, store),
            objects=_NoObjects(),
            checkpoint=store.checkpoint(trial.steps[position].key),
            progress=Progress(),
        )


def _wait(store: Store, key: str, label: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not store.has(key):
        if time.monotonic() > end:
            raise StoreError(
                f"step {label!r}: the first process has stored nothing for a day; check its output"
            )
        time.sleep(_LOOK_EVERY)
