"""Before a sweep starts: how many trials, what they share, and how long it will take, from stored times.

The time of a step is the median of the stored steps of the same kind on the same model and data: those with the
same options if there are any, else all of them, scaled by the epochs where there are epochs. A step nothing is
known of is counted as unknown, never guessed.

>>> duration(0.2), duration(75), duration(7330)
('under 1 s', '1 min 15 s', '2 h 2 min')
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateur.lab.plan import RunPlan
from secateur.lab.recipe import Recipe
from secateur.lab.steps import Step
from secateur.lab.store import Store, canonical

__all__ = ["Preview", "duration", "preview"]


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(59.6), duration(3600)
    ('1 min 0 s', '1 h 0 min')
    """
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass(frozen=True)
class Preview:
    """What a run would come to. `seconds` is the sum over the known steps, `longest` the longest chain of them.

    >>> print(Preview(trials=4, steps=8, cached=0, shared=3, todo=5, seconds=90.0, longest=30.0).text(jobs=2))
    4 trials, 8 steps: 5 to run, 0 cached, 3 shared with another trial
    about 45 s on 2 workers, 1 min 30 s of work
    """

    trials: int
    steps: int
    cached: int
    shared: int
    todo: int
    seconds: float
    longest: float
    unknown: tuple[tuple[str, int], ...] = ()
    probed: bool = False

    def wall(self, jobs: int) -> float:
        """The time on so many workers: never less than the longest chain."""
        return max(self.longest, self.seconds / jobs)

    def text(self, jobs: int = 1) -> str:
        """Two lines for a person."""
        first = (
            f"{self.trials} {_plural('trial', self.trials)}, {self.steps} {_plural('step', self.steps)}: "
            f"{self.todo} to run, {self.cached} cached, {self.shared} shared with another trial"
        )
        if not self.todo:
            return first
        count = sum(number for _, number in self.unknown)
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.unknown)
        if count == self.todo:
            return f"{first}\nno estimate of the time: this store has timed no step like these on this model and data"
        on = f" on {jobs} workers, {duration(self.seconds)} of work" if jobs > 1 else ""
        rest = f", and {count} {_plural('step', count)} never timed before ({kinds})" if count else ""
        how = ", by a few timed batches on this machine" if self.probed else ""
        return f"{first}\nabout {duration(self.wall(jobs))}{on}{how}{rest}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def preview(plan: RunPlan, store: Store | None, probe: Callable[[Recipe], float] | None = None) -> Preview:
    """What running the plan would come to, given what the store knows.

    `probe(recipe)` are the seconds of one epoch of training, asked for trainings that the store has never timed.
    """
    keys = plan.keys()
    known = {key for key in keys if store is not None and store.has(key)}
    times = _Times(store)
    spent: dict[str, float | None] = {}
    unknown: Counter[str] = Counter()
    probed = False
    longest = 0.0
    for trial in plan.trials:
        chain = 0.0
        for planned in trial.steps:
            if planned.key in known:
                continue
            if planned.key not in spent:
                spent[planned.key] = times.of(planned.step, trial.recipe.plain())
                epochs = getattr(planned.step, "epochs", None)
                if spent[planned.key] is None and epochs and probe is not None:
                    spent[planned.key], probed = probe(trial.recipe) * epochs, True
                unknown[planned.step.kind()] += spent[planned.key] is None
            chain += spent[planned.key] or 0.0
        longest = max(longest, chain)
    steps = sum(len(trial.steps) for trial in plan.trials)
    return Preview(
        trials=len(plan.trials),
        steps=steps,
        cached=len(known),
        shared=steps - len(known) - len(spent),
        todo=len(spent),
        seconds=sum(value or 0.0 for value in spent.values()),
        longest=longest,
        unknown=tuple((kind, count) for kind, count in sorted(unknown.items()) if count),
        probed=probed,
    )


class _Times:
    """Stored times, by what was done to what."""

    def __init__(self, store: Store | None):
        self._exact: dict[str, list[float]] = {}
        self._alike: dict[str, list[float]] = {}
        for kind, options, seconds, recipe in store.timings() if store is not None else ():
            about = _about(recipe)
            self._exact.setdefault(canonical([kind, options, *about]), []).append(seconds)
            share = seconds / (options.get("epochs") or 1)
            self._alike.setdefault(canonical([kind, *about]), []).append(share)

    def of(self, step: Step, recipe: dict[str, Any]) -> float | None:
        """How long such a step takes, or None where nothing like it was ever timed."""
        options, about = step.chosen(), _about(recipe)
        exact = self._exact.get(canonical([step.kind(), options, *about]))
        if exact:
            return statistics.median(exact)
        alike = self._alike.get(canonical([step.kind(), *about]))
        return statistics.median(alike) * (options.get("epochs") or 1) if alike else None


def _about(recipe: dict[str, Any]) -> list[Any]:
    """What a step's time depends on beside its options."""
    data, model = recipe["data"], recipe["model"]
    return [model["name"], model.get("options"), data["name"], data.get("limit"), data.get("size")]
