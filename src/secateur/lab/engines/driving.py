"""`drive`: have an engine compute a plan. One loop decides which step comes next.

The steps of all trials are a forest: a step follows the one before it, and what trials have in common is one node. A
node is submitted when the one before it is done, trials in order, so that a shared training is computed once. A node
that fails ends only the trials it is part of.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable

from secateur.core.measurement import Measurement
from secateur.lab.display import Progress
from secateur.lab.engines import Engine, Event, Node
from secateur.lab.planning import PlannedStep, PlannedTrial, RunPlan
from secateur.lab.store import Store
from secateur.lab.usage import Usage

__all__ = ["drive", "forest", "numbers"]

_NOTE_EVERY = 0.5  # seconds between two records of the trials' status; outcomes are written at once


def drive(
    plan: RunPlan,
    store: Store,
    run: int,
    watch: Progress,
    engine: Engine,
    known: set[str],
    usage: Usage | None = None,
) -> tuple[int, list[tuple[int, str]]]:
    """Have the engine compute every step of a plan that is not known.

    Args:
        plan: The trials.
        store: Where outcomes are kept.
        run: The run's number in the store.
        watch: The display; it may stop trials.
        engine: Computes the steps.
        known: Addresses of the outcomes that the store holds.
        usage: Is told how many steps are computed at once.

    Returns:
        How many steps were computed, and number and error of each trial that failed.
    """
    return _Drive(plan, store, run, watch, engine, known).go(usage or Usage())


def forest(plan: RunPlan) -> tuple[dict[str, list[Node]], dict[str, list[tuple[int, int]]]]:
    """The steps of a plan as a forest.

    A step that trials share may follow different steps, because a timed step is no part of the addresses after it. It
    may begin when the first of them is done.

    Args:
        plan: The trials.

    Returns:
        Which nodes may begin once a step is done (after "": at once), and per step the trials and positions it has.
    """
    following: dict[str, list[Node]] = {}
    users: dict[str, list[tuple[int, int]]] = {}
    seen: set[tuple[str, str]] = set()
    for trial in plan.trials:
        last = ""
        for position, planned in enumerate(trial.steps):
            users.setdefault(planned.key, []).append((trial.index, position))
            if (last, planned.key) not in seen:
                seen.add((last, planned.key))
                uses = _uses(trial, position, last)
                following.setdefault(last, []).append(Node(planned.key, trial, position, uses))
            last = planned.key
    return following, users


def _uses(trial: PlannedTrial, position: int, last: str) -> tuple[str, ...]:
    """The addresses of the states that a step reads: the one before it, and those whose label an option names."""
    keys = {step.label: step.key for step in trial.steps[:position]}
    options = trial.steps[position].step.chosen().values()
    named = [keys[value] for value in options if isinstance(value, str) and value in keys]
    return tuple(dict.fromkeys([*([last] if last else []), *named]))


def numbers(measurements: Iterable[Measurement]) -> dict[str, float]:
    """Measurements by name; of those of every epoch, the last."""
    return {m.name: float(m.value) for m in measurements}


class _Notes:
    """What the store must record of the run, written in one transaction at intervals."""

    def __init__(self, store: Store, run: int):
        self._store, self._run, self._last = store, run, time.monotonic()
        self.steps: list[tuple[int, int, str]] = []
        self.trials: list[tuple[int, str, str | None]] = []

    def write(self, *, now: bool = False) -> None:
        if (self.steps or self.trials) and (now or time.monotonic() - self._last > _NOTE_EVERY):
            self._store.note(self._run, self.steps, self.trials)
            self.steps, self.trials, self._last = [], [], time.monotonic()


class _Drive:
    """One run on an engine, and its progress."""

    def __init__(
        self, plan: RunPlan, store: Store, run: int, watch: Progress, engine: Engine, known: set[str]
    ):
        self.store, self.watch, self.engine, self.known = store, watch, engine, known
        self.following, self.users = forest(plan)
        self.trials = {trial.index: trial for trial in plan.trials}
        self.left = {trial.index: len(trial.steps) for trial in plan.trials}
        self.notes = _Notes(store, run)
        self.ready: list[tuple[int, int, str]] = []  # a heap: trial, position, address
        self.nodes: dict[str, Node] = {}  # every node that was ready once
        self.running: set[str] = set()
        self.stopped: set[int] = set()
        self.failures: dict[int, str] = {}
        self.computed = 0

    def go(self, usage: Usage) -> tuple[int, list[tuple[int, str]]]:
        """Submit nodes and handle events until every step is done, stopped or failed."""
        try:
            self._settle(self._begin(""))
            while self.ready or self.running:
                while self.ready and len(self.running) < self.engine.slots:
                    _, _, key = heapq.heappop(self.ready)
                    self.running.add(key)
                    self.engine.submit(self.nodes[key])
                usage.running = len(self.running)
                for event in self.engine.events():
                    self._handle(event)
                self.notes.write()
        finally:
            self.notes.write(now=True)
        return self.computed, sorted(self.failures.items())

    def _begin(self, after: str) -> list[Event]:
        """Make ready the nodes that follow a step; those whose outcome is known are returned as done."""
        done = []
        for node in self.following.get(after, ()):
            users = self.users[node.key]
            if node.key in self.nodes or all(trial in self.stopped for trial, _ in users):
                continue
            self.nodes[node.key] = node
            if node.key in self.known:
                done.append(self._cached(node.key))
            else:
                heapq.heappush(self.ready, (node.trial.index, node.position, node.key))
        return done

    def _cached(self, key: str) -> Event:
        """The event of an outcome that the store holds."""
        outcome = self.store.outcome(key)
        if outcome is None:
            return Event("done", key, "cached")
        line = str(outcome.log.get("line", ""))
        return Event("done", key, "cached", outcome.seconds, line, found=numbers(outcome.measurements))

    def _settle(self, done: list[Event]) -> None:
        """Count a done step in every trial it is part of, and begin what follows."""
        stack = list(done)
        while stack:
            event = stack.pop()
            how = event.how
            for trial, position in self.users[event.key]:
                self.notes.steps.append((trial, position, how))
                self._count(trial, self.trials[trial].steps[position], how, event)
                how = "cached"  # in the trials after the first
            stack += self._begin(event.key)

    def _count(self, trial: int, planned: PlannedStep, how: str, event: Event) -> None:
        """Count a done step in one trial; the display may stop the trial."""
        self.watch.done(trial, planned.label, how, event.seconds, event.text)
        self.watch.found(trial, event.found)
        if trial not in self.stopped and self.left[trial] > 1:
            why = self.watch.stop(trial, event.found)
            if why:
                self.stopped.add(trial)
                self.notes.trials.append((trial, "stopped", why))
        self.left[trial] -= 1
        if not self.left[trial]:
            self.notes.trials.append((trial, "done", None))
            self.watch.finished(trial)

    def _handle(self, event: Event) -> None:
        """Handle one event of the engine."""
        node = self.nodes[event.key]
        if event.what == "start":
            self.notes.trials.append((node.trial.index, "running", None))
            self.watch.start(node.trial.index, node.label)
        elif event.what == "epoch":
            self.watch.epoch(node.trial.index, event.text)
        elif event.what == "done":
            self.running.discard(event.key)
            self.computed += event.how == "computed"
            self._settle([event])
        elif event.what == "failed":
            self.running.discard(event.key)
            self._fail(event)

    def _fail(self, event: Event) -> None:
        """Record the failure in every trial that the step is part of."""
        for trial, position in self.users[event.key]:
            label = self.trials[trial].steps[position].label
            self.failures[trial] = event.text
            text = f"{label}: {event.text}\n\n{event.trace}".rstrip()
            self.notes.trials.append((trial, "failed", text))
            self.watch.failed(trial, label, event.text)
