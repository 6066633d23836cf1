"""Weights sorted once, with prefix sums: every step of one-dimensional K-means is then a few binary searches.

Clusters on a line are intervals of the sorted numbers, so a cluster's count, sum and squared error follow from prefix
sums at its two ends. The sums are stored for blocks of 64, in float64 and around the mean, and completed within a block
on demand, so that they take little memory.

>>> data = SortedWeights(np.array([3.0, 1.0, 2.0, 10.0]))
>>> data.values.tolist(), data.distinct
([1.0, 2.0, 3.0, 10.0], 4)
>>> edges = data.edges(np.array([2.0, 10.0]))
>>> edges.tolist(), data.means(edges).tolist(), data.squared_error(edges)
([0, 3, 4], [2.0, 10.0], 2.0)
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "Floats", "Ints", "Numbers", "SortedWeights", "in_range", "middles", "not_above"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.floating]

_BITS = 6
BLOCK = 1 << _BITS
_CHUNK = BLOCK * 2**14


def not_above(cuts: Floats, dtype: npt.DTypeLike) -> Numbers:
    """The largest numbers of a dtype that are not above the cuts: `x <= cut` is then the same in that dtype.

    Args:
        cuts: The cuts.
        dtype: float32 or float64.
    """
    near: Numbers = cuts.astype(dtype)
    if near.dtype == cuts.dtype:
        return near
    return np.where(near > cuts, np.nextafter(near, np.array(-np.inf, dtype=dtype)), near)


def in_range(numbers: Numbers) -> tuple[Numbers, int]:
    """Scale numbers by a power of two so that no square overflows or vanishes.

    Only float64 needs it: any square of a float32 fits float64.

    Args:
        numbers: The numbers; not empty.

    Returns:
        (numbers times 2**exponent, exponent).

    >>> in_range(np.array([2.0**600, 0.0]))[1]
    -601
    """
    top = float(np.abs(numbers).max())
    if numbers.dtype != np.float64 or top == 0 or 1e-60 < top < 1e60:
        return numbers, 0
    exponent = -int(np.frexp(top)[1])
    return np.ldexp(numbers, exponent), exponent


def middles(centroids: Floats) -> Floats:
    """Half way between neighbours; a weight exactly there belongs to the lower one.

    Args:
        centroids: In ascending order along the last axis.

    >>> middles(np.array([0.0, 1.0, 4.0])).tolist()
    [0.5, 2.5]
    """
    # Half of the difference, added: the sum of two large centroids could overflow.
    return centroids[..., :-1] + (centroids[..., 1:] - centroids[..., :-1]) / 2


class SortedWeights:
    """Finite float32 or float64 numbers in ascending order, with sums over any stretch of them."""

    def __init__(self, weights: Numbers):
        self.values = np.sort(weights, axis=None)
        self.count = int(self.values.size)
        self.shift = float(self.values.mean(dtype=np.float64)) if self.count else 0.0
        blocks = self.count // BLOCK
        first = np.zeros(blocks + 1)
        second = np.zeros(blocks + 1)
        for start in range(0, blocks * BLOCK, _CHUNK):
            stop = min(start + _CHUNK, blocks * BLOCK)
            centred = self.values[start:stop].astype(np.float64) - self.shift
            rows = centred.reshape(-1, BLOCK)
            here = slice(start // BLOCK + 1, stop // BLOCK + 1)
            first[here] = rows.sum(axis=1)
            second[here] = np.einsum("ij,ij->i", rows, rows)
        self._first = np.cumsum(first)
        self._second = np.cumsum(second)
        self._columns = np.arange(BLOCK)
        self._distinct: int | None = None

    @property
    def distinct(self) -> int:
        """The number of different numbers."""
        if self._distinct is None:
            self._distinct = (
                1 + int(np.count_nonzero(self.values[1:] != self.values[:-1])) if self.count else 0
            )
        return self._distinct

    def runs(self) -> Ints:
        """The first position of each distinct number."""
        changes = np.flatnonzero(self.values[1:] != self.values[:-1]) + 1
        return np.concatenate([np.zeros(1, dtype=np.int64), changes])

    def sums(self, positions: Ints) -> tuple[Floats, Floats]:
        """Sum and sum of squares, around `shift`, of the numbers before each position.

        Args:
            positions: From 0 to `count`.
        """
        block, centred = self._rests(positions)
        return (
            self._first.take(block) + centred.sum(axis=1),
            self._second.take(block) + np.einsum("ij,ij->i", centred, centred),
        )

    def _rests(self, positions: Ints) -> tuple[Ints, Floats]:
        """The block each position lies in, and the numbers of the block before it, around `shift`; then zeros."""
        block = positions >> _BITS
        rest = positions & (BLOCK - 1)
        picked = self.values.take((positions - rest)[:, None] + self._columns, mode="clip").astype(np.float64)
        picked -= self.shift
        return block, np.where(self._columns < rest[:, None], picked, 0.0)

    def block_sums(self, blocks: Ints) -> tuple[Floats, Floats]:
        """The same as `sums(blocks * BLOCK)`, without reading a weight.

        Args:
            blocks: The numbers of the blocks.
        """
        return self._first[blocks], self._second[blocks]

    def positions(self, cuts: Floats) -> Ints:
        """The count of numbers at or below each cut.

        Args:
            cuts: The cuts.
        """
        found = self.values.searchsorted(not_above(cuts, self.values.dtype), side="right")
        return found.astype(np.int64, copy=False)

    def edges(self, centroids: Floats) -> Ints:
        """The edges of the clusters of centroids: cluster i is `values[edges[i]:edges[i + 1]]`.

        Args:
            centroids: In ascending order.
        """
        return self.whole(self.positions(middles(centroids)))

    def whole(self, inner: Ints) -> Ints:
        """Inner edges with 0 before and the count after them.

        Args:
            inner: The edges between clusters.
        """
        edges = np.empty(inner.size + 2, dtype=np.int64)
        edges[0], edges[1:-1], edges[-1] = 0, inner, self.count
        return edges

    def means(self, edges: Ints) -> Floats:
        """The mean of each cluster, from the prefix sums.

        Args:
            edges: The edges of the clusters, none of them empty.
        """
        block, centred = self._rests(edges)
        first = self._first.take(block) + centred.sum(axis=1)
        return self.shift + (first[1:] - first[:-1]) / (edges[1:] - edges[:-1])

    def careful_means(self, edges: Ints) -> Floats:
        """The mean of each cluster, summed weight by weight around its first number, so that nothing cancels.

        Args:
            edges: The edges of the clusters, none of them empty.
        """
        means = np.empty(edges.size - 1)
        for i, (start, stop) in enumerate(pairwise(edges)):
            part = self.values[start:stop]
            base = float(part[0])
            means[i] = base + (part.astype(np.float64) - base).mean()
        return means

    def squared_error(self, edges: Ints, centroids: Floats | None = None) -> float:
        """The squared error of clusters, from the prefix sums.

        Args:
            edges: The edges of the clusters.
            centroids: What the error is taken around; the means unless given.
        """
        counts = np.diff(edges)
        first, second = (np.diff(part) for part in self.sums(edges))
        if centroids is None:
            safe = np.maximum(counts, 1)
            return float(np.maximum(second - first * first / safe, 0.0).sum())
        away = centroids - self.shift
        return float(np.maximum(second - 2 * away * first + away * away * counts, 0.0).sum())

    def careful_squared_error(self, edges: Ints, centroids: Floats) -> float:
        """The squared error around centroids, weight by weight: exact where prefix sums would cancel.

        Args:
            edges: The edges of the clusters.
            centroids: One for each cluster.
        """
        total = 0.0
        for start, stop, centroid in zip(edges[:-1], edges[1:], centroids):
            for here in range(start, stop, _CHUNK):
                away = self.values[here : min(here + _CHUNK, stop)].astype(np.float64) - centroid
                total += float(away @ away)
        return total

    @property
    def energy(self) -> float:
        """The sum of squares around the mean: the squared error of a single centroid."""
        return float(self.sums(np.array([self.count]))[1][0])
