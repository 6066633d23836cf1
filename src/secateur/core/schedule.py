"""Schedules: the sparsity after each round of pruning, as frozen values.

`prune` evaluates the criterion again in every round. In your own training loop, iterate over the levels:

    for level in Gradual(steps=10).levels(0.9):
        masks = sc.prune(model, budget=level, masks=masks)
        with sc.hold(model, masks, optimizer):
            train(model)

>>> Iterative(3).levels(0.9)
(0.3, 0.6, 0.9)
>>> Gradual(steps=4).levels(0.8)
(0.4625, 0.7, 0.7875, 0.8)
>>> Exponential(4).levels(0.9999)
(0.9, 0.99, 0.999, 0.9999)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import SupportsFloat

from secateur.errors import OptionError

__all__ = ["Exponential", "Gradual", "Iterative", "OneShot", "Schedule", "ScheduleLike", "make"]


def _level(what: str, value: object) -> float:
    """A share removed, 0 <= value < 1, or an `OptionError`."""
    if (
        isinstance(value, (bool, str))
        or not isinstance(value, SupportsFloat)
        or not 0.0 <= float(value) < 1.0
    ):
        raise OptionError(
            f"{what} is the share removed: expected a number from 0 up to but not including 1, got {value!r}"
        )
    return float(value)


def _rounds(what: str, value: object) -> int:
    """A number of rounds, at least 1, or an `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{what}: expected a whole number of at least 1, got {value!r}")
    return value


def _denoised(levels: list[float], end: float) -> tuple[float, ...]:
    """The levels rounded, so that 3 * 0.2 is 0.6; the end is exact."""
    return (*(round(level, 12) for level in levels), end)


def _ends(schedule: Schedule, end: float, final: float | None) -> float:
    """The level a schedule ends at: its own, which must equal the budget's if there is one."""
    if final is None or _level("sparsity", final) == end:
        return end
    raise OptionError(f"{schedule} ends at {end:g}, but the budget asks for {final:g}; give both the same")


class Schedule(ABC):
    """The base class of schedules: a frozen value with `levels`."""

    @abstractmethod
    def levels(self, final: float | None = None) -> tuple[float, ...]:
        """The sparsity after each round; the last is exactly `final`, or the schedule's own end."""

    def _final(self, final: float | None) -> float:
        if final is None:
            raise OptionError(f"{self} has no end of its own; give the final sparsity: levels(0.9)")
        return _level("sparsity", final)


@dataclass(frozen=True)
class OneShot(Schedule):
    """All at once.

    >>> OneShot().levels(0.5)
    (0.5,)
    """

    def levels(self, final: float | None = None) -> tuple[float, ...]:
        """The final sparsity alone."""
        return (self._final(final),)


@dataclass(frozen=True)
class Iterative(Schedule):
    """Equal steps (a number of rounds), or the levels themselves.

    >>> Iterative(4).levels(0.8)
    (0.2, 0.4, 0.6, 0.8)
    >>> Iterative((0.5, 0.6, 0.64)).levels()
    (0.5, 0.6, 0.64)
    """

    steps: int | tuple[float, ...] = 5

    def __post_init__(self) -> None:
        if isinstance(self.steps, int):
            _rounds("Iterative steps", self.steps)
            return
        if isinstance(self.steps, str) or not isinstance(self.steps, Sequence) or not self.steps:
            raise OptionError(
                f"Iterative steps: expected a number of rounds or a list of levels, got {self.steps!r}"
            )
        levels = tuple(_level("each level of Iterative", level) for level in self.steps)
        if any(later < earlier for earlier, later in pairwise(levels)):
            raise OptionError(f"Iterative levels must not fall, because masks only grow; got {levels}")
        object.__setattr__(self, "steps", levels)

    def levels(self, final: float | None = None) -> tuple[float, ...]:
        """The levels given, or `final` in equal steps."""
        if not isinstance(self.steps, int):
            _ends(self, self.steps[-1], final)
            return self.steps
        end, count = self._final(final), self.steps
        return _denoised([end * k / count for k in range(1, count)], end)


@dataclass(frozen=True)
class Gradual(Schedule):
    """Large steps first, smaller ones towards the end: end + (start - end) * (1 - k / steps) ** 3 (Zhu, Gupta, 2017).

    >>> Gradual(start=0.5, end=0.9, steps=2).levels()
    (0.85, 0.9)
    """

    start: float = 0.0
    end: float | None = None
    steps: int = 10
    power: float = 3.0

    def __post_init__(self) -> None:
        _level("Gradual start", self.start)
        _rounds("Gradual steps", self.steps)
        if self.end is not None and _level("Gradual end", self.end) < self.start:
            raise OptionError(f"Gradual: end {self.end:g} lies below start {self.start:g}; masks only grow")
        if isinstance(self.power, (bool, str)) or not self.power > 0:
            raise OptionError(f"Gradual power: expected a number above 0, got {self.power!r}")

    def levels(self, final: float | None = None) -> tuple[float, ...]:
        """The cubic's value after each round; `start` itself is not a round."""
        end = self._final(final) if self.end is None else _ends(self, self.end, final)
        if end < self.start:
            raise OptionError(
                f"{self} starts at {self.start:g}, above the final sparsity {end:g}; masks only grow"
            )
        rest = [end - (end - self.start) * (1 - k / self.steps) ** self.power for k in range(1, self.steps)]
        return _denoised([max(self.start, level) for level in rest], end)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Remove the same share of the remaining weights in every round: density ** (k / rounds) remains after round k
    (SynFlow).

    >>> [round(1 - level, 4) for level in Exponential(2).levels(0.99)]
    [0.1, 0.01]
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        _rounds("Exponential rounds", self.rounds)

    def levels(self, final: float | None = None) -> tuple[float, ...]:
        """1 - density ** (k / rounds)."""
        end = self._final(final)
        return _denoised([1 - (1 - end) ** (k / self.rounds) for k in range(1, self.rounds)], end)


ScheduleLike = Schedule | type[Schedule] | int | Sequence[float] | None


def make(value: ScheduleLike) -> Schedule:
    """A schedule from a value, a number of equal steps, a list of levels, or None for all at once.

    >>> make(None), make([0.5, 0.6])
    (OneShot(), Iterative(steps=(0.5, 0.6)))
    """
    if value is None:
        return OneShot()
    if isinstance(value, Schedule):
        return value
    if isinstance(value, type) and issubclass(value, Schedule):
        return value()
    if (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, (list, tuple)):
        return Iterative(value if isinstance(value, int) else tuple(value))
    raise OptionError(
        "schedule: expected OneShot(), Iterative(...), Gradual(...) or Exponential(...), a number of "
        "rounds or a "
        f"list of levels, got {value!r}"
    )
