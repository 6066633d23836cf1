"""K-means: the 2**bits values of least squared error from the weights.

>>> import torch
>>> weights = torch.tensor([0.0, 1.0, 9.0, 11.0, 30.0, 31.0])
>>> Kmeans(bits=1, start="linear").palette("fc", weights, zeros=0, seed=0).values.tolist()
[5.25, 30.5]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from secateur.errors import OptionError
from secateur.quantize import Palette, Quantizer, starts, to_numpy
from secateur.quantize.lloyd import lloyd
from secateur.quantize.sorted_weights import Floats, SortedWeights, in_range, middles

__all__ = ["Kmeans"]


@dataclass(frozen=True)
class Kmeans(Quantizer):
    """2**bits centroids for the weights that are not masked; masked ones have an index of their own.

    A weight exactly half way between two centroids goes to the lower one. Where there are no more distinct weights than
    centroids, the weights themselves are the values.

    Attributes:
        bits: 1 to 8.
        start: Where the iteration begins: linear, kmeans++, random, density, optimal, or a value of `starts`.
        iterations: The most rounds; the iteration ends earlier when nothing moves.
        bits_of: Other numbers of bits for the layers or parameters of these names, as `sc.error_bits` gives them.

    >>> Kmeans(3, bits_of={"fc1": 4}).bits_for("fc1.weight"), Kmeans(3, bits_of={"fc1": 4}).bits_for("fc2.weight")
    (4, 3)
    """

    bits: int = 5
    start: starts.StartLike = "optimal"
    iterations: int = 300
    bits_of: Mapping[str, int] | tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check_bits("bits of K-means", self.bits)
        rows = tuple(self.bits_of.items()) if isinstance(self.bits_of, Mapping) else tuple(self.bits_of)
        for name, bits in rows:
            _check_bits(f"bits_of[{name!r}] of K-means", bits)
        object.__setattr__(self, "bits_of", rows)
        if self.iterations < 1:
            raise OptionError(f"iterations of K-means: expected at least 1, got {self.iterations!r}")
        starts.registry.make(self.start)

    def bits_for(self, name: str) -> int:
        """The bits of a parameter: its own, its layer's, or those of all others."""
        own = dict(self.bits_of)
        return own.get(name, own.get(name.rpartition(".")[0], self.bits))

    def palette(self, name: str, weights: torch.Tensor, zeros: int, seed: int) -> Palette:
        """Take the best result of the start, rounded to the dtype of the weights.

        Args:
            name: The tensor or group, for its bits and for errors.
            weights: Flat, finite and not empty.
            zeros: How many masked weights there are besides.
            seed: For starts that draw.
        """
        numbers, exponent = in_range(to_numpy(weights))
        data = SortedWeights(numbers)
        count = 2 ** self.bits_for(name.partition("[channel ")[0])
        if data.distinct <= count:
            centroids = data.values[data.runs()].astype(np.float64)
        else:
            centroids = self._best(data, count, seed, weights.dtype, exponent)
        centroids = np.ldexp(centroids, -exponent) + 0.0  # + 0.0 turns -0.0 into 0.0
        return Palette(centroids, middles(centroids))

    def _best(self, data: SortedWeights, count: int, seed: int, dtype: torch.dtype, exponent: int) -> Floats:
        """The result of least squared error, its centroids rounded to `dtype`; the first of equals."""
        found = [
            lloyd(data, first, self.iterations)
            for first in starts.registry.make(self.start).candidates(data, count, seed)
        ]
        if len(found) > 1:
            errors = [data.squared_error(data.edges(centroids), centroids) for centroids in found]
            # Rounding to float32 moves an error by far less; to half precision it may change the order.
            margin = 1e-9 if dtype in (torch.float32, torch.float64) else 1.0
            near = min(errors) + margin * data.energy
            found = [centroids for centroids, error in zip(found, errors) if error <= near]
        if len(found) == 1:
            return _rounded(data, found[0], dtype, exponent)
        best: Floats | None = None
        least = np.inf
        for centroids in found:
            rounded = _rounded(data, centroids, dtype, exponent)
            error = data.careful_squared_error(data.edges(rounded), rounded)
            if error < least:
                best, least = rounded, error
        assert best is not None
        return best


def _check_bits(what: str, bits: object) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise OptionError(f"{what}: expected a whole number from 1 to 8, got {bits!r}")


def _rounded(data: SortedWeights, centroids: Floats, dtype: torch.dtype, exponent: int) -> Floats:
    """Centroids at the exact means of their clusters, rounded to `dtype`; equal and empty ones dropped."""
    edges = data.edges(centroids)
    means = data.careful_means(edges[np.append(True, np.diff(edges) > 0)])
    means = np.ldexp(torch.from_numpy(np.ldexp(means, -exponent)).to(dtype).double().numpy(), exponent)
    means = np.unique(means)
    return means[np.diff(data.edges(means)) > 0]
