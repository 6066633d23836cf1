"""Latency: the shrunk model is as fast as asked, measured on this device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from secateur.budget._cost_path import Path, Remaining, check_keep, costs_of
from secateur.budget._depth import ROUGH, at_best_depth
from secateur.budget._selection import Selection, check_share
from secateur.core.renamed import renamed
from secateur.core.user_warnings import warn
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["Latency"]

_AGAIN = 2
"""How often a position is read again before it is accepted."""
_LITTLE = 0.2
"""Of the time's share: where the multiply-accumulates' share is smaller, time does not follow them."""
_CONFIRMED = 3
"""How many positions are read beyond `most`, if the result did not hold."""
_FAR = (5, 0.2)
"""A result below the limit by this many times `within`, and by this share, is measured again, then refused."""


@renamed(trials="repetitions")
@dataclass(frozen=True)
class Latency(Remaining):
    """Removes as few channels as needed for a forward pass on the example to take at most a given time.

    `ms` is the limit, or `keep` the share of the dense model's time. Every attempt really shrinks the model and reads
    its time in turns with the dense one's (`repetitions` each, on `threads`; half of that far from the limit). Earlier
    readings of the same widths count as well, and the result has been read at least twice. Zeros in place save no time,
    only units that are cut out do: granularity "channel" or "head". The result is within `within` below the limit as
    measured, unless one unit more would exceed it or `most` models were read. Where it is far below, the wider models
    that were too slow are read again, as a busy machine misleads; what is far below still, although a wider
    model may do, is an error. `round_to` as for `Macs`. With whole layers and channels together (granularity
    ["layer", "channel"]) the number of layers that changes the outputs least is measured as well.

    >>> Latency(keep=0.5).within, Latency(ms=2.0).keep
    (0.02, None)
    """

    measured: ClassVar[bool] = True

    ms: float | None = None
    keep: float | None = None
    repetitions: int = 25
    threads: int | None = None
    spread: str = "per_tensor"
    round_to: int | None = None
    within: float = 0.02
    most: int = 10

    def __post_init__(self) -> None:
        if (self.ms is None) == (self.keep is None):
            raise OptionError(
                "Latency: give either ms= (the limit) or keep= (the share of the dense time that remains)"
            )
        if self.keep is not None:
            object.__setattr__(self, "keep", check_keep("Latency", self.keep))
        elif isinstance(self.ms, bool) or not isinstance(self.ms, (int, float)) or not self.ms > 0:
            raise OptionError(f"Latency ms: expected a number above 0, got {self.ms!r}")
        if not 0.0 < self.within < 1.0 or self.most < 2 or self.repetitions < 1:
            raise OptionError(
                f"Latency: expected 0 < within < 1, most of at least 2 and repetitions of at least 1, got {self}"
            )
        self.check_spread()

    @classmethod
    def at(cls, share: float) -> Latency:
        """A budget of the dense time that remains when this share is removed."""
        return cls(keep=1.0 - (check_share("share", share) or 1e-9))

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """The choice of the path that is just fast enough."""
        costs = costs_of(selection, self)
        which = 0 if self.ms is not None else 1
        limit = float(self.ms if self.ms is not None else self.keep or 0.0)

        def search(path: Path, rough: bool) -> dict[str, torch.Tensor]:
            def read(position: int, again: bool) -> float:
                # far from the limit a rough reading is enough; repeated readings are averaged with the earlier ones
                repetitions = self.repetitions if again else max(3, self.repetitions // 2)
                return float(costs.time(path.at(position), repetitions, self.threads, again=again)[which])

            start = float(costs.time(path.at(0), self.repetitions, self.threads)[which])
            if start <= limit:
                return path.at(0)
            times = LatencySearch(
                path.last, read, lambda k: costs.remaining("macs", path.at(k)), limit, self.within, self.most
            )
            if rough:
                times = dataclasses.replace(times, within=max(self.within, ROUGH), again=0)
            best = times.run(start)
            if best is None:
                raise self._unmet(times, start, limit)
            if not rough:
                self._check_near(times, best, costs.dense("macs"))
                self._warn_of_little_left(times, start, costs.dense("macs"), best)
            return path.at(best)

        return at_best_depth(self, selection, search)

    def _check_near(self, times: LatencySearch, best: int, dense: float) -> None:
        """Raise where the result is far faster than asked, and hardly anything is left or a wider one may do."""
        alone = times.before(best) == 0  # the next wider model is the dense one
        if not times.far(best) or (times.settled(best) and (alone or not times.little(best))):
            return
        over = times.before(best)
        raise BudgetNotMetError(
            f"{self}: {times.limit:.4g} {self._unit} was asked, and of {len(times.seen)} shrunk models only one of "
            f"{times.seen[best]:.4g} was found below it, with {times.size(best) / max(dense, 1.0):.2%} of the "
            f"multiply-accumulates; the next wider one ({times.size(over) / max(dense, 1.0):.2%}) was read at "
            f"{times.time(over):.4g}. Readings vary on a busy machine: prune again where nothing else runs, with "
            f"repetitions={2 * self.repetitions}, or ask for multiply-accumulates: "
            "sc.budget.Macs(keep=...)"
        )

    def _warn_of_little_left(self, times: LatencySearch, start: float, dense: float, best: int) -> None:
        """Say that a limit on time is met only by removing nearly everything, and why, where the readings show it."""
        left, took = times.size(best) / max(dense, 1.0), times.seen[best] / start
        if not times.little(best):
            return
        why = (
            "readings vary on a busy machine. Check the accuracy, and prune again where nothing else runs, with "
            f"repetitions={2 * self.repetitions}, or ask for multiply-accumulates: sc.budget.Macs(keep=...)"
        )
        if times.before(best) == 0 and times.settled(best):
            why = (
                "no cut removes less. Give finer units (granularity 'channel'), or let more layers be pruned"
            )
        elif times.saw_little(best):
            why = (
                "narrower layers hardly save time here, as a pass this short is mostly calls and memory traffic. Ask "
                "for a larger keep, give an example of a larger batch, or remove whole layers (granularity 'layer'); "
                "secateur.metrics.why shows where the time goes"
            )
        warn(f"{self} is met with {left:.2%} of the multiply-accumulates, in {took:.0%} of the time: {why}")

    @property
    def _unit(self) -> str:
        return "ms" if self.ms is not None else "of the dense time"

    def _unmet(self, times: LatencySearch, start: float, limit: float) -> BudgetNotMetError:
        more = times.least * 1.02
        could = (
            f", or ask for {more:.3g}"
            if self.ms is not None or more < 1.0
            else ": narrower layers save nothing"
        )
        return BudgetNotMetError(
            f"{self}: the fastest of {len(times.seen)} shrunk models takes {times.least:.4g} {self._unit} (with "
            f"nothing narrower: {start:.4g}) and {limit:.4g} was asked; let more layers be pruned{could}. "
            "secateur.metrics.why shows where the time goes"
        )


@dataclass
class LatencySearch:
    """The position whose time is just below a limit, found by few, inexact readings.

    Times fall along the path but readings do not quite; they are made to by averaging neighbours in the wrong order.
    Each next reading is where the line through the nearest two says that the limit should be met (time follows `size`,
    the multiply-accumulates), and a position is accepted once two more readings, together with the first, confirm it.
    A reading that was too high keeps the search away from all that is wider. So where the result is far below the
    limit, or leaves little, wider positions are read again, and then some between, `most` at most.

    >>> times = {k: 1.0 - 0.009 * k + 0.01 * (k % 3) for k in range(101)}
    >>> search = LatencySearch(100, lambda k, again: times[k], lambda k: 100.0 - k, limit=0.5, within=0.04, most=10)
    >>> 0.48 <= times[search.run(1.0)] <= 0.5, len(search.seen) <= 6
    (True, True)
    """

    last: int
    read: Callable[[int, bool], float]
    size: Callable[[int], float]
    limit: float
    within: float
    most: int
    again: int = _AGAIN
    seen: dict[int, float] = field(default_factory=dict)  # position -> time, by all readings of it
    readings: int = 0

    def run(self, start: float) -> int | None:
        """The best position found, or None where even the last one takes too long."""
        self._firm: set[int] = set()
        self._sizes = {0: self.size(0)}
        self._start = start
        for _ in range(self.most + _CONFIRMED):
            position = self._next()
            if position is None:
                break
            self._look(position)
            looks = 0
            while self._good(position) and looks < self.again:
                self._look(position)  # once more, with all repetitions
                looks += 1
            if self._good(position) and position != self.last:  # its end removes all: fewer may do as well
                break
        return self._doubted(self._best())

    @property
    def least(self) -> float:
        """The shortest time found."""
        return min(self.seen.values())

    def time(self, position: int) -> float:
        """The time read at a position, or at the start."""
        return self.seen.get(position, self._start)

    def before(self, position: int) -> int:
        """The nearest wider position that was read."""
        return max((k for k in self.seen if k < position), default=0)

    def far(self, position: int) -> bool:
        """Whether a position is much faster than asked."""
        times, least = _FAR
        return self.seen[position] < self.limit * (1.0 - min(0.9, max(times * self.within, least)))

    def little(self, position: int, times: float = 1.0) -> bool:
        """Whether a position leaves far less of the multiply-accumulates than of the time; `times`: less far."""
        left = self._sized(position) / (self._sizes[0] or 1.0)
        return left < times * _LITTLE * self.time(position) / self._start

    def settled(self, position: int) -> bool:
        """Whether a position is the widest below the limit: the one before it was read twice, and is too slow."""
        over = self.before(position)
        narrower = self._sized_below(over + 1, position, math.nextafter(self._sized(over), -math.inf))
        apart = self._sized(over) - self._sized(position)
        return self._sure(over) and (
            self._sized(narrower) == self._sized(position) or apart <= self.within * self._sized(over)
        )

    def saw_little(self, position: int) -> bool:
        """Whether narrower layers were seen to hardly save time: with little left the limit was exceeded, twice."""
        over = self.before(position)
        return over > 0 and self._sure(over) and self.little(over, 2.0)

    def _sure(self, position: int) -> bool:
        return position in self._firm or position not in self.seen  # the start was read with all repetitions

    def _doubted(self, best: int | None) -> int | None:
        """The best position once readings that may have misled are repeated, and others made between."""
        for _ in range(self.most if self.again else 0):
            if best is None or not (self.far(best) or self.little(best)):
                break
            sure = max((k for k in self._firm if k < best), default=0)
            doubtful = sorted(k for k in self.seen if sure < k < best)
            if doubtful:
                # if it is fast enough, none of the narrower ones counts
                position = doubtful[len(doubtful) // 2]
            elif not self.far(best) or self.settled(best):
                break
            else:
                middle = (self._sized(sure) + self._sized(best)) / 2
                position = self._sized_below(sure + 1, best - 1, middle)
            while position not in self._firm:
                self._look(position)
            best = self._best()
        return best

    def _good(self, position: int) -> bool:
        return self.limit * (1.0 - self.within) <= self.seen[position] <= self.limit

    def _look(self, position: int) -> None:
        again = position in self.seen
        self.seen[position] = self.read(position, again)
        self.readings += 1
        if again:
            self._firm.add(position)

    def _best(self) -> int | None:
        """The widest position that holds the limit by two readings; a position read only once is read again first."""
        while True:
            under = [k for k, time in self.seen.items() if time <= self.limit]
            if not under:
                if self.last in self._firm or (not self.again and self.last in self.seen):
                    return None
                self._look(self.last)
                continue
            best = min(under)
            if best in self._firm or not self.again:
                return best
            self._look(best)

    def _next(self) -> int | None:
        """The next position to read: strictly between the two nearest, or None if there is none between."""
        points = _falling({0: self._start, **self.seen})
        over = max((k for k, time in points.items() if time > self.limit), default=0)
        under = min((k for k, time in points.items() if time <= self.limit and k > over), default=None)
        first, last = over + 1, (under - 1 if under is not None else self.last)
        if first > last:
            return None
        if under is None and len(self.seen) >= 2:
            # time does not fall to zero with the multiply-accumulates: its least value has to be read
            return self.last
        # an empty model takes no time
        low = (points[under], self._sized(under)) if under is not None else (0.0, 0.0)
        high = (points[over], self._sized(over))
        aim = self.limit * (1.0 - self.within / 2)
        wanted = low[1] + (high[1] - low[1]) * (aim - low[0]) / ((high[0] - low[0]) or 1.0)
        if len(self.seen) % 4 == 3 and under is not None:
            wanted = (high[1] + low[1]) / 2  # bisect at intervals, in case the line misleads
        return self._sized_below(first, last, wanted)

    def _sized_below(self, first: int, last: int, wanted: float) -> int:
        """The first position of a range whose size is at most the wanted one; its last, if there is none."""
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if self._sized(middle) <= wanted else (middle + 1, last)
        return first

    def _sized(self, position: int) -> float:
        if position not in self._sizes:
            self._sizes[position] = self.size(position)
        return self._sizes[position]


def _falling(points: Mapping[int, float]) -> dict[int, float]:
    """The readings made to fall along the path: neighbours in the wrong order share their mean.

    >>> _falling({0: 1.0, 10: 0.4, 20: 0.6, 30: 0.2})
    {0: 1.0, 10: 0.5, 20: 0.5, 30: 0.2}
    """
    blocks: list[tuple[list[int], float]] = []
    for position in sorted(points):
        blocks.append(([position], points[position]))
        while len(blocks) > 1 and blocks[-1][1] > blocks[-2][1]:
            (late, b), (early, a) = blocks.pop(), blocks.pop()
            blocks.append(([*early, *late], (a * len(early) + b * len(late)) / (len(early) + len(late))))
    return {position: value for held, value in blocks for position in held}
