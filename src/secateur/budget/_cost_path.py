"""The common part of budgets on a remaining cost: a path of choices, and the search for the first that is cheap enough.

A path has positions 0, 1, 2, ...: at position k the first k units are removed, in the order of a rule. `Path` knows
three rules. "per_tensor": every list loses the same share, one unit after the other. "overall": the units with the
lowest scores are removed, in whichever list; "isomorphic" is the same with scores replaced by their ranks among units
of equal structure. The cost of a choice is counted or measured by the costs of the selection.

>>> import torch
>>> from torch import nn
>>> from secateur.core.units import Units
>>> a = Candidates(Units("a", 2, ()), torch.tensor([1.0, 2.0]))
>>> b = Candidates(Units("b", 4, ()), torch.tensor([9.0, 8, 7, 6]))
>>> entries = (a, b)
>>> path = Path(Selection(entries, nn.Identity()), "per_tensor")
>>> [[int((~keep).sum()) for keep in path.at(k).values()] for k in range(path.last + 1)]
[[0, 0], [0, 1], [1, 1], [1, 2], [1, 3]]
>>> path = Path(Selection(entries, nn.Identity()), "overall")
>>> [[int((~keep).sum()) for keep in path.at(k).values()] for k in range(path.last + 1)]
[[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from secateur.budget import Budget
from secateur.budget._kinds import by_kind
from secateur.budget._select import keep_highest
from secateur.budget._selection import Candidates, Chosen, Costs, Selection
from secateur.core.masks import count_true
from secateur.core.schedule import OneShot, Schedule
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["CostSearch", "Path", "Remaining", "check_keep", "costs_of", "first_within"]


def check_keep(budget: str, keep: object) -> float:
    """The share that remains as a float.

    Args:
        budget: The budget's name, for the error.
        keep: The value given for `keep`.

    Raises:
        OptionError: The value is not a number with 0 < keep < 1.

    >>> check_keep("Macs", 0.5)
    0.5
    >>> check_keep("Macs", 50)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: Macs keep is the share that REMAINS: expected a number with 0 < keep < 1, got 50; ...
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0.0 < keep < 1.0:
        more = f"; for 50 % write {keep / 100:g}" if isinstance(keep, int) and 1 < keep < 100 else ""
        more = more.replace("50 %", f"{keep} %")
        raise OptionError(
            f"{budget} keep is the share that REMAINS: expected a number with 0 < keep < 1, got {keep!r}{more}"
        )
    return float(keep)


class Remaining(Budget):
    """A budget on a remaining cost. `keep` is a share of the dense cost and `spread` a rule of `Path`."""

    keep: float | None
    spread: str
    round_to: int | None = None

    def check_spread(self) -> None:
        """Raise unless `spread` is one of the three rules, and `round_to` a multiple."""
        if self.round_to is not None and (type(self.round_to) is not int or self.round_to < 1):
            raise OptionError(
                f"{type(self).__name__} round_to: expected a multiple that remaining widths are rounded to, such as "
                f"8 or 16, got {self.round_to!r}"
            )
        if self.spread not in ("per_tensor", "overall", "isomorphic"):
            raise OptionError(
                f"{type(self).__name__} spread: expected 'per_tensor' (every list loses the same share), 'overall' "
                f"(all units compete) or 'isomorphic' (those of one kind do), got {self.spread!r}"
            )

    def steps(self, schedule: Schedule) -> tuple[Budget, ...]:
        """The budgets of a schedule's rounds: the share removed follows the schedule."""
        if isinstance(schedule, OneShot):
            return (self,)
        if self.keep is None:
            raise OptionError(
                f"{self} names no share a schedule could approach in rounds; leave schedule= out, or give keep="
            )
        levels = [level for level in schedule.levels(1.0 - self.keep) if level > 0.0]
        return tuple(dataclasses.replace(self, keep=1.0 - level) for level in levels[:-1]) + (self,)  # type: ignore


def costs_of(selection: Selection, budget: Remaining) -> Costs:
    """The costs of a selection; raises if the selection has none."""
    if selection.costs is None:
        raise OptionError(
            f"{budget} counts what a choice costs: it works with sc.prune, which provides the costs"
        )
    return selection.costs()


