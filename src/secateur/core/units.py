"""`Units`: the units that a granularity cuts tensors into. A unit is kept or removed as a whole.

A `Units` is one list of competing units: the weights of a tensor, its filters, or the channels that several tensors
share. Each `Member` says how one tensor is divided among them: `gather` lays a tensor out as [units, elements],
`scatter` turns one boolean per unit into a mask of the tensor's shape.

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

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from secateur.core.lines import Lines

__all__ = ["AxisMember", "Member", "TensorMember", "Units", "one_of_each"]


class Member(Protocol):
    """How one tensor is divided into units."""

    @property
    def name(self) -> str:
        """The parameter's name."""
        ...

    @property
    def scored(self) -> bool:
        """Whether this tensor's scores count towards a unit's score; if not, it is only cut with the others."""
        ...

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, elements of a unit]."""
        ...

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit: True where the weight is kept."""
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
        picked = tensor.movedim(self.axis, 0)
        flat = self.indices.reshape(-1)
        # The common case, all slices in order, needs no copy of the tensor; seen on the CPU, where the indices are.
        if flat.numel() != picked.shape[0] or not bool((flat[1:] > flat[:-1]).all()):
            picked = picked.index_select(0, flat.to(tensor.device))
        return picked.reshape(self.indices.shape[0], -1)

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        return Lines({self.axis: self.line(keep, shape[self.axis])}, tuple(shape)).mask().contiguous()

    def line(self, keep: torch.Tensor, size: int) -> torch.Tensor:
        """One bit per slice of the axis, from one bit per unit."""
        # In NumPy: a network has thousands of short lines, and a call of torch costs more than the work on one.
        line = np.ones(size, dtype=bool)
        line[self.indices.cpu().numpy()[~keep.cpu().numpy()].ravel()] = False
        return torch.from_numpy(line).to(keep.device)


@dataclass(frozen=True)
class TensorMember:
    """A tensor that belongs to one unit as a whole; the other units have nothing of it.

    Attributes:
        name: The parameter's name.
        unit: The unit that owns it.
        count: How many units there are.
        scored: Whether the tensor's scores count towards the unit's score.

    >>> TensorMember("w", unit=1, count=2).gather(torch.tensor([3.0, 4.0]))
    tensor([[0., 0.],
            [3., 4.]])
    """

    name: str
    unit: int
    count: int
    scored: bool = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor laid out as [units, elements], zeros where a unit has nothing of it."""
        rows = tensor.new_zeros((self.count, tensor.numel()))
        rows[self.unit] = tensor.reshape(-1)
        return rows

    def scatter(self, keep: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A boolean mask of `shape` from one bit per unit."""
        return keep[self.unit].expand(tuple(shape))

    def sizes(self, shape: Sequence[int]) -> torch.Tensor:
        """How many weights of the tensor each unit has."""
        found = torch.zeros(self.count, dtype=torch.int64)
        found[self.unit] = math.prod(shape)
        return found


@dataclass(frozen=True, eq=False)
class Units:
    """One list of competing units, and the tensors they cut.

    Attributes:
        name: The name of the list.
        count: How many units there are.
        members: How each tensor is divided among the units.
        grid: The shape the units form, if any: the tensor's shape for single weights, out x in for kernels. Budgets
            that look at neighbours (n of m) read it.
        axes: What each axis of the grid counts: `"out"`, `"in"` or `"tap"`.
        combine: The score of a unit of several tensors: the `"sum"` over all of its weights, or the `"mean"` or
            `"max"` of its scores in each tensor.
    """

    name: str
    count: int
    members: tuple[Member, ...]
    grid: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    combine: str = "sum"

    @property
    def of_blocks(self) -> bool:
        """Whether every tensor belongs to one unit as a whole, as those of layers that are removed whole do."""
        return bool(self.members) and all(isinstance(member, TensorMember) for member in self.members)

    @property
    def of_channels(self) -> bool:
        """Whether units are slices of tensors along an axis, as channels and heads are: `shrink` leaves one."""
        return bool(self.members) and all(isinstance(member, AxisMember) for member in self.members)


def one_of_each(parts: Iterable[Sequence[Units]]) -> list[tuple[Units, ...]]:
    """The lists of several granularities: equal ones once, and others of one name told apart by a number.

    Args:
        parts: The lists of each granularity.

    Returns:
        Those of each granularity, in the same order.

    >>> a, b = Units("fc", 2, ()), Units("fc", 3, ())
    >>> [[each.name for each in units] for units in one_of_each([[a], [a, b]])]
    [['fc'], ['fc#1']]
    """
    alike: dict[tuple[object, ...], list[Units]] = {}  # by what is quick to compare
    taken: set[str] = set()
    found = []
    for part in parts:
        mine = []
        for units in part:
            names = tuple(member.name for member in units.members)
            others = alike.setdefault((units.name, units.count, units.grid, names), [])
            if not any(_cut_the_same(units, each) for each in others):
                others.append(units)
                name = next(name for name in _names(units.name) if name not in taken)
                taken.add(name)
                mine.append(units if name == units.name else replace(units, name=name))
        found.append(tuple(mine))
    return found


def _cut_the_same(a: Units, b: Units) -> bool:
    return list(map(_selected, a.members)) == list(map(_selected, b.members))


def _selected(member: Member) -> object:
    """What a member of a list selects, to be compared."""
    if isinstance(member, AxisMember):
        return member.name, member.axis, tuple(member.indices.shape), member.indices.cpu().numpy().tobytes()
    return member if type(member).__hash__ is not None else (type(member), repr(member))


def _names(name: str) -> Iterator[str]:
    """The name itself, then with a number."""
    yield name
    for number in itertools.count(1):
        yield f"{name}#{number}"
