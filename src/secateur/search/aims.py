"""What `compress` aims at: the least cost that holds a limit, or the best that a given size allows.

An aim proposes the share that each attempt keeps, says of each number whether it holds, and which of two attempts is
better.

>>> aim = BestAtSize(limit=Limit(verb="compress", accuracy=0.9, limit=-math.inf), keep=0.5, most_bytes=None)
>>> aim.verdict(0.85)
'0.8500, 0.0500 less than the dense model'
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from secateur.errors import BudgetNotMetError
from secateur.search.compressed import CompressAttempt
from secateur.search.frame import Limit, best_of, next_share

__all__ = ["Aim", "BestAtSize", "LeastCost", "Proposal"]

FURTHER = "further"
"""The allocation that cuts what held further."""
_MOST, _LEAST = 0.95, 0.005  # of the weights, that an attempt keeps
_WITHIN = 0.03  # a file that is smaller than allowed by at most this share is near enough
_BELOW = 0.99  # of the bytes allowed, that the next attempt is to take


@dataclass(frozen=True)
class Proposal:
    """The next attempt: the share that remains, how the cut is spread, and the only number of bits to try, if any."""

    keep: float
    allocation: str
    bits: int | None = None


class Aim(Protocol):
    """What an attempt is judged by."""

    def proposals(
        self, allocations: Sequence[str], attempts: int, bits: Sequence[int]
    ) -> Generator[Proposal, CompressAttempt, None]:
        """The attempts to make, each sent its result."""

    def fits(self, size: int | None) -> bool:
        """Whether a file of so many bytes may be judged at all; None where the file is not what is looked at."""

    def holds(self, number: float) -> bool:
        """Whether what `evaluate` gives is within the limit."""

    def trains(self, one: CompressAttempt) -> bool:
        """Whether a training may help this attempt."""

    def verdict(self, number: float) -> str:
        """What follows from an attempt's number, as the end of a sentence."""

    def better(self, one: CompressAttempt, than: CompressAttempt) -> bool:
        """Whether an attempt that holds is better than another."""

    def best(
        self, done: Sequence[CompressAttempt], found: CompressAttempt | None, advice: str
    ) -> CompressAttempt:
        """The best of all attempts, or the error that none held."""


def cost(one: CompressAttempt) -> float:
    """Bytes, or the share that remains where the file is not looked at."""
    return one.keep if one.bytes is None else float(one.bytes)


@dataclass(frozen=True)
class LeastCost:
    """The fewest multiply-accumulates, or bytes, at which the number is within the limit."""

    limit: Limit

    def proposals(
        self, allocations: Sequence[str], attempts: int, bits: Sequence[int]
    ) -> Generator[Proposal, CompressAttempt, None]:
        """Halve a share that held, go half way back from one that failed; at each share the allocations in turn."""
        holds, fails = 1.0, 0.0
        for _ in range(attempts):
            keep = next_share(holds, fails)
            for allocation in allocations:
                if allocation == FURTHER and holds == 1.0:
                    continue
                one = yield Proposal(keep, allocation)
                if one.holds:
                    holds = keep
                    break
            else:
                fails = keep

    def fits(self, size: int | None) -> bool:
        """Every size."""
        return True

    def holds(self, number: float) -> bool:
        """Whether the number is within the limit."""
        return self.limit.holds(number)

    def trains(self, one: CompressAttempt) -> bool:
        """An attempt that does not hold."""
        return not one.holds

    def verdict(self, number: float) -> str:
        """Whether it holds, or by how much it is short."""
        return self.limit.verdict(number)

    def better(self, one: CompressAttempt, than: CompressAttempt) -> bool:
        """The one of less cost."""
        return cost(one) < cost(than)

    def best(
        self, done: Sequence[CompressAttempt], found: CompressAttempt | None, advice: str
    ) -> CompressAttempt:
        """The one of least cost that holds."""
        return best_of(done, cost, self.limit, advice)


