"""Engines: what computes the steps of a plan in other processes, on this machine or on a Ray cluster.

An `Engine` is given `Node`s (one step each) or `EngineCall`s (a function that yields values), and returns `Event`s.

The files in reading order: `driving` (the loop that decides which step comes next), `local` (processes on this
machine), `gpus` (which GPUs each of them uses), `ray` (a cluster), `worker_pool` (an engine for verbs, without a
recipe).

>>> slots(jobs=2, cores=8), slots(jobs=3, cores=2)
((2, 4), (3, 1))
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from secateur.lab.planning import PlannedTrial

__all__ = ["Engine", "EngineCall", "Event", "Node", "slots"]


@dataclass(frozen=True)
class Node:
    """One step to compute.

    Args:
        key: The address of its outcome.
        trial: A trial that has the step.
        position: Its position in that trial.
        uses: Addresses of the earlier states that it reads.
    """

    key: str
    trial: PlannedTrial
    position: int
    uses: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The step's label in that trial."""
        return self.trial.steps[self.position].label

    @property
    def scripted(self) -> bool:
        """Whether a process must run the user's script to compute it: the model is defined there."""
        return self.trial.recipe.model.name.startswith("__main__:")


@dataclass(frozen=True)
class EngineCall:
    """A function that yields values, to be called by a worker; `WorkerPool` makes them.

    Args:
        key: Identifies the call.
        function: What is called.
        common: Its first arguments, pickled; many calls have the same.
        own: Its other arguments, pickled.

    >>> list(EngineCall("a", divmod, pickle.dumps((7,)), pickle.dumps((2,))).values())
    [3, 1]
    """

    key: str
    function: Callable[..., Iterable[object]]
    common: bytes
    own: bytes

    @property
    def scripted(self) -> bool:
        """Whether a process must run the user's script to unpickle the arguments."""
        return b"__main__" in self.common or b"__main__" in self.own

    def values(self) -> Iterator[object]:
        """Call the function."""
        yield from self.function(*pickle.loads(self.common), *pickle.loads(self.own))


@dataclass(frozen=True)
class Event:
    """What an engine reports.

    Args:
        what: start, epoch, done or failed; of a call also value, for each value yielded.
        key: Of the node or call.
        how: computed, or cached where another process had computed it.
        seconds: The time it took.
        text: Half a sentence for the display, or the error.
        trace: The error's traceback.
        found: What was measured, by name.
        value: What a call yielded, or the exception that ended it.
    """

    what: str
    key: str
    how: str = "computed"
    seconds: float = 0.0
    text: str = ""
    trace: str = ""
    found: dict[str, float] = field(default_factory=dict)
    value: object = None


class Engine(Protocol):
    """Computes nodes and calls. A node is submitted when the state it starts from is in the store."""

    slots: int

    def submit(self, node: Node | EngineCall) -> None:
        """Begin to compute, at once or when a worker is free."""

    def events(self) -> Iterable[Event]:
        """The events since the last call; waits briefly if there are none."""

    def close(self, *, now: bool) -> None:
        """End the workers; `now`: without waiting for what they compute."""


def slots(jobs: int, cores: int) -> tuple[int, int]:
    """Distribute cores among processes.

    Args:
        jobs: Processes.
        cores: Cores of the machine.

    Returns:
        The processes, and torch's threads in each: at least one.
    """
    return jobs, max(1, cores // jobs)
