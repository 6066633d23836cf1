"""Grouping: from labels to groups, the sets of channels that compete.

Every axis of every parameter carries labels, and labels that are tied form one class. A class is a *unit*: the slices
that are removed together. Units that touch the same parameter axes form a *group*: they compete with each other.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.groups.couplings import analyse
>>> found = analyse(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(1, 2))
>>> [(slot.name, slot.axis, slot.role) for slot in found.groups[0].slots]
[('0.weight', 0, 'out'), ('0.bias', 0, 'along'), ('2.weight', 1, 'in')]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.structure.groups.rules import Follower
from secateur.structure.trace.trace import TensorRef

__all__ = ["Axis", "Group", "Slot", "collect", "marked", "parameter_axes", "role_of"]


@dataclass(frozen=True, eq=False)
class Slot:
    """How one axis of one parameter is divided into a group's units. `positions` is [units, slices per unit].

    `role` is "out" if the channels are the layer's outputs, "in" if they are its inputs, "along" for tensors beside
    them (biases, norms, running statistics). `size` is the length of the whole axis.
    """

    name: str
    axis: int
    positions: np.ndarray
    role: str
    size: int


@dataclass(frozen=True, eq=False)
class Group:
    """Units that compete: `count` of them, the parameter slices of each, and their labels.

    `heads` says that the units are attention heads; where they are positions within all heads alike, `within` is the
    number of positions of a head that a unit takes: two where rotary embeddings pair them.
    """

    index: int
    name: str
    classes: np.ndarray
    slots: tuple[Slot, ...]
    parameters: int
    heads: bool = False
    within: int = 0

    @property
    def count(self) -> int:
        """The number of units."""
        return int(self.classes.size)


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one parameter or buffer: the labels of its positions, and the role of the axis in its layer."""

    ref: TensorRef
    axis: int
    labels: np.ndarray
    role: str


@dataclass(frozen=True, eq=False)
class _Positions:
    """The positions of all axes that can be cut, as three columns: number of the axis, position on it, unit."""

    axis: np.ndarray
    position: np.ndarray
    unit: np.ndarray
    classes: np.ndarray
    """The class of each unit, ascending."""


def role_of(ref: TensorRef, entered: bool) -> str:
    """Whether an axis is of the layer's inputs, of its outputs, or beside them.

    Args:
        ref: The parameter or buffer.
        entered: Whether an operator sums over this axis, so that it is an axis of inputs.

    Returns:
        "in", "out" or "along".
    """
    if ref.role != "parameter" or len(ref.shape) < 2:
        return "in" if entered and ref.role == "parameter" else "along"
    return "in" if entered else "out"


def marked(count: int, arrays: Iterable[np.ndarray]) -> np.ndarray:
    """One flag per label: whether it is in any of the arrays.

    >>> marked(4, [np.array([1, 3])]).tolist()
    [False, True, False, True]
    """
    flags = np.zeros(count, bool)
    for array in arrays:
        flags[array] = True
    return flags


def parameter_axes(
    parameters: Mapping[str, TensorRef], followers: Sequence[Follower], count: int
) -> list[Axis]:
    """Every axis of every parameter that has labels of its own, with its role.

    Args:
        parameters: The parameters and buffers of the trace.
        followers: Those that followed its forwards; the first has the layouts of the parameters.
        count: The number of labels.

    Returns:
        The axes in the model's order.
    """
    found = [
        (ref, part.axes[0], part.labels)
        for ref in parameters.values()
        for part in followers[0].of(ref).fields
        if len(part.axes) == 1
    ]
    if not found:
        return []
    entered = marked(count, (array for follower in followers for array in follower.entered))
    sizes = np.array([labels.size for _, _, labels in found])
    whole = np.concatenate([labels for _, _, labels in found])
    taken_in = np.logical_or.reduceat(entered[whole], np.cumsum(sizes) - sizes)
    return [
        Axis(ref, axis, labels, role_of(ref, bool(into)))
        for (ref, axis, labels), into in zip(found, taken_in)
    ]


