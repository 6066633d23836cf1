"""`Units`: how a granularity cuts tensors into pieces that live or die whole.

A `Units` is one list of competing pieces: the weights of a tensor, its filters, or the channels that several tensors
share. Each `Member` says how one tensor falls into the pieces: `gather` lays a tensor out as [units, elements],
`scatter` turns one keep-or-drop bit per unit back into a mask of the tensor's shape.

>>> import torch
>>> rows = AxisMember("fc.weight", axis=0, indices=torch.tensor([[0], [1]]))
>>> rows.gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
tensor([[1., 2.],
        [3., 4.]])
>>> rows.scatter(torch.tensor([True, False]), (2, 2))
tensor([[ True,  True],
        [False, False]])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from secateur.core.lines import Lines

__all__ = ["AxisMember", "Member", "Units"]


class Member(Protocol):
    """How one tensor falls into units."""

    @property
    def name(self) -> str:
        """The parameter's name."""
        ...

    @property
    def scored(self) -> bool:
        """Whether this tensor's scores count towards a unit's worth (False: it is only cut along)."""
        ...

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, elements of a unit]."""
        ...

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit: True where the weight stays."""
        ...


@dataclass(frozen=True, eq=False)
class AxisMember:
    """Units are slices along one axis: unit u owns `indices[u]` of `axis` (several where a flatten widened it)."""

    name: str
    axis: int
    indices: torch.Tensor  # [units, slices per unit], int64
    scored: bool = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, elements of a unit]."""
        index = self.indices.to(tensor.device)
        picked = tensor.movedim(self.axis, 0)
        flat = index.reshape(-1)
        # All slices in order, which is the common case, need no copy of the tensor.
        if flat.numel() != picked.shape[0] or not bool((flat[1:] > flat[:-1]).all()):
            picked = picked.index_select(0, flat)
        return picked.reshape(index.shape[0], -1)

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        return Lines({self.axis: self.line(keep, shape[self.axis])}, tuple(shape)).mask().contiguous()

    def line(self, keep: torch.Tensor, size: int) -> torch.Tensor:
        """One bit per slice of the axis, from one bit per unit."""
        line = torch.ones(size, dtype=torch.bool, device=keep.device)
        line[self.indices.to(keep.device)[~keep].reshape(-1)] = False
        return line


@dataclass(frozen=True, eq=False)
class Units:
    """One list of competing pieces, `count` long, and the tensors they cut.

    `grid` is how the pieces lie beside each other when they form one (the tensor's shape for single weights, out x
    in for kernels), and `axes` says what each side of the grid counts: `"out"`, `"in"` or `"tap"`. Both stay empty
    where the pieces are a mere list. Budgets that look at neighbours (n of m) read them. `combine` says what a piece
    of several tensors is worth: `"sum"`, all its weights counted as one piece, or the `"mean"` or `"max"` of what it
    is worth in each tensor by itself.
    """

    name: str
    count: int
    members: tuple[Member, ...]
    grid: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    combine: str = "sum"
