"""Which few values may the weights take? One file per method; the file name is the word used in recipes.

A method looks at the weights that share one codebook and gives a `Palette`: the values, and where one ends
and the next begins. It knows nothing of models, masks or files.

>>> from secateur import quantize
>>> quantize.registry.names()
['exact', 'kmeans', 'uniform']
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from secateur.quantize.lookup import lookup
from secateur.quantize.prices import Prices, there_bits
from secateur.quantize.rate_distortion import assign_by_rate
from secateur.quantize.sorted_weights import Floats, not_above
from secateur.registry import Registry

__all__ = ["Palette", "Prices", "Quantizer", "assign_by_rate", "registry", "there_bits", "to_numpy"]


def to_numpy(weights: torch.Tensor) -> npt.NDArray[Any]:
    """The weights as flat float32 (float64 for float64), in which every half or bfloat16 number is exact."""
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    return weights.detach().reshape(-1).to(device="cpu", dtype=wide).numpy()


@dataclass(frozen=True, eq=False)
class Palette:
    """Ascending values, and the cuts between them: a weight at or below `cuts[i]` is not above `values[i]`.

    `values` are exact in the dtype of the weights. `step` and `low` are set for uniform steps, whose
    `values[i]` is `(low + i) * step`.

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
        """The index of each weight's value, on the weights' device."""
        wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
        cuts = not_above(self.cuts, np.float64 if wide == torch.float64 else np.float32)
        if weights.device.type == "cpu":
            return torch.from_numpy(lookup(to_numpy(weights), cuts)).reshape(weights.shape)
        there = torch.from_numpy(cuts).to(weights.device)
        return torch.bucketize(weights.detach().to(wide).contiguous(), there, right=False)


class Quantizer(ABC):
    """What every method is: a frozen value that finds a palette."""

    holds_zero: ClassVar[bool] = False
    """Whether the method's own values include 0.0, so that masked weights need none of their own."""

    @abstractmethod
    def palette(self, name: str, weights: torch.Tensor, zeros: int, seed: int) -> Palette:
        """The palette of flat, finite, non-empty `weights`; `zeros` more are masked; `name` is for errors."""


registry = Registry(
    f"{__name__}.methods",
    [f"{path}/methods" for path in __path__],
    "method of sharing",
    base="secateur.quantize:Quantizer",
    aliases={"k-means": "kmeans"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
