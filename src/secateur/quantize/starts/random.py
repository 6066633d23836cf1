"""Random: centroids on weights drawn at random, each weight equally likely, none drawn twice (Forgy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.quantize.sorted_weights import Floats, SortedWeights
from secateur.quantize.starts import Start

__all__ = ["RandomStart"]


@dataclass(frozen=True)
class RandomStart(Start):
    """`count` of the weights, drawn without replacement.

    >>> RandomStart().centroids(SortedWeights(np.array([1.0, 2.0])), 2, np.random.default_rng(0)).tolist()
    [1.0, 2.0]
    """

    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """The drawn weights, in ascending order.

        Args:
            data: The weights.
            count: How many centroids.
            random: The generator drawn from.
        """
        drawn = random.choice(data.count, size=min(count, data.count), replace=False)
        return data.values[np.sort(drawn)].astype(np.float64)
