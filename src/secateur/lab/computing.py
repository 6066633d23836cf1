"""`compute`: one step of a trial, from the state before it to its outcome; the same in every process and engine.

The random generators are seeded with the recipe's seed and restored afterwards, so that an outcome does not depend on
what the process did before.

>>> with threads(1):
...     torch.get_num_threads()
1
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from secateur.errors import StoreError
from secateur.execution.devices import device_word
from secateur.execution.undisturbed import kept_random_state
from secateur.lab.display import Progress
from secateur.lab.objects import ObjectWriter
from secateur.lab.outcomes import Outcome
from secateur.lab.planning import PlannedTrial, builder, data_of, without_weights
from secateur.lab.provenance import hardware, versions, visible
from secateur.lab.state import State, keep, revive
from secateur.lab.steps import Work
from secateur.lab.store import Store

__all__ = ["compute", "state_after", "threads"]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads, and restore it afterwards; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def state_after(trial: PlannedTrial, position: int, store: Store) -> State:
    """The state after the first `position` steps of a trial; 0 is the fresh model."""
    build = builder(trial.recipe)
    if position == 0:
        return State(build())
    outcome = store.outcome(trial.steps[position - 1].key)
    if outcome is None:
        raise StoreError(
            f"the outcome of step {trial.steps[position - 1].label!r} is gone; run the recipe again"
        )
    return revive(outcome.state, store.objects, build)


def compute(
    trial: PlannedTrial,
    position: int,
    *,
    before: Callable[[int], State],
    objects: ObjectWriter,
    checkpoint: Path,
    progress: Progress,
    device: str | None = None,
) -> Outcome:
    """Run one step and keep its objects.

    Args:
        trial: The trial.
        position: Which of its steps.
        before: `before(n)` is the state after its first n steps.
        objects: Where the bytes of the resulting state are written.
        checkpoint: The file of a training's checkpoint.
        progress: The display.
        device: In place of the recipe's device.

    Returns:
        The outcome; it is not in the store yet.
    """
    planned = trial.steps[position]
    recipe = trial.recipe
    device = device or device_word(recipe.lab.device)
    labels = [step.label for step in trial.steps]

    def earlier(label: str) -> State:
        if label == "teacher" and recipe.teacher is not None:
            return State(builder(recipe, recipe.teacher)())
        return before(labels.index(label) + 1)

    work = Work(
        data=data_of(recipe),
        build=builder(recipe),
        device=device,
        seed=recipe.lab.seed,
        checkpoint=checkpoint,
        progress=progress,
        earlier=earlier,
        without_weights=partial(without_weights, recipe),
    )
    state = before(position)
    started = time.perf_counter()
    with kept_random_state():
        torch.manual_seed(recipe.lab.seed)
        np.random.seed(recipe.lab.seed % 2**32)
        random.seed(recipe.lab.seed)
        result = planned.step.run(state, work)
    seconds = time.perf_counter() - started
    return Outcome(
        key=planned.key,
        kind=planned.step.kind(),
        parent=planned.parent,
        options=planned.step.chosen(),
        state=keep(result.state, objects),
        measurements=result.measurements,
        log={**result.log, "line": result.line},
        seconds=seconds,
        provenance={
            "versions": versions(),
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "device": device,
            **visible(),
        },
    )