def collect(axes: Sequence[Axis], followers: Sequence[Follower], classes: np.ndarray) -> tuple[Group, ...]:
    """The groups of a model.

    Args:
        axes: The axes of its parameters.
        followers: Those that followed its forwards.
        classes: The class of every label; class 0 is locked.

    Returns:
        The groups, in the order of their first unit.
    """
    positions = _free_positions(axes, _channels(axes, followers, classes), classes)
    if positions is None:
        return ()
    group_of = _groups_of_units(positions, len(axes))
    slots = _slots(axes, positions, group_of)
    members = np.split(
        positions.classes[np.argsort(group_of, kind="stable")], np.cumsum(np.bincount(group_of))[:-1]
    )
    heads = marked(classes.size, (classes[array] for each in followers for array in each.heads))
    within = _positions_within_heads(followers, classes)
    refs = {axis.ref.name: axis.ref for axis in axes}
    return tuple(
        Group(
            index,
            _name(held),
            units,
            tuple(held),
            _elements(held, refs),
            bool(heads[units].all()),
            int(within[units].min()),
        )
        for index, (held, units) in enumerate(zip(slots, members))
    )


def _channels(axes: Sequence[Axis], followers: Sequence[Follower], classes: np.ndarray) -> np.ndarray:
    """One flag per class: whether it is an output of one tensor and an input of another, as a channel is."""
    out = marked(classes.size, (classes[axis.labels] for axis in axes if axis.role == "out"))
    out |= marked(classes.size, (classes[array] for each in followers for array in each.emitted))
    into = marked(classes.size, (classes[axis.labels] for axis in axes if axis.role == "in"))
    # Queries meet keys: both are outputs, and neither is an input.
    met = marked(classes.size, (classes[array] for each in followers for array in each.sizes))
    return (out & into) | met


def _free_positions(axes: Sequence[Axis], channels: np.ndarray, classes: np.ndarray) -> _Positions | None:
    """The positions of all axes that belong to a channel that is not locked; None where there are none."""
    sizes = np.array([axis.labels.size for axis in axes])
    found = classes[np.concatenate([axis.labels for axis in axes])]
    free = (found > 0) & channels[found]
    if not free.any():
        return None
    starts = np.cumsum(sizes) - sizes
    number = np.repeat(np.arange(len(axes)), sizes)[free]
    position = (np.arange(found.size) - np.repeat(starts, sizes))[free]
    found = found[free]
    present = marked(classes.size, [found])
    return _Positions(number, position, (np.cumsum(present) - 1)[found], np.flatnonzero(present))


def _groups_of_units(positions: _Positions, axes: int) -> np.ndarray:
    """The group of each unit: units that touch the same axes are in one group.

    A unit's signature is the sum of random numbers of the axes it touches: equal sums mean equal sets of axes.
    """
    random = np.random.default_rng(0).integers(1, 1 << 62, axes, dtype=np.int64).astype(np.uint64)
    signature = np.zeros(positions.classes.size, np.uint64)
    np.add.at(signature, positions.unit, random[positions.axis])
    _, first, group_of = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.empty(first.size, int)  # groups in the model's order: that of their first unit
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[group_of]


def _slots(axes: Sequence[Axis], positions: _Positions, group_of: np.ndarray) -> list[list[Slot]]:
    """For each group the slots of its axes, each sorted by unit and position."""
    counts = np.bincount(group_of)
    key = group_of[positions.unit] * len(axes) + positions.axis
    # Positions ascend already, and runs of units mostly do.
    order = np.argsort(key * positions.classes.size + positions.unit, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    collected: list[list[Slot]] = [[] for _ in range(counts.size)]
    for start, stop in zip(starts, np.r_[starts[1:], key.size]):
        group, number = divmod(int(key[start]), len(axes))
        axis = axes[number]
        chosen = positions.position[order[start:stop]].reshape(counts[group], -1)
        collected[group].append(Slot(axis.ref.name, axis.axis, chosen, axis.role, int(axis.labels.size)))
    return collected


def _positions_within_heads(followers: Sequence[Follower], classes: np.ndarray) -> np.ndarray:
    """For each class the number of positions it takes of a head, where heads become smaller."""
    within = np.zeros(classes.size, int)
    for follower in followers:
        for array in follower.sizes:
            unit, times = np.unique(classes[array], return_counts=True)
            within[unit] = np.maximum(within[unit], times)
    return within


def _name(slots: Sequence[Slot]) -> str:
    """A group is named after the first layer whose outputs its channels are."""
    lead = next((slot for slot in slots if slot.role == "out"), slots[0])
    return lead.name.rpartition(".")[0] or lead.name


def _elements(slots: Sequence[Slot], refs: Mapping[str, TensorRef]) -> int:
    """The number of parameter elements in all slices of a group."""
    return sum(
        int(np.prod(refs[slot.name].shape)) * slot.positions.size // slot.size
        for slot in slots
        if refs[slot.name].role == "parameter"
    )