@dataclass(frozen=True)
class BestAtSize:
    """The best number at a share of the multiply-accumulates, or in so many bytes.

    Attributes:
        limit: What the dense model gives, and the least that is accepted; minus infinity accepts everything.
        keep: The share that may remain.
        most_bytes: The most bytes of the file; None where multiply-accumulates count.
    """

    limit: Limit
    keep: float
    most_bytes: int | None

    def proposals(
        self, allocations: Sequence[str], attempts: int, bits: Sequence[int]
    ) -> Generator[Proposal, CompressAttempt, None]:
        """The share itself, by each allocation; for a file, the share of weights that fits with each number of bits."""
        if self.most_bytes is not None:
            for count in bits:
                yield from self._near(allocations[0], attempts, count)
            return
        for allocation in allocations:
            if allocation != FURTHER:
                yield Proposal(self.keep, allocation)

    def _near(self, allocation: str, attempts: int, bits: int) -> Generator[Proposal, CompressAttempt, None]:
        """The share of weights whose file comes near the limit from below; bytes are taken to grow in a line."""
        assert self.most_bytes is not None
        share, fits, over = min(_MOST, 5.0 * self.keep), 0.0, 1.0
        seen: tuple[float, float] | None = None  # the share and the bytes of the attempt before
        for _ in range(attempts):
            one = yield Proposal(share, allocation, bits)
            if one.bytes is None:  # cut too deep: nothing was written
                fits, share = share, (share * over) ** 0.5
                continue
            if one.bytes <= self.most_bytes:
                fits = share
            else:
                over = share
            near = (1.0 - _WITHIN) * self.most_bytes <= one.bytes <= self.most_bytes
            if near or fits >= _MOST or over <= _LEAST:
                return
            slope = one.bytes / share
            if seen is not None and seen[0] != share:
                slope = (one.bytes - seen[1]) / (share - seen[0])
            seen = share, float(one.bytes)
            share += (_BELOW * self.most_bytes - one.bytes) / slope if slope > 0 else 0.0
            share = min(_MOST, max(_LEAST, share))
            if not fits < share < over:
                share = max(_LEAST, (max(fits, _LEAST) * over) ** 0.5)

    def fits(self, size: int | None) -> bool:
        """Whether the file is small enough."""
        return self.most_bytes is None or (size is not None and size <= self.most_bytes)

    def holds(self, number: float) -> bool:
        """Whether the number is accepted."""
        return self.limit.holds(number)

    def trains(self, one: CompressAttempt) -> bool:
        """Every attempt that is small enough."""
        return self.fits(one.bytes)

    def verdict(self, number: float) -> str:
        """What it costs."""
        if not self.limit.holds(number):
            return self.limit.verdict(number)
        change = number - self.limit.accuracy
        return f"{number:.4f}, {abs(change):.4f} {'less' if change < 0 else 'more'} than the dense model"

    def better(self, one: CompressAttempt, than: CompressAttempt) -> bool:
        """The one of the higher number; of equals, the smaller."""
        first, second = (-math.inf if a.accuracy is None else a.accuracy for a in (one, than))
        return first > second or (first == second and cost(one) < cost(than))

    def best(
        self, done: Sequence[CompressAttempt], found: CompressAttempt | None, advice: str
    ) -> CompressAttempt:
        """The one of the highest number that is small enough."""
        if found is not None:
            return found
        if self.most_bytes is None or any(one.bytes is not None and self.fits(one.bytes) for one in done):
            return best_of(done, cost, self.limit, advice)  # none is accepted
        least = min((one.bytes for one in done if one.bytes is not None), default=None)
        reached = "none could be written" if least is None else f"the smallest took {least:,} bytes"
        raise BudgetNotMetError(
            f"compress: none of {len(done)} attempts came to at most {self.most_bytes:,} bytes ({self.keep:.3g} of the "
            f"dense model's tensors): {reached}. Keep more, make more attempts, or allow fewer bits (bits=, or --bits)"
        )
