"""Where does K-means begin? One file per start; the file name is the word used in recipes.

A start gives the first centroids for weights that are already sorted. `kmeans++` also goes by `k-means++`.

>>> from secateur.quantize import starts
>>> starts.registry.names()
['density', 'kmeans_plus_plus', 'linear', 'optimal', 'random']
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from secateur.quantize.sorted_weights import Floats, SortedWeights
from secateur.registry import Registry

__all__ = ["Start", "registry"]


class Start(ABC):
    """What every start is: a frozen value that puts centroids on sorted weights."""

    @abstractmethod
    def centroids(self, data: SortedWeights, count: int, random: np.random.Generator) -> Floats:
        """`count` first centroids, in any order; equal ones are parted by the iteration."""

    def candidates(self, data: SortedWeights, count: int, seed: int) -> list[Floats]:
        """The sets of first centroids to try; the best after polishing wins. Usually one."""
        # A stream of its own: a start finds the same whether it runs alone or beside others.
        word = zlib.crc32(type(self).__name__.removesuffix("Start").encode())
        return [self.centroids(data, count, np.random.default_rng([seed, word]))]


registry = Registry(
    __name__,
    __path__,
    "start of K-means",
    base="secateur.quantize.starts:Start",
    suffix="Start",
    aliases={"kmeans++": "kmeans_plus_plus", "k-means++": "kmeans_plus_plus"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
