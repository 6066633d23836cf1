"""Density: the same number of weights for every centroid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.quantize.sorted_weights import Floats, SortedWeights
from secateur.quantize.starts import Start

__all__ = ["DensityStart"]


@dataclass(frozen=True)
class DensityStart(Start):
    """The middle weight of each of `count` equally large parts of the sorted weights.

    >>> data = SortedWeights(np.array([0.0, 0.1, 0.2, 0.3, 8.0, 9.0]))
    >>> DensityStart().centroids(data, 2, np.random.default_rng(0)).tolist()
    [0.1, 8.0]
    """

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """One weight from each of `count` equally large parts.

        Args:
            data: The weights.
            count: How many centroids.
            random: Not used.
        """
        middle = (2 * np.arange(count) + 1) * data.count // (2 * count)
        return data.values[np.minimum(middle, data.count - 1)].astype(np.float64)
