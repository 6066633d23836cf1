"""Engines: where the steps of a plan are computed. One loop decides what comes next; engines only compute.

The steps of all trials are a forest: a step follows the one before it, and what trials have in common is one node.
A node is handed to an engine when the one before it is done, trials in order, so that a shared training is computed
once and keeps nobody waiting who could do something else. A node that fails takes only the trials through it along.

>>> slots(jobs=2, cores=8), slots(jobs=3, cores=2)
((2, 4), (3, 1))
"""

from __future__ import annotations

import heapq
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from secateur.lab.display.progress import Progress
from secateur.lab.plan import PlannedTrial, RunPlan
from secateur.lab.store import Store

__all__ = ["Engine", "EngineCall", "Event", "Node", "drive", "forest", "slots"]

_NOTE_EVERY = 0.5  # seconds between writing down how far the trials are; outcomes are written at once


@dataclass(frozen=True)
class Node:
    """One step to compute: of which trial, at which place. `uses` are the addresses of earlier states it reads."""

    key: str
    trial: PlannedTrial
    position: int
    uses: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The step's label in the trial it was found first."""
        return self.trial.steps[self.position].label

    @property
    def scripted(self) -> bool:
        """Whether a process needs the user's own script to compute it: a model of it is found there by name."""
        return self.trial.recipe.model.name.startswith("__main__:")


@dataclass(frozen=True)
class EngineCall:
    """A function that yields values, to be called by a worker: what a verb shares out, where no recipe is.

    Its arguments are pickled: those that many calls have in `common`, then its own.
    `secateur.lab.engines.worker_pool` makes
    calls.

    >>> list(EngineCall("a", divmod, pickle.dumps((7,)), pickle.dumps((2,))).values())
    [3, 1]
    """

    key: str
    function: Callable[..., Iterable[Any]]
    common: bytes
    own: bytes

    @property
    def scripted(self) -> bool:
        """Whether a process needs the user's own script to understand the arguments."""
        return b"__main__" in self.common or b"__main__" in self.own

    def values(self) -> Iterator[Any]:
        """Call it."""
        yield from self.function(*pickle.loads(self.common), *pickle.loads(self.own))


@dataclass(frozen=True)
class Event:
    """What an engine tells: `what` is start, epoch, done or failed; of a call also value, for each that it yields."""

    what: str
    key: str
    how: str = "computed"
    seconds: float = 0.0
    text: str = ""
    trace: str = ""
    found: dict[str, float] = field(default_factory=dict)
    value: Any = None  # what a call yielded, or the error that it ended with


class Engine(Protocol):
    """What computes nodes, and calls. A node is submitted when what it starts from is done."""

    slots: int

    def submit(self, node: Node | EngineCall) -> None:
        """Compute it, soon."""

    def events(self) -> Iterable[Event]:
        """What happened since; waits a little when nothing did."""

    def close(self, *, now: bool) -> None:
        """Free everything; `now` without waiting for what is under way."""


