"""Quantize: weight sharing, that is, few distinct values for the weights of every tensor.

In goes a model; out comes a `Shared`: a copy whose tensors have few distinct values, the codebooks, and their cost in
bits. `sc.share` is the verb; `Shared.train` trains the values afterwards.

A method takes the weights that share one codebook and returns a `Palette`: the values, and the cuts between them. It
knows neither models nor masks nor files. A method is one file in `methods/`; its name is the word used in recipes.

Files, in reading order:

- `share`: the verb and its options; `groups` (which tensors have one codebook), `codebooks` (from weights to
  codebooks), `result` (`Shared`).
- `methods/`: `kmeans`, `uniform`, `exact`; `starts/`: initial centroids of K-means.
- `sorted_weights`, `lloyd`, `program`, `lookup`: fast one-dimensional clustering.
- `prices`, `rate_distortion`, `rates`: the cost of a value in bits, and assignment by error and bits together.
- `calibrated`, `tables`: codebooks by the error of outputs on data, of layers and of embedding tables; `bits_by_error`:
  how many bits each tensor should have, by the error that it alone causes.
- `codebook_training`, `tuned_values`: training the values of a shared model.
- `latent_training`: training weights as multiples of a step, for accuracy and bytes at once.

>>> import torch
>>> from secateur import quantize
>>> quantize.registry.names()
['exact', 'kmeans', 'uniform']
>>> palette = quantize.Kmeans(bits=1).palette("fc", torch.tensor([0.0, 1.0, 9.0, 11.0]), zeros=0, seed=0)
>>> palette.values.tolist()
[0.5, 10.0]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from secateur.quantize.lookup import lookup
from secateur.quantize.prices import Prices, nonzero_bits
from secateur.quantize.rate_distortion import assign_by_rate
from secateur.quantize.sorted_weights import Floats, not_above
from secateur.registry import Registry

if TYPE_CHECKING:
    from secateur.quantize.methods.exact import Exact as Exact
    from secateur.quantize.methods.kmeans import Kmeans as Kmeans
    from secateur.quantize.methods.uniform import Uniform as Uniform

__all__ = [
    "Palette",
    "Prices",
    "Quantizer",
    "QuantizerLike",
    "assign_by_rate",
    "nonzero_bits",
    "registry",
    "to_numpy",
]


def to_numpy(weights: torch.Tensor) -> npt.NDArray[np.floating]:
    """The weights as a flat array of float32, or of float64 where they are; half precision is exact in float32.

    Args:
        weights: The weights, on any device.
    """
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    return weights.detach().reshape(-1).to(device="cpu", dtype=wide).numpy()


@dataclass(frozen=True, eq=False)
class Palette:
    """Ascending values, and the cuts between them.

    Attributes:
        values: Exact in the dtype of the weights.
        cuts: A weight at or below `cuts[i]` goes to `values[i]` or a lower one.
        step: Set for uniform steps, whose `values[i]` is `(low + i) * step`.
        low: The first level of uniform steps.

    >>> palette = Palette(np.array([0.0, 1.0, 4.0]), np.array([0.5, 2.5]))
    >>> palette.assign(torch.tensor([[0.5, 0.6], [9.0, -1.0]]))
    tensor([[0, 1],
            [2, 0]])
    """

    values: Floats
    cuts: Floats
    step: float | None = None
    low: int = 0

    def assign(self, weights: torch.Tensor) -> torch.Tensor:
        """The index of each weight's value, on the weights' device.

        Args:
            weights: Weights of any shape.
        """
        wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
        cuts = not_above(self.cuts, np.float64 if wide == torch.float64 else np.float32)
        if weights.device.type == "cpu":
            return torch.from_numpy(lookup(to_numpy(weights), cuts)).reshape(weights.shape)
        there = torch.from_numpy(cuts).to(weights.device)
        return torch.bucketize(weights.detach().to(wide).contiguous(), there, right=False)


class Quantizer(ABC):
    """A method of sharing: a frozen value that finds a palette."""

    holds_zero: ClassVar[bool] = False
    """Whether the method's own values include 0.0, so that masked weights need none of their own."""

    @abstractmethod
    def palette(self, name: str, weights: torch.Tensor, zeros: int, seed: int) -> Palette:
        """Find the values for the weights that share one codebook.

        Args:
            name: The tensor or group, for errors.
            weights: Flat, finite and not empty; masked ones are left out.
            zeros: How many masked weights there are in addition.
            seed: For methods that draw at random.
        """


QuantizerLike: TypeAlias = str | Quantizer
"""A method of sharing: its word, or a value such as `sc.quantize.Kmeans(bits=4)`."""

registry = Registry(
    f"{__name__}.methods",
    [f"{path}/methods" for path in __path__],
    "method of sharing",
    base="secateur.quantize:Quantizer",
    aliases={"k-means": "kmeans"},
)


def __getattr__(name: str) -> type[Quantizer]:
    found: type[Quantizer] = registry.attribute(name)
    return found