class Path:
    """The choices in the order in which a rule removes units. At least one unit of every list remains.

    With `round_to` a list that loses any keeps the nearest multiple of it (never none), because kernels are faster at
    such widths. `fixed` is the choice in other lists, which every position holds besides.
    """

    def __init__(
        self,
        selection: Selection,
        spread: str,
        round_to: int | None = None,
        fixed: Mapping[str, torch.Tensor] | None = None,
    ):
        self.candidates = selection.candidates
        self._fixed = dict(fixed or {})
        self.spread = spread
        self.round_to = round_to
        self._gone = [candidates.removed for candidates in self.candidates]
        self._most = [
            max(gone, min(candidates.most, candidates.count - 1))
            for gone, candidates in zip(self._gone, self.candidates)
        ]
        self.last = sum(self._most) - sum(self._gone)
        if spread != "per_tensor":
            self._ranked = [
                _protected(candidates, most) for candidates, most in zip(self.candidates, self._most)
            ]
            if spread == "isomorphic":
                self._ranked = by_kind(selection, self._ranked)

    def at(self, position: int) -> Chosen:
        """The choice with `position` more units removed."""
        gone = position + sum(self._gone)
        if self.spread != "per_tensor":
            kept = keep_highest(self._ranked, gone)
            if self.round_to is None:
                return self._fixed | {
                    candidates.name: keep for candidates, keep in zip(self.candidates, kept)
                }
            counts = [candidates.count - count_true(keep) for candidates, keep in zip(self.candidates, kept)]
        else:
            counts = self._counts(gone)
        return self.of([self._rounded(i, count) for i, count in enumerate(counts)])

    def of(self, counts: Sequence[int]) -> Chosen:
        """The choice in which each list has lost this many of its units, those with the lowest scores."""
        return self._fixed | {
            candidates.name: keep_highest([candidates.ranked], count)[0]
            for candidates, count in zip(self.candidates, counts)
        }

    def refilled(self, chosen: Chosen, fits: Callable[[Chosen], bool]) -> Chosen:
        """The choice with blocks of `round_to` units back where they fit: rounding may have removed too many."""
        if self.round_to is None:
            return chosen
        counts = [candidates.count - count_true(chosen[candidates.name]) for candidates in self.candidates]
        # the list that has lost the largest share of itself first; one that has no room is not asked again
        asked = {i for i, count in enumerate(counts) if count > self._gone[i]}
        while asked:
            index = max(asked, key=lambda i: (counts[i] / self.candidates[i].count, -i))
            less = max(self._gone[index], counts[index] - self.round_to)
            tried = self.of([*counts[:index], less, *counts[index + 1 :]])
            if less < counts[index] and fits(tried):
                counts[index], chosen = less, tried
            else:
                asked.discard(index)
        return chosen

    def _rounded(self, index: int, gone: int) -> int:
        """How many units a list loses, so that a multiple remains."""
        candidates, most, before = self.candidates[index], self._most[index], self._gone[index]
        if self.round_to is None or gone == 0 or candidates.count <= self.round_to:
            return gone
        stays = max(1, math.floor((candidates.count - gone) / self.round_to + 0.5)) * self.round_to
        return gone if before > candidates.count - stays else min(most, max(0, candidates.count - stays))

    def _counts(self, gone: int) -> list[int]:
        """How many each list has lost when `gone` units are gone at one share; ties by the lists' order."""

        def at(share: float) -> list[int]:
            return [
                min(most, max(before, math.floor(share * candidates.count + 0.5)))
                for candidates, before, most in zip(self.candidates, self._gone, self._most)
            ]

        low, high = 0.0, 2.0
        while True:
            middle = (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if sum(at(middle)) <= gone else (low, middle)
        counts = at(low)
        for index, more in enumerate(at(high)):
            extra = min(more - counts[index], gone - sum(counts))
            counts[index] += max(0, extra)
        return counts


def _protected(candidates: Candidates, most: int) -> torch.Tensor:
    """The scores of a list, with the units that must remain ordered after all others."""
    safe = keep_highest([candidates.ranked], most)[0]
    return candidates.ranked.masked_fill(safe, math.inf)


def first_within(
    path: Path, cost: Callable[[Chosen], float], limit: float, explain: Callable[[float], str]
) -> Chosen:
    """The first choice of the path that costs at most `limit`: with one unit fewer removed it would cost more.

    The cost must never rise along the path. Where even its end costs more, `explain(least)` gives the error's text.
    """
    low, high = 0, path.last
    end = path.at(high)
    least = cost(end)
    if least > limit:
        raise BudgetNotMetError(explain(least))
    best = end
    while low < high:
        middle = (low + high) // 2
        chosen = path.at(middle)
        if cost(chosen) <= limit:
            high, best = middle, chosen
        else:
            low = middle + 1
    return best


@dataclass
class CostSearch:
    """A search with few measurements, for a cost that takes long to measure and may be noisy.

    Args:
        path: The choices.
        cost: Measures one choice.
        size: A cheap number that falls along the path and that the cost roughly follows (bytes follow the remaining
            weights, time follows the multiply-accumulates): the next measurement is made where the line through the two
            nearest ones crosses the limit.
        limit: The highest cost allowed.
        within: A cost this far below the limit, as a share of it, ends the search.
        most: The most measurements.
        start: The cost at position 0, if known.
        done: (position, cost) of all measurements.

    >>> from torch import nn
    >>> from secateur.core.units import Units
    >>> candidates = Candidates(Units("a", 1000, ()), torch.arange(1000.0))
    >>> path = Path(Selection((candidates,), nn.Identity()), "per_tensor")
    >>> kept = lambda chosen: float(chosen["a"].sum())
    >>> search = CostSearch(path, lambda chosen: 50.0 + kept(chosen), kept, 300.0, within=0.01)
    >>> 297 <= 50 + int(search.run()["a"].sum()) <= 300, len(search.done)
    (True, 4)
    """

    path: Path
    cost: Callable[[Chosen], float]
    size: Callable[[Chosen], float]
    limit: float
    within: float = 0.01
    most: int = 12
    start: float | None = None
    done: list[tuple[int, float]] = field(default_factory=list)

    def run(self) -> Chosen | None:
        """The best choice found under the limit, or None where there is none."""
        path = self.path
        begin = path.at(0)
        over = (0, self.start if self.start is not None else self._measured(0, begin), self.size(begin))
        if over[1] <= self.limit:
            return begin
        under: tuple[int, float, float] | None = None
        best: Chosen | None = None
        while len(self.done) < self.most:
            position = self._next(over, under)
            if position is None:
                break
            chosen = path.at(position)
            found = (position, self._measured(position, chosen), self.size(chosen))
            if found[1] > self.limit:
                over = found
                continue
            under, best = found, chosen
            if found[1] >= self.limit * (1.0 - self.within):
                break
        if best is None and (not self.done or self.done[-1][0] != path.last):
            end = path.at(path.last)
            best = end if self._measured(path.last, end) <= self.limit else None
        return best

    @property
    def least(self) -> float:
        """The lowest cost measured."""
        return min(cost for _, cost in self.done)

    def _measured(self, position: int, chosen: Chosen) -> float:
        cost = self.cost(chosen)
        self.done.append((position, cost))
        return cost

    def _next(self, over: tuple[int, float, float], under: tuple[int, float, float] | None) -> int | None:
        """The position whose size lies where the limit should be met; strictly between the two known."""
        first, last = over[0] + 1, (under[0] - 1 if under is not None else self.path.last)
        if first > last:
            return None
        aim = self.limit * (1.0 - self.within / 2)
        low = (under[1], under[2]) if under is not None else (0.0, 0.0)  # an empty model: cost 0, size 0
        fall = (over[1] - low[0]) or 1.0
        wanted = low[1] + (over[2] - low[1]) * (aim - low[0]) / fall
        if len(self.done) % 4 == 3 and under is not None:
            wanted = (over[2] + under[2]) / 2  # bisect at intervals, in case the line misleads
        while first < last:
            middle = (first + last) // 2
            if self.size(self.path.at(middle)) <= wanted:
                last = middle
            else:
                first = middle + 1
        return first
