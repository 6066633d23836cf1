"""`preview`: before a run starts, how many trials and steps it has, what they share, and how long it will take.

The time of a step is the median of the stored steps of the same kind on the same model and data: those with the
same options if there are any, else all of them, scaled by the number of epochs. A step of which no time is stored is
counted as unknown, never guessed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from secateur.lab.display.duration import duration
from secateur.lab.outcomes import Table, canonical
from secateur.lab.planning import PlannedStep, RunPlan
from secateur.lab.recipe import Recipe
from secateur.lab.steps import Step
from secateur.lab.store import Store

__all__ = ["Preview", "preview"]


@dataclass(frozen=True)
class Preview:
    """What a run will compute.

    Args:
        trials: Trials of the run.
        steps: Steps of all trials together.
        cached: Distinct steps that the store holds.
        shared: Steps that another trial has as well.
        todo: Distinct steps to be computed.
        seconds: The sum of the times that are known.
        longest: The longest of the trials, which no number of workers shortens.
        unknown: Kinds of steps of which no time is known, and how many there are of each.
        probed: Whether times were measured with a few batches on this machine.

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
        """The time on `jobs` workers: never less than the longest trial."""
        return max(self.longest, self.seconds / jobs)

    def text(self, jobs: int = 1) -> str:
        """Two lines for people, for `jobs` workers."""
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
    """What running the plan will compute, given what the store holds.

    Args:
        plan: The run.
        store: The store it will use, or None for a new one.
        probe: `probe(recipe)` measures the seconds of one epoch; asked for trainings of which no time is stored.

    Returns:
        Counts, and an estimate of the time.
    """
    known = {key for key in plan.keys() if store is not None and store.has(key)}  # noqa: SIM118 - not a mapping
    estimates = _Estimates(_Times(store), probe)
    chains = [
        sum(estimates.of(planned, trial.recipe) for planned in trial.steps if planned.key not in known)
        for trial in plan.trials
    ]
    steps = sum(len(trial.steps) for trial in plan.trials)
    unknown = Counter(estimates.kinds[key] for key, value in estimates.seconds.items() if value is None)
    return Preview(
        trials=len(plan.trials),
        steps=steps,
        cached=len(known),
        shared=steps - len(known) - len(estimates.seconds),
        todo=len(estimates.seconds),
        seconds=sum(value or 0.0 for value in estimates.seconds.values()),
        longest=max(chains, default=0.0),
        unknown=tuple(sorted(unknown.items())),
        probed=estimates.probed,
    )


class _Estimates:
    """The seconds of every step that is to be computed, asked for once; None where nothing is known."""

    def __init__(self, times: _Times, probe: Callable[[Recipe], float] | None):
        self._times, self._probe = times, probe
        self.seconds: dict[str, float | None] = {}
        self.kinds: dict[str, str] = {}
        self.probed = False

    def of(self, planned: PlannedStep, recipe: Recipe) -> float:
        """The seconds of a step; 0 where nothing is known."""
        if planned.key not in self.seconds:
            found = self._times.of(planned.step, recipe.plain())
            epochs = getattr(planned.step, "epochs", None)
            if found is None and epochs and self._probe is not None:
                found, self.probed = self._probe(recipe) * epochs, True
            self.seconds[planned.key], self.kinds[planned.key] = found, planned.step.kind()
        return self.seconds[planned.key] or 0.0


class _Times:
    """Stored times, by kind and options of the step, model and data."""

    def __init__(self, store: Store | None):
        self._exact: dict[str, list[float]] = {}
        self._alike: dict[str, list[float]] = {}
        for kind, options, seconds, recipe in store.timings() if store is not None else ():
            about = _about(recipe)
            self._exact.setdefault(canonical([kind, options, *about]), []).append(seconds)
            share = seconds / (options.get("epochs") or 1)
            self._alike.setdefault(canonical([kind, *about]), []).append(share)

    def of(self, step: Step, recipe: Table) -> float | None:
        """How long such a step takes, or None where no step like it was timed."""
        options, about = step.chosen(), _about(recipe)
        exact = self._exact.get(canonical([step.kind(), options, *about]))
        if exact:
            return statistics.median(exact)
        alike = self._alike.get(canonical([step.kind(), *about]))
        return statistics.median(alike) * (options.get("epochs") or 1) if alike else None


def _about(recipe: Table) -> list[object]:
    """What a step's time depends on besides its options."""
    data, model = recipe["data"], recipe["model"]
    return [model["name"], model.get("options"), data["name"], data.get("limit"), data.get("size")]