def slots(jobs: int, cores: int) -> tuple[int, int]:
    """(processes, torch's threads in each): the cores shared out, one thread at least."""
    return jobs, max(1, cores // jobs)


def forest(plan: RunPlan) -> tuple[dict[str, list[Node]], dict[str, list[tuple[int, int]]]]:
    """What may begin once a step is done (after "": at once), and which (trial, position)s every step is.

    A step that trials share may come after different ones: what is timed in between is no part of its address.
    Whichever of them is done first lets it begin.
    """
    following: dict[str, list[Node]] = {}
    users: dict[str, list[tuple[int, int]]] = {}
    seen: set[tuple[str, str]] = set()
    for trial in plan.trials:
        keys = {step.label: step.key for step in trial.steps}
        last = ""
        for position, planned in enumerate(trial.steps):
            users.setdefault(planned.key, []).append((trial.index, position))
            if (last, planned.key) not in seen:
                seen.add((last, planned.key))
                earlier = {step.label for step in trial.steps[:position]}
                # A teacher, or what is compared against: an option whose value is an earlier step's label.
                named = [v for v in planned.step.chosen().values() if isinstance(v, str) and v in earlier]
                uses = dict.fromkeys([*([last] if last else []), *(keys[label] for label in named)])
                following.setdefault(last, []).append(Node(planned.key, trial, position, tuple(uses)))
            last = planned.key
    return following, users


class _Notes:
    """What the store should know of the run, written down now and then in one transaction."""

    def __init__(self, store: Store, run: int):
        self._store, self._run, self._last = store, run, time.monotonic()
        self.steps: list[tuple[int, int, str]] = []
        self.trials: list[tuple[int, str, str | None]] = []

    def write(self, *, now: bool = False) -> None:
        if (self.steps or self.trials) and (now or time.monotonic() - self._last > _NOTE_EVERY):
            self._store.note(self._run, self.steps, self.trials)
            self.steps, self.trials, self._last = [], [], time.monotonic()


def drive(
    plan: RunPlan, store: Store, run: int, watch: Progress, engine: Engine, known: set[str]
) -> tuple[int, list[tuple[int, str]]]:
    """Have the engine compute everything that is not known; returns how many steps it did, and the failures."""
    following, users = forest(plan)
    by_index = {trial.index: trial for trial in plan.trials}
    notes = _Notes(store, run)
    failures: dict[int, str] = {}
    ready: list[tuple[int, int, str]] = []
    nodes: dict[str, Node] = {}  # of every step that was ready once, as it was found
    running: set[str] = set()
    left = {trial.index: len(trial.steps) for trial in plan.trials}
    stopped: set[int] = set()
    computed = 0

    def settle(*done: tuple[str, str, float, str, dict[str, float]]) -> None:
        """A step is there: every trial it is part of has one less to go, and what follows may begin."""
        stack = list(done)
        while stack:
            key, how, seconds, line, found = stack.pop()
            for trial, position in users[key]:
                notes.steps.append((trial, position, how))
                watch.done(trial, by_index[trial].steps[position].label, how, seconds, line)
                watch.found(trial, found)
                if trial not in stopped and left[trial] > 1 and (why := watch.stop(trial, found)):
                    stopped.add(trial)
                    notes.trials.append((trial, "stopped", why))
                how = "cached"  # for the trials after the first
                left[trial] -= 1
                if not left[trial]:
                    notes.trials.append((trial, "done", None))
                    watch.finished(trial)
            stack += begin(key)

    def begin(after: str) -> list[tuple[str, str, float, str, dict[str, float]]]:
        """Make ready what comes after a step; what of it is there already is given back, to be settled."""
        there = []
        for node in following.get(after, ()):
            if node.key in nodes or all(trial in stopped for trial, _ in users[node.key]):
                continue
            nodes[node.key] = node
            if node.key in known:
                there.append((node.key, "cached", *_stored(store, node.key)))
            else:
                heapq.heappush(ready, (node.trial.index, node.position, node.key))
        return there

    try:
        settle(*begin(""))
        while ready or running:
            while ready and len(running) < engine.slots:
                _, _, key = heapq.heappop(ready)
                running.add(key)
                engine.submit(nodes[key])
            for event in engine.events():
                node = nodes[event.key]
                if event.what == "start":
                    notes.trials += [(node.trial.index, "running", None)]
                    watch.start(node.trial.index, node.label)
                elif event.what == "epoch":
                    watch.epoch(node.trial.index, event.text)
                elif event.what == "done":
                    running.discard(event.key)
                    computed += event.how == "computed"
                    settle((event.key, event.how, event.seconds, event.text, event.found))
                elif event.what == "failed":
                    running.discard(event.key)
                    for trial, position in users[event.key]:
                        label = by_index[trial].steps[position].label
                        failures[trial] = event.text
                        notes.trials.append(
                            (trial, "failed", f"{label}: {event.text}\n\n{event.trace}".rstrip())
                        )
                        watch.failed(trial, label, event.text)
            notes.write()
    finally:
        notes.write(now=True)
    return computed, sorted(failures.items())


def _stored(store: Store, key: str) -> tuple[float, str, dict[str, float]]:
    """(seconds, line, numbers) of an outcome that was there before."""
    outcome = store.outcome(key)
    if outcome is None:
        return 0.0, "", {}
    return outcome.seconds, str(outcome.log.get("line", "")), numbers(outcome.measurements)


def numbers(measurements: Iterable[Any]) -> dict[str, float]:
    """Measurements by name; of those of every epoch, the last."""
    return {m.name: float(m.value) for m in measurements}
