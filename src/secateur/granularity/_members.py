"""How one tensor is divided into units: runs of neighbouring weights, output units, and blocks.

Every member is a `core.units.Member`: `gather` lays a tensor out as [units, elements], `scatter` turns one
bit per unit back into a mask.

>>> import torch
>>> FlatMember("w", size=2).gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
tensor([[1., 2.],
        [3., 4.]])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["BlockMember", "FilterMember", "FlatMember"]


@dataclass(frozen=True)
class FlatMember:
    """Units are runs of `size` adjacent weights: 1 for single weights, k·k for kernels."""

    name: str
    size: int = 1
    scored: bool = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, size]; a view where the tensor's memory allows."""
        return tensor.reshape(-1, self.size)

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        shape, lead = tuple(shape), 0
        while math.prod(shape[:lead]) < len(keep):
            lead += 1
        if self.size == 1 or math.prod(shape[:lead]) != len(keep):
            return keep[:, None].expand(-1, self.size).reshape(shape)
        return keep.reshape(*shape[:lead], *[1] * (len(shape) - lead)).expand(shape)


@dataclass(frozen=True)
class FilterMember:
    """Units are the layer's outputs: slices along `axis`.

    A grouped transposed convolution has the weight [in, out / groups, ...] in which output unit `o` owns
    column `o % (out / groups)` of its own group's rows only; `groups` > 1 asks for that layout.

    >>> weight = torch.arange(8.0).reshape(4, 2, 1)  # 4 inputs, 2 groups, 2 outputs a group
    >>> FilterMember("up.weight", axis=1, groups=2).gather(weight)
    tensor([[0., 2.],
            [1., 3.],
            [4., 6.],
            [5., 7.]])
    """

    name: str
    axis: int = 0
    groups: int = 1
    scored: bool = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, weights of a unit]; a view for axis 0."""
        if self.groups > 1:
            inputs, per_group = tensor.shape[:2]
            split = tensor.reshape(self.groups, inputs // self.groups, per_group, -1)
            return split.transpose(1, 2).reshape(self.groups * per_group, -1)
        return tensor.movedim(self.axis, 0).reshape(tensor.shape[self.axis], -1)

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        shape = tuple(shape)
        if self.groups > 1:
            inputs, per_group = shape[:2]
            line = keep.reshape(self.groups, 1, per_group).expand(-1, inputs // self.groups, -1)
            return line.reshape(inputs, per_group, *[1] * (len(shape) - 2)).expand(shape)
        view = [1] * len(shape)
        view[self.axis] = shape[self.axis]
        return keep.reshape(view).expand(shape)


@dataclass(frozen=True)
class BlockMember:
    """Units are `height` x `width` blocks of the tensor seen as a [out, rest] table; edge blocks are smaller.

    `gather` pads edge blocks with zeros, which changes no sum, norm or distance.

    >>> BlockMember("w", 2, 2).gather(torch.arange(6.0).reshape(2, 3))
    tensor([[0., 1., 3., 4.],
            [2., 0., 5., 0.]])
    """

    name: str
    height: int
    width: int
    axis: int = 0
    scored: bool = True

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many blocks lie (down, across)."""
        rows, columns = self._table(shape)
        return -(-rows // self.height), -(-columns // self.width)

    def sizes(self, shape: Sequence[int]) -> torch.Tensor:
        """How many weights each block really has."""
        rows, columns = self._table(shape)
        down, across = self.grid(shape)
        high = torch.full((down,), self.height)
        high[-1] = rows - (down - 1) * self.height
        wide = torch.full((across,), self.width)
        wide[-1] = columns - (across - 1) * self.width
        return (high[:, None] * wide[None, :]).reshape(-1)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, height * width]."""
        rows, columns = self._table(tensor.shape)
        down, across = self.grid(tensor.shape)
        table = tensor.movedim(self.axis, 0).reshape(rows, columns)
        bottom, right = down * self.height - rows, across * self.width - columns
        if bottom or right:
            table = functional.pad(table, (0, right, 0, bottom))
        blocks = table.reshape(down, self.height, across, self.width)
        return blocks.transpose(1, 2).reshape(down * across, self.height * self.width)

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        shape = tuple(shape)
        rows, columns = self._table(shape)
        down, across = self.grid(shape)
        blocks = keep.reshape(down, 1, across, 1).expand(-1, self.height, -1, self.width)
        table = blocks.reshape(down * self.height, across * self.width)[:rows, :columns]
        moved = (shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :])
        return table.reshape(moved).movedim(0, self.axis).contiguous()

    def _table(self, shape: Sequence[int]) -> tuple[int, int]:
        rows = shape[self.axis]
        return rows, math.prod(shape) // rows if rows else 0
