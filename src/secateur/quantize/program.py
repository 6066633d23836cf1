"""The best division of a sorted list into k clusters: dynamic programming over the places where a cut may be.

The squared error of a cluster obeys the quadrangle inequality, so the best last cut moves right as the end moves right.
Each layer is therefore solved from coarse ends to fine ones: every end searches only between the cuts of its two
neighbours, and all ends of one fineness are searched at once.

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


def best_cuts(data: SortedWeights, places: Ints, clusters: int) -> Ints:
    """Find the clusters of least squared error that begin and end at given places.

    Args:
        data: The weights.
        places: Where a cut may be: strictly ascending, from 0 to `data.count`. With the first position of every
            distinct value among them the result is optimal.
        clusters: How many clusters.

    Returns:
        The edges of the clusters; fewer where there are fewer places.
    """
    last = places.size - 1
    clusters = min(clusters, last)
    sums, squares = data.sums(places)
    counts = places.astype(np.float64)
    # One cluster from the start: its squared error at every end.
    error = squares - sums * sums / np.maximum(counts, 1.0)
    error[0] = 0.0
    choice = np.zeros((clusters + 1, last + 1), dtype=np.int32)
    layer = _Dense(counts, sums, squares) if last <= _DENSE else _Banded(counts, sums, squares)
    for cluster in range(2, clusters + 1):
        error = layer(error, cluster, choice[cluster])
    found = [last]
    for cluster in range(clusters, 1, -1):
        found.append(int(choice[cluster, found[-1]]))
    found.append(0)
    return places[np.array(found[::-1])]


class _Dense:
    """Solves one layer from a full table of clusters: for few places."""

    def __init__(self, counts: Floats, sums: Floats, squares: Floats):
        width = counts[None, :] - counts[:, None]
        total = sums[None, :] - sums[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = (squares[None, :] - squares[:, None]) - total * total / width
        self.cost = np.where(width > 0, np.maximum(cost, 0.0), np.inf)

    def __call__(self, before: Floats, cluster: int, choice: np.ndarray) -> Floats:
        start = cluster - 1
        table = before[start:-1, None] + self.cost[start:-1, cluster:]
        best = table.argmin(axis=0)
        after = np.full_like(before, np.inf)
        after[cluster:] = table[best, np.arange(best.size)]
        choice[cluster:] = best + start
        return after


class _Banded:
    """Solves one layer, coarse ends first: the work is the number of places times its logarithm."""

    def __init__(self, counts: Floats, sums: Floats, squares: Floats):
        self.counts, self.sums, self.squares = counts, sums, squares

    def __call__(self, before: Floats, cluster: int, choice: np.ndarray) -> Floats:
        base, last = cluster - 1, before.size - 1
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
        """Find the best last cut between `low` and `high` for every end, all at once; the first of equals."""
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
