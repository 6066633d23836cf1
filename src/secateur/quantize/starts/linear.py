"""Linear: centroids evenly from the smallest weight to the largest, both included (Han et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.quantize.sorted_weights import Floats, SortedWeights
from secateur.quantize.starts import Start

__all__ = ["LinearStart"]


@dataclass(frozen=True)
class LinearStart(Start):
    """Evenly between the smallest and the largest weight.

    >>> data = SortedWeights(np.array([-1.0, 0.0, 0.5, 3.0]))
    >>> LinearStart().centroids(data, 3, np.random.default_rng(0)).tolist()
    [-1.0, 1.0, 3.0]
    """

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """`count` evenly spaced numbers.

        Args:
            data: The weights.
            count: How many centroids.
            random: Not used.
        """
        low, high = float(data.values[0]), float(data.values[-1])
        if count == 1:
            return np.array([low + (high - low) / 2])
        return np.linspace(low, high, count)
