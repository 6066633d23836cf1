"""k-means++: each next centroid on a weight drawn in proportion to its squared distance from those before.

The draw is exact and never looks at all the weights: the squared distances of a stretch of sorted weights
from one centroid follow from prefix sums, so a stretch is drawn first and the weight inside it found by
bisection. As is usual, a few weights are drawn each time and the one that lowers the total most is taken
(Arthur and Vassilvitskii, 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from secateur.errors import OptionError
from secateur.quantize._sorted import Floats, SortedWeights
from secateur.quantize.starts import Base

__all__ = ["KmeansPlusPlus"]


@dataclass(frozen=True)
class KmeansPlusPlus(Base):
    """Spread by squared distance. `trials` draws for each centroid; None means 2 + ln k.

    >>> data = SortedWeights(np.array([0.0, 0.0, 0.0, 5.0]))
    >>> sorted(KmeansPlusPlus().centroids(data, 2, np.random.default_rng(0)).tolist())
    [0.0, 5.0]
    """

    trials: int | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise OptionError(f"trials of k-means++: expected at least 1, got {self.trials}")

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """`count` weights, fewer where every weight already has a centroid on it."""
        trials = self.trials or 2 + int(math.log(count))
        chosen = np.array([float(data.values[random.integers(data.count)])])
        while chosen.size < count:
            drawn = self._draw(data, chosen, random, trials)
            if drawn is None:
                break
            tried = [np.sort(np.append(chosen, weight)) for weight in drawn]
            left = [data.squared_error(data.edges(centroids), centroids) for centroids in tried]
            chosen = tried[int(np.argmin(left))]
        return chosen

    def _draw(
        self, data: SortedWeights, chosen: Floats, random: np.random.Generator, trials: int
    ) -> Floats | None:
        """`trials` weights, each drawn in proportion to its squared distance from the nearest centroid."""
        edges = data.edges(chosen)
        first, second = data.sums(edges)
        away = chosen - data.shift

        def mass(stretch: np.ndarray, upto: np.ndarray) -> Floats:
            """The summed squared distance of the stretch's weights before position `upto`."""
            sums, squares = data.sums(upto)
            begin, centre = edges[stretch], away[stretch]
            return (
                (squares - second[stretch])
                - 2 * centre * (sums - first[stretch])
                + centre**2 * (upto - begin)
            )

        every = np.arange(chosen.size)
        weight = np.maximum(mass(every, edges[1:]), 0.0)
        total = weight.sum()
        # What is left after cancellation is noise once every weight has a centroid on it.
        if not total > 1e-14 * (data.energy + (away * away * np.diff(edges)).sum()):
            return None
        ends = np.cumsum(weight)
        target = random.random(trials) * ends[-1]
        stretch = np.minimum(np.searchsorted(ends, target, side="right"), chosen.size - 1)
        target = target - (ends - weight)[stretch]
        low, high = edges[stretch], edges[stretch + 1] - 1
        while np.any(low < high):
            middle = (low + high) // 2
            above = mass(stretch, middle + 1) > target
            high = np.where(above, middle, high)
            low = np.where(above, low, np.minimum(middle + 1, high))
        return data.values[low].astype(np.float64)
