"""The best way to cut a sorted list into k stretches: dynamic programming over the places where a cut may be.

The squared error of a stretch obeys the quadrangle inequality, so the best last cut moves right as the end
moves right: each layer is solved from coarse ends to fine ones, every end searching only between the cuts of
its two neighbours, and all ends of one fineness at once.

>>> from secateur.quantize.sorted_weights import SortedWeights
>>> data = SortedWeights(np.array([0.0, 1.0, 9.0, 11.0, 30.0]))
>>> best_cuts(data, np.arange(6), 3).tolist()
[0, 2, 4, 5]
"""

from __future__ import annotations

import numpy as np

from secateur.quantize.sorted_weights import Floats, Ints, SortedWeights

__all__ = ["best_cuts"]

_DENSE = 192


def best_cuts(data: SortedWeights, places: Ints, pieces: int) -> Ints:
    """The edges of the `pieces` stretches of least squared error among those that begin and end at `places`.

    `places` ascend strictly, from 0 to `data.count`. With every distinct value's first position among them
    the answer is the best there is.
    """
    last = places.size - 1
    pieces = min(pieces, last)
    sums, squares = data.sums(places)
    counts = places.astype(np.float64)
    # One stretch from the start: its squared error at every end.
    error = squares - sums * sums / np.maximum(counts, 1.0)
    error[0] = 0.0
    choice = np.zeros((pieces + 1, last + 1), dtype=np.int32)
    layer = _Dense(counts, sums, squares) if last <= _DENSE else _Banded(counts, sums, squares)
    for piece in range(2, pieces + 1):
        error = layer(error, piece, choice[piece])
    found = [last]
    for piece in range(pieces, 1, -1):
        found.append(int(choice[piece, found[-1]]))
    found.append(0)
    return places[np.array(found[::-1])]


class _Dense:
    """One layer at a time over a full table of stretches: for few places."""

    def __init__(self, counts: Floats, sums: Floats, squares: Floats):
        width = counts[None, :] - counts[:, None]
        total = sums[None, :] - sums[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = (squares[None, :] - squares[:, None]) - total * total / width
        self.cost = np.where(width > 0, np.maximum(cost, 0.0), np.inf)

    def __call__(self, before: Floats, piece: int, choice: np.ndarray) -> Floats:
        start = piece - 1
        table = before[start:-1, None] + self.cost[start:-1, piece:]
        best = table.argmin(axis=0)
        after = np.full_like(before, np.inf)
        after[piece:] = table[best, np.arange(best.size)]
        choice[piece:] = best + start
        return after


class _Banded:
    """One layer at a time, coarse ends first; work grows as places times the logarithm of places."""

    def __init__(self, counts: Floats, sums: Floats, squares: Floats):
        self.counts, self.sums, self.squares = counts, sums, squares

    def __call__(self, before: Floats, piece: int, choice: np.ndarray) -> Floats:
        base, last = piece - 1, before.size - 1
        after = np.full_like(before, np.inf)
        stride = 1 << max(0, (last - base).bit_length() - 1)
        while stride:
            ends = np.arange(base + stride, last + 1, 2 * stride)
            left, right = ends - stride, ends + stride
            low = np.where(left > base, choice[left], base).astype(np.int64)
            high = np.where(right <= last, choice[np.minimum(right, last)], last).astype(np.int64)
            high = np.minimum(high, ends - 1)
            self._solve(before, after, choice, ends, low, np.maximum(low, high))
            stride //= 2
        return after

    def _solve(
        self, before: Floats, after: Floats, choice: np.ndarray, ends: Ints, low: Ints, high: Ints
    ) -> None:
        """The best last cut between `low` and `high` for every end, all in one sweep; the first of equals."""
        lengths = high - low + 1
        starts = np.cumsum(lengths) - lengths
        cut = np.arange(int(lengths.sum())) - np.repeat(starts - low, lengths)
        end = np.repeat(ends, lengths)
        total = self.sums[end] - self.sums[cut]
        cost = (self.squares[end] - self.squares[cut]) - total * total / (self.counts[end] - self.counts[cut])
        cost = before[cut] + np.maximum(cost, 0.0)
        least = np.minimum.reduceat(cost, starts)
        hits = np.flatnonzero(cost == np.repeat(least, lengths))
        choice[ends] = cut[hits[np.searchsorted(hits, starts)]]
        after[ends] = least
