"""Initial centroids of K-means. One file for each start; its name is the word used in recipes.

In go weights that are already sorted; out come the first centroids. `kmeans++` is also called `k-means++`.

>>> from secateur.quantize import starts
>>> starts.registry.names()
['density', 'kmeans_plus_plus', 'linear', 'optimal', 'random']
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from secateur.quantize.sorted_weights import Floats, SortedWeights
from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.quantize.starts.density import DensityStart as DensityStart
    from secateur.quantize.starts.kmeans_plus_plus import KmeansPlusPlusStart as KmeansPlusPlusStart
    from secateur.quantize.starts.linear import LinearStart as LinearStart
    from secateur.quantize.starts.optimal import OptimalStart as OptimalStart
    from secateur.quantize.starts.random import RandomStart as RandomStart

__all__ = ["Start", "StartLike", "registry"]


class Start(ABC):
    """A start of K-means: a frozen value that puts centroids on sorted weights."""

    @abstractmethod
    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """Choose the first centroids, in any order; the iteration separates equal ones.

        Args:
            data: The weights.
            count: How many.
            random: The generator of a start that draws at random.
        """

    def candidates(self, data: SortedWeights, count: int, seed: int) -> list[Floats]:
        """The sets of first centroids to try, usually one; the best after the iteration wins.

        Args:
            data: The weights.
            count: How many centroids.
            seed: Of the numbers that are drawn.
        """
        # Each start draws from a stream of its own: it finds the same alone as together with others.
        word = zlib.crc32(type(self).__name__.removesuffix("Start").encode())
        return [self.centroids(data, count, np.random.default_rng([seed, word]))]


StartLike: TypeAlias = str | Start
"""A start of K-means: its word, or a value such as `sc.quantize.starts.RandomStart()`."""

registry = Registry(
    __name__,
    __path__,
    "start of K-means",
    base="secateur.quantize.starts:Start",
    suffix="Start",
    aliases={"kmeans++": "kmeans_plus_plus", "k-means++": "kmeans_plus_plus"},
)


def __getattr__(name: str) -> type[Start]:
    found: type[Start] = registry.attribute(name)
    return found
