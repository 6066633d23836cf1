"""Optimal: the least squared error, and never more than that of any other start.

Up to 2,048 distinct weights the best clusters are found exactly. For more, cuts may be at a few thousand places: the
edges of equally filled bins, of equally wide bins, and each of the outermost weights. The best clusters among those are
found exactly and then improved by the iteration. Every other start is tried as well, with the same seed, and the best
result is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.errors import OptionError
from secateur.quantize.program import best_cuts
from secateur.quantize.sorted_weights import Floats, Ints, SortedWeights
from secateur.quantize.starts import Start, registry

__all__ = ["OptimalStart"]


@dataclass(frozen=True)
class OptimalStart(Start):
    """Dynamic programming over `places` possible cuts, and every other start.

    Attributes:
        places: The number of distinct weights up to which the clusters are exact, and about the number of places for
            a cut beyond.

    >>> data = SortedWeights(np.array([0.0, 1.0, 9.0, 11.0, 30.0]))
    >>> OptimalStart().centroids(data, 3, np.random.default_rng(0)).tolist()
    [0.5, 10.0, 30.0]
    """

    places: int = 2048

    def __post_init__(self) -> None:
        if self.places < 16:
            raise OptionError(f"places of the optimal start: expected at least 16, got {self.places}")

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """The means of the best clusters.

        Args:
            data: The weights.
            count: How many centroids.
            random: Not used.
        """
        return data.means(best_cuts(data, self._places(data, count), count))

    def candidates(self, data: SortedWeights, count: int, seed: int) -> list[Floats]:
        """The best clusters first, then the candidates of every other start of the folder.

        Args:
            data: The weights.
            count: How many centroids.
            seed: Of the numbers that other starts draw.
        """
        found = super().candidates(data, count, seed)
        for word in registry.names():
            other = registry.get(word)
            if not issubclass(other, OptimalStart):
                found += other().candidates(data, count, seed)
        return found

    def _places(self, data: SortedWeights, count: int) -> Ints:
        """Where a cut may be: always between two different weights."""
        if data.distinct <= self.places:
            return np.append(data.runs(), data.count)
        half = max(self.places, 4 * count) // 2
        outermost = min(4 * count, half // 4, data.count)
        filled = np.linspace(0, data.count, half, endpoint=False).astype(np.int64)
        grid = np.linspace(float(data.values[0]), float(data.values[-1]), half)
        places = np.concatenate(
            [filled, data.positions(grid[:-1]), np.arange(outermost), data.count - 1 - np.arange(outermost)]
        )
        # A cut inside a run of equal weights would separate them: move it to where the run begins.
        marks = data.values[np.minimum(places, data.count - 1)]
        return np.append(np.unique(np.searchsorted(data.values, marks, side="left")), data.count)
