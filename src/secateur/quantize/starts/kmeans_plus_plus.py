"""k-means++: each next centroid on a weight drawn in proportion to its squared distance from those before.

The draw is exact without reading all the weights: the squared distances of a cluster of sorted weights from its
centroid follow from prefix sums, so a cluster is drawn first and the weight inside it found by bisection. As is usual,
a few weights are drawn each time and the one that lowers the total most is taken (Arthur and Vassilvitskii, 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from secateur.errors import OptionError
from secateur.quantize.sorted_weights import BLOCK, Floats, Ints, SortedWeights, middles
from secateur.quantize.starts import Start

__all__ = ["KmeansPlusPlusStart"]


@dataclass(frozen=True)
class KmeansPlusPlusStart(Start):
    """Spread by squared distance.

    Attributes:
        trials: Weights drawn for each centroid, of which the best is taken; None means 2 + ln k.

    >>> data = SortedWeights(np.array([0.0, 0.0, 0.0, 5.0]))
    >>> sorted(KmeansPlusPlusStart().centroids(data, 2, np.random.default_rng(0)).tolist())
    [0.0, 5.0]
    """

    trials: int | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise OptionError(f"trials of k-means++: expected at least 1, got {self.trials}")

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """`count` weights, fewer where every weight already has a centroid on it.

        Args:
            data: The weights.
            count: How many centroids.
            random: The generator drawn from.
        """
        trials = self.trials or 2 + int(math.log(count))
        chosen = np.array([float(data.values[random.integers(data.count)])])
        while chosen.size < count:
            drawn = self._draw(data, chosen, random, trials)
            if drawn is None:
                break
            tried = np.sort(np.column_stack([np.tile(chosen, (drawn.size, 1)), drawn]), axis=1)
            chosen = tried[int(np.argmin(_squared_errors(data, tried)))]
        return chosen

    def _draw(
        self, data: SortedWeights, chosen: Floats, random: np.random.Generator, trials: int
    ) -> Floats | None:
        """`trials` weights, each drawn in proportion to its squared distance from the nearest centroid."""
        edges = data.edges(chosen)
        first, second = data.sums(edges)
        away = chosen - data.shift

        def mass(cluster: Ints, upto: Ints, sums: Floats, squares: Floats) -> Floats:
            """The sum of squared distances of a cluster's weights before `upto`, from the prefix sums there."""
            begin, centre = edges[cluster], away[cluster]
            return (
                (squares - second[cluster])
                - 2 * centre * (sums - first[cluster])
                + centre**2 * (upto - begin)
            )

        every = np.arange(chosen.size)
        weight = np.maximum(mass(every, edges[1:], first[1:], second[1:]), 0.0)
        total = weight.sum()
        # After cancellation only noise remains once every weight has a centroid on it.
        if not total > 1e-14 * (data.energy + (away * away * np.diff(edges)).sum()):
            return None
        ends = np.cumsum(weight)
        target = random.random(trials) * ends[-1]
        cluster = np.minimum(np.searchsorted(ends, target, side="right"), chosen.size - 1)
        target = target - (ends - weight)[cluster]
        low, high = edges[cluster], edges[cluster + 1] - 1
        # The weight drawn is the first whose running total exceeds the target: its block first.
        block, last = low // BLOCK, high // BLOCK
        while np.any(block < last):
            middle = (block + last) // 2
            beyond = np.minimum(middle + 1, last)
            above = mass(cluster, beyond * BLOCK, *data.block_sums(beyond)) > target
            block, last = np.where(above, block, beyond), np.where(above, middle, last)
        low, high = np.maximum(low, block * BLOCK), np.minimum(high, block * BLOCK + BLOCK - 1)
        within = np.minimum(low[:, None] + np.arange(BLOCK), high[:, None])
        distance = data.values[within] - chosen[cluster][:, None]
        totals = np.cumsum(distance * distance, axis=1) + mass(cluster, low, *data.sums(low))[:, None]
        steps = np.minimum((totals <= target[:, None]).sum(axis=1), high - low)
        return data.values[low + steps].astype(np.float64)


def _squared_errors(data: SortedWeights, tried: Floats) -> Floats:
    """The squared error of each row of ascending centroids, all in one pass."""
    edges = np.empty((tried.shape[0], tried.shape[1] + 1), dtype=np.int64)
    edges[:, 0], edges[:, 1:-1], edges[:, -1] = 0, data.positions(middles(tried)), data.count
    first, second = (np.diff(part.reshape(edges.shape)) for part in data.sums(edges.reshape(-1)))
    away = tried - data.shift
    return np.asarray((second - 2 * away * first + away * away * np.diff(edges)).sum(axis=1))
