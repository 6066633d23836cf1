"""Uniform: whole multiples of a step, each weight rounded where error and code length together are least.

>>> import torch
>>> weights = torch.tensor([-0.9, 0.2, 0.3, 1.1])
>>> palette = Uniform(step=0.5).palette("fc", weights, zeros=0, seed=0)
>>> palette.values.tolist(), palette.assign(weights).tolist()
([-1.0, -0.5, 0.0, 0.5, 1.0], [0, 2, 3, 4])

With `coded_bits` the step is found by what the levels take after coding: the entropy of how often each occurs. Steps
finer than one would give as many values as bits tell: rare levels cost little, as they are rare.

>>> even = torch.linspace(-3.49, 3.49, 350)
>>> palette = Uniform(coded_bits=2.67).palette("fc", even, zeros=0, seed=0)  # 5 levels of 5/28, 2 of 3/56: 2.67 bits
>>> len(palette.values), round(palette.step, 2)
(7, 1.25)

With `rate` bits have a cost: weights move from rare levels to frequent ones, above all to zero.

>>> palette = Uniform(step=0.5, rate=0.1).palette("fc", weights, zeros=1000, seed=0)
>>> palette.values[palette.assign(weights)].tolist()
[-1.0, 0.0, 0.0, 1.0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from secateur.errors import OptionError
from secateur.quantize import Palette, Quantizer, to_numpy
from secateur.quantize.sorted_weights import Floats, Ints, SortedWeights, in_range

__all__ = ["Uniform"]

_MOST = 2**16


@dataclass(frozen=True)
class Uniform(Quantizer):
    """Multiples of `step`; 0.0 is always one of them, and masked weights take it.

    The step is rounded to float32, so that four bytes hold it. A tie goes to the lower level.

    Attributes:
        step: The distance between levels; the one of least squared error for `bits` unless given.
        bits: Limits the levels to -(2**(bits - 1) - 1) ... 2**(bits - 1) - 1. None of step, bits and coded_bits means 5
            bits.
        coded_bits: Bits of a weight after coding, by the frequencies of the levels: the step is the largest with which
            plain rounding has them. Masked weights do not count. With `data`, where weights move for each other, the
            levels take a little more or less.
        rate: The cost of a bit, in squared steps: each weight goes to the level that minimises
            (weight / step - level)**2 + rate * bits(level). The bits are those of an adaptive code that has seen the
            whole tensor, masked zeros included; levels and bits are found in turn until neither changes.
        dead_zone: The magnitude, in steps, up to which a weight becomes zero; 0.5 is plain rounding.
        rounds: The most rounds of finding levels and bits.
    """

    step: float | None = None
    bits: int | None = None
    coded_bits: float | None = None
    rate: float = 0.0
    dead_zone: float = 0.5
    rounds: int = 30

    holds_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        checks = (
            (
                self.step is None or (math.isfinite(self.step) and self.step > 0),
                "step",
                "a finite number above 0",
            ),
            (self.bits is None or (whole and 2 <= self.bits <= 16), "bits", "a whole number from 2 to 16"),
            (
                self.coded_bits is None or (self.step is None and 0 < self.coded_bits <= 16),
                "coded_bits",
                "a number above 0, up to 16, and no step besides",
            ),
            (math.isfinite(self.rate) and self.rate >= 0, "rate", "a finite number, 0 or more"),
            (math.isfinite(self.dead_zone) and self.dead_zone >= 0.5, "dead_zone", "0.5 steps or more"),
            (self.rounds >= 1, "rounds", "at least 1"),
        )
        for fine, option, expected in checks:
            if not fine:
                got = getattr(self, option)
                raise OptionError(f"{option} of uniform sharing: expected {expected}, got {got!r}")

    def palette(self, name: str, weights: torch.Tensor, zeros: int, seed: int) -> Palette:
        """Take the levels from the lowest used one to the highest, zero among them.

        Args:
            name: The tensor or group, for errors.
            weights: Flat, finite and not empty.
            zeros: How many masked weights there are besides.
            seed: Not used.
        """
        numbers, exponent = in_range(to_numpy(weights))
        data = SortedWeights(numbers)
        bits = 5 if self.bits is None and self.step is None and self.coded_bits is None else self.bits
        limit = 2 ** (bits - 1) - 1 if bits is not None else None
        step = self._step(name, data, limit, weights.dtype, exponent)
        levels = self._levels(name, data, step, limit, weights.dtype, exponent)
        cuts = self._cuts(data, levels, step, zeros)
        counts = np.diff(data.whole(data.positions(cuts)))
        used = np.flatnonzero((counts > 0) | (levels == 0))
        first, last = int(used[0]), int(used[-1])
        step, cuts = math.ldexp(step, -exponent), np.ldexp(cuts[first:last], -exponent)
        values = torch.from_numpy(_values(levels[first : last + 1], step)).to(weights.dtype).double().numpy()
        return Palette(values, cuts, step, int(levels[first]))

    def _step(
        self, name: str, data: SortedWeights, limit: int | None, dtype: torch.dtype, exponent: int
    ) -> float:
        """The step in the scale of `data`: as given, by coded bits, or of least squared error."""
        if self.step is not None:
            step = math.ldexp(self.step, exponent)
        elif self.coded_bits is not None:
            step = _step_of_entropy(name, data, self.coded_bits)
        else:
            assert limit is not None
            step = _least_error_step(data, limit)
        if dtype != torch.float64:
            step = float(np.float32(step)) or float(np.finfo(np.float32).tiny)
        return step

    def _levels(
        self,
        name: str,
        data: SortedWeights,
        step: float,
        limit: int | None,
        dtype: torch.dtype,
        exponent: int,
    ) -> Ints:
        """The levels that the weights reach, zero among them."""
        low, high = (round(float(end) / step) for end in (data.values[0], data.values[-1]))
        if limit is not None:
            low, high = max(low, -limit), min(high, limit)
        # In half precision the level beyond the largest weight may be infinite.
        furthest = int(min(math.ldexp(float(torch.finfo(dtype).max), min(exponent, 0)) / step, 2.0**62))
        low, high = max(min(low, 0), -furthest), min(max(high, 0), furthest)
        if high - low >= _MOST:
            raise OptionError(
                f"{name}: a step of {math.ldexp(step, -exponent):g} needs {high - low + 1:,} levels, "
                f"expected at most {_MOST:,}; ask for a larger step, or give bits= as well"
            )
        return np.arange(low, high + 1, dtype=np.int64)

    def _cuts(self, data: SortedWeights, levels: Ints, step: float, zeros: int) -> Floats:
        """The cuts between levels."""
        rounding = self._outside_dead_zone(_values(levels, step, 0.5)[:-1], levels, step)
        if self.rate == 0 or levels.size == 1:
            return rounding
        best, least, cuts = rounding, np.inf, rounding
        for _ in range(self.rounds):
            edges = data.whole(data.positions(cuts))
            bits = _bits(np.diff(edges) + zeros * (levels == 0))
            error = data.squared_error(edges, _values(levels, step)) / step**2
            price = error + self.rate * float((np.diff(edges) + zeros * (levels == 0)) @ bits)
            if not price < least:
                break
            best, least = cuts, price
            cuts = self._outside_dead_zone(_envelope(levels, self.rate * bits) * step, levels, step)
        return best

    def _outside_dead_zone(self, cuts: Floats, levels: Ints, step: float) -> Floats:
        """Move cuts that lie inside the dead zone out to its ends."""
        reach = self.dead_zone * step
        return np.where(levels[:-1] >= 0, np.maximum(cuts, reach), np.minimum(cuts, -reach))


def _values(levels: Ints, step: float, above: float = 0.0) -> Floats:
    """The numbers `above` the levels, in steps."""
    return np.asarray((levels + above) * step, dtype=np.float64)


def _bits(counts: Ints) -> Floats:
    """Bits of each level in an adaptive code that has seen these counts and half an occurrence of each."""
    seen = counts + 0.5
    return np.log2(seen.sum() / seen)


def _envelope(levels: Ints, prices: Floats) -> Floats:
    """The cuts, in steps, between levels q of least (w - q)**2 + price: a lower envelope of lines.

    A level that is best for no weight has two equal cuts.

    >>> _envelope(np.array([-1, 0, 1]), np.array([1.0, 0.0, 1.0])).tolist()
    [-1.0, 1.0]
    """
    heights = levels.astype(np.float64) ** 2 + prices
    hull: list[int] = []
    begins: list[float] = []
    for i in range(levels.size):
        begin = -math.inf
        while hull:
            last = hull[-1]
            begin = float(heights[i] - heights[last]) / (2 * float(levels[i] - levels[last]))
            if begin > begins[-1]:
                break
            hull.pop()
            begins.pop()
            begin = -math.inf
        hull.append(i)
        begins.append(begin)
    cuts = np.empty(levels.size - 1)
    cuts[: hull[0]] = -math.inf
    for left, right, begin in zip(hull, hull[1:], begins[1:]):
        cuts[left:right] = begin
    cuts[hull[-1] :] = math.inf
    return cuts


def _step_of_entropy(name: str, data: SortedWeights, bits: float) -> float:
    """The largest step with which plain rounding has an entropy of at least `bits` a weight, to a thousandth of it."""
    top = max(abs(float(data.values[0])), abs(float(data.values[-1])))
    if top == 0:
        return 1.0

    def enough(step: float) -> bool:
        reach = math.ceil(top / step)
        counts = np.diff(data.whole(data.positions(_values(np.arange(-reach, reach + 1), step, 0.5)[:-1])))
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log2(share)).sum()) >= bits

    high = 2 * top  # everything is rounded to zero
    low = high / 2
    while not enough(low):
        low, high = low / 2, low
        if 2 * top / low > _MOST:
            raise OptionError(
                f"{name}: expected weights that take coded_bits={bits:g} each, got fewer distinct ones, which no step "
                "tells apart; ask for fewer coded_bits, or share it with method='exact'"
            )
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def _least_error_step(data: SortedWeights, limit: int) -> float:
    """The step of least squared error with levels up to `limit`, by a grid search refined twice."""
    top = max(abs(float(data.values[0])), abs(float(data.values[-1])))
    if top == 0:
        return 1.0
    levels = np.arange(-limit, limit + 1)

    def error(step: float) -> float:
        edges = data.whole(data.positions(_values(levels, step, 0.5)[:-1]))
        return data.squared_error(edges, _values(levels, step))

    low, high = top / limit / 64, top / limit
    for _ in range(3):
        steps = np.geomspace(low, high, 33)
        best = int(np.argmin([error(float(step)) for step in steps]))
        low, high = float(steps[max(best - 1, 0)]), float(steps[min(best + 1, 32)])
    return float(steps[best])
