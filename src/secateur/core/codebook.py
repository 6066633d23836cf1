"""`Codebook`: one tensor written as few distinct values and, per weight, which of them it is.

>>> import torch
>>> book = Codebook("fc.weight", values=torch.tensor([0.0, -0.5, 1.25]), indices=torch.tensor([[0, 1], [2, 1]]))
>>> book.tensor()
tensor([[ 0.0000, -0.5000],
        [ 1.2500, -0.5000]])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.core.scores import check_finite
from secateur.errors import OptionError

__all__ = ["Codebook"]


@dataclass(frozen=True, eq=False)
class Codebook:
    """The distinct values of one tensor and the index of each weight into them.

    `values` is one-dimensional and finite; `indices` has the tensor's shape, an integer dtype, and stays within
    `values`. A masked weight points at a value that is exactly 0.0.
    """

    name: str
    values: torch.Tensor
    indices: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 1 or self.values.numel() == 0:
            raise OptionError(
                f"codebook of {self.name!r}: expected a one-dimensional, non-empty tensor of values, got shape "
                f"{tuple(self.values.shape)}"
            )
        check_finite(f"codebook of {self.name!r}", self.values, "share finite weights only")
        if torch.is_floating_point(self.indices) or self.indices.dtype == torch.bool:
            raise OptionError(f"codebook of {self.name!r}: expected integer indices, got {self.indices.dtype}")
        if self.indices.numel():
            low, high = int(self.indices.min()), int(self.indices.max())
            if low < 0 or high >= self.values.numel():
                raise OptionError(
                    f"codebook of {self.name!r}: expected indices in 0..{self.values.numel() - 1}, got {low}..{high}"
                )

    def tensor(self) -> torch.Tensor:
        """The weights: `values[indices]`."""
        return self.values[self.indices.long()]
