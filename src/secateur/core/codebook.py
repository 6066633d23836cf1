"""`Codebook`: a tensor as few distinct values and the index of each weight's value.

>>> import torch
>>> indices = torch.tensor([[0, 1], [2, 1]])
>>> book = Codebook("fc.weight", values=torch.tensor([0.0, -0.5, 1.25]), indices=indices)
>>> book.tensor()
tensor([[ 0.0000, -0.5000],
        [ 1.2500, -0.5000]])
>>> book.counts().tolist(), book.entropy
([1, 2, 1], 1.5)

The values of a uniform codebook are `step` times the integers from `low` on.

>>> Codebook.uniform("fc.weight", step=0.5, integers=torch.tensor([-2, 0, 1])).tensor()
tensor([-1.0000,  0.0000,  0.5000])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.core.scores import check_finite
from secateur.errors import OptionError

__all__ = ["Codebook", "index_dtype"]


def index_dtype(count: int) -> torch.dtype:
    """The smallest integer dtype that can point at `count` values.

    >>> index_dtype(33), index_dtype(300)
    (torch.uint8, torch.int16)
    """
    if count <= 256:
        return torch.uint8
    return torch.int16 if count <= 2**15 else torch.int32


@dataclass(frozen=True, eq=False)
class Codebook:
    """The distinct values of one tensor and the index of each weight into them.

    `values` is one-dimensional and finite; `indices` has the tensor's shape, an integer dtype, and stays
    within `values`. A masked weight points at a value that is exactly 0.0. `tensor()` is always
    `values[indices]`.

    Attributes:
        name: The tensor's name.
        values: The distinct values.
        indices: The index of each weight's value.
        step: The step of uniform values: `values[i]` is `(low + i) * step`, multiplied in float64 and rounded once.
        low: The multiple that `values[0]` is.
        group: Codebooks of the same group have the same values.
        axis: The axis along which every slice has a codebook of its own.
        offsets: Slice c uses `values[offsets[c]:offsets[c + 1]]` only.
        reserved: `values[0]` (of each slice's part: its first value) is the 0.0 of the masked weights, not a
            centroid.
    """

    name: str
    values: torch.Tensor
    indices: torch.Tensor
    step: float | None = None
    low: int = 0
    group: str | None = None
    axis: int | None = None
    offsets: tuple[int, ...] | None = None
    reserved: bool = False

    def __post_init__(self) -> None:
        if self.values.dim() != 1 or self.values.numel() == 0:
            raise OptionError(
                f"codebook of {self.name!r}: expected a one-dimensional, non-empty tensor of values, got "
                f"shape {tuple(self.values.shape)}"
            )
        check_finite(f"codebook of {self.name!r}", self.values, "share finite weights only")
        if torch.is_floating_point(self.indices) or self.indices.dtype == torch.bool:
            raise OptionError(
                f"codebook of {self.name!r}: expected integer indices, got {self.indices.dtype}"
            )
        if self.indices.numel():
            low, high = int(self.indices.min()), int(self.indices.max())
            if low < 0 or high >= self.values.numel():
                raise OptionError(
                    f"codebook of {self.name!r}: expected indices in 0..{self.values.numel() - 1}, got "
                    f"{low}..{high}"
                )
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise OptionError(f"codebook of {self.name!r}: expected a finite step above 0, got {self.step}")
        if (self.axis is None) != (self.offsets is None):
            raise OptionError(f"codebook of {self.name!r}: give `axis` and `offsets` together, or neither")

    @classmethod
    def uniform(
        cls,
        name: str,
        step: float,
        integers: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        group: str | None = None,
    ) -> Codebook:
        """The codebook of a tensor whose weights are `step` times an integer.

        Args:
            name: The tensor's name.
            step: The step between neighbouring values.
            integers: The integer of each weight.
            dtype: The dtype of the values.
            group: The group of codebooks with the same values.
        """
        low = min(int(integers.min()), 0) if integers.numel() else 0
        high = max(int(integers.max()), 0) if integers.numel() else 0
        levels = torch.arange(low, high + 1, dtype=torch.float64)
        values = (levels * step).to(dtype).to(integers.device)
        indices = (integers - low).to(index_dtype(high - low + 1))
        return cls(name, values, indices, step=step, low=low, group=group)

    def tensor(self) -> torch.Tensor:
        """The weights: `values[indices]`."""
        return self.values[self.indices.long()]

    @property
    def integers(self) -> torch.Tensor:
        """The integers of a uniform codebook: `indices + low`."""
        if self.step is None:
            raise OptionError(
                f"codebook of {self.name!r}: its values are not uniform steps; share with method='uniform' "
                "for whole numbers"
            )
        return self.indices.long() + self.low

    @property
    def bound(self) -> str | None:
        """Why its values cannot be changed one by one; None if they can.

        >>> Codebook.uniform("fc.weight", step=0.5, integers=torch.tensor([1])).bound
        'uniform steps'
        """
        if self.step is not None:
            return "uniform steps"
        return "a codebook per channel" if self.axis is not None else None

    @property
    def zero(self) -> int | None:
        """The index of the first value that is exactly 0.0, or None."""
        found = torch.nonzero(self.values == 0).flatten()
        return int(found[0]) if found.numel() else None

    def counts(self) -> torch.Tensor:
        """How many weights point at each value."""
        return torch.bincount(self.indices.reshape(-1).long().cpu(), minlength=self.values.numel())

    @property
    def entropy(self) -> float:
        """Bits per weight of an ideal code that knows only how often each index occurs."""
        counts = self.counts().double()
        share = counts[counts > 0] / max(1.0, float(counts.sum()))
        return float(-(share * share.log2()).sum()) + 0.0
