"""Couplings: which slices of which parameters live or die together, found by following one forward index by index.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))
>>> found = analyse(model, torch.zeros(1, 3, 4, 4))
>>> group = found.groups[0]
>>> group.count, [(slot.name, slot.axis, slot.positions.shape) for slot in group.slots if slot.role == "in"]
(8, [('4.weight', 1, (8, 4))])
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.errors import TraceError
from secateur.execution.fast_copy import collector_paused, is_atom, modules_of
from secateur.execution.operator_costs import (
    CONVOLUTION_KERNELS,
    CONVOLUTIONS,
    LEFT_OPERAND,
    attention_macs,
    convolution_macs,
    product_macs,
)
from secateur.structure.groups.labels import Labels, Lock
from secateur.structure.groups.rules import Follower, follow
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.trace.trace import Op, TensorRef, Trace, trace

__all__ = ["Group", "Slot", "Structure", "analyse", "regroup"]


@dataclass(frozen=True, eq=False)
class Slot:
    """How one axis of one parameter falls into a group's units. `positions` is [units, slices per unit].

    `role` is "out" where the layer puts the channels out, "in" where it takes them in, "along" for what goes with them
    (biases, norms, running statistics).
    """

    name: str
    axis: int
    positions: np.ndarray
    role: str
    size: int


@dataclass(frozen=True, eq=False)
class Group:
    """Units that choose together: `count` of them, the parameter slices of each, and the labels they are made of.

    `heads` says that the units are attention heads; where they are positions within all heads alike, `within` is how
    many of a head's positions a unit takes: two where rotary embeddings pair them.
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
        """How many units there are."""
        return int(self.classes.size)


@dataclass(eq=False)
class Structure:
    """What was found in a model: groups that can be cut, axes that are locked, layouts to check a cut against."""

    trace: Trace
    follower: Follower
    labels: Labels
    groups: tuple[Group, ...]
    slots: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()
    more: tuple[Follower, ...] = ()

    @property
    def classes(self) -> np.ndarray:
        """The class of every label; 0 is locked."""
        return self.labels.classes()

    def alive(self, keep: Mapping[int, np.ndarray]) -> np.ndarray:
        """For every label whether it stays, from one bit per unit of each group named."""
        alive = np.ones(self.labels.count, bool)
        for index, bits in keep.items():
            alive[self.groups[index].classes[~np.asarray(bits, bool)]] = False
        return alive[self.classes]

    def kept_shape(
        self, ref: TensorRef, alive: np.ndarray, follower: Follower | None = None
    ) -> tuple[int, ...] | None:
        """The shape a tensor must have once cut; None where what is left is no rectangle."""
        shape = list(ref.shape)
        for part in (follower or self.follower).of(ref).fields:
            stays = alive[part.labels]
            if stays.all():
                continue
            if stays.ndim == 1:
                shape[part.axes[0]] = int(np.count_nonzero(stays))
                continue
            total = 1
            for position, axis in enumerate(part.axes):
                others = tuple(i for i in range(stays.ndim) if i != position)
                shape[axis] = int(np.count_nonzero(stays.any(axis=others)))
                total *= shape[axis]
            if total != int(np.count_nonzero(stays)):
                return None
        return tuple(shape)

    def keep_of(self, alive: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
        """The kept indices of every parameter axis that loses some; equal ones are one array."""
        found: dict[str, dict[int, np.ndarray]] = {}
        known: dict[bytes, np.ndarray] = {}
        for (name, axis), labels in self.slots.items():
            stays = alive[labels]
            if not stays.all():
                kept = known.get(key := stays.tobytes())
                if kept is None:
                    kept = known[key] = np.flatnonzero(stays)
                found.setdefault(name, {})[axis] = kept
        return found

    def locked(self) -> list[Lock]:
        """Why parameter axes are locked: one lock for each locked class of labels, the earliest that applied."""
        return list(self._locks)

    @cached_property
    def _locks(self) -> tuple[Lock, ...]:
        return tuple(self.labels.locks)

    def macs(self, alive: np.ndarray | None = None) -> int:
        """Multiply-accumulates of the products and convolutions of the recorded forward, once cut."""
        return sum(self._op_macs(op, alive) for op in self._counted)

    @cached_property
    def _counted(self) -> list[Op]:
        return [op for op in self.trace.ops if op.name in _COUNTED]

    def _op_macs(self, op: Op, alive: np.ndarray | None) -> int:
        def shape(ref: TensorRef) -> tuple[int, ...]:
            return ref.shape if alive is None else (self.kept_shape(ref, alive) or ref.shape)

        if op.name in _CONVOLUTIONS:
            transposed = op.name in CONVOLUTIONS and bool(op.arg(6, "transposed", False))
            outer = op.args[0] if transposed else op.results()[0]
            return convolution_macs(shape(outer), shape(op.args[1]))
        if op.name in FUSED:
            return attention_macs(*(shape(ref) for ref in op.args[:3]))
        return product_macs(shape(op.args[_PRODUCTS[op.name]]), shape(op.results()[0]))


_PRODUCTS = {**LEFT_OPERAND, "_grouped_mm": 0}
_CONVOLUTIONS = frozenset((*CONVOLUTIONS, *CONVOLUTION_KERNELS))
_COUNTED = _CONVOLUTIONS | {*_PRODUCTS, *FUSED}


def _role(ref: TensorRef, entered: bool) -> str:
    """Whether a parameter's axis takes channels in, puts them out, or goes along."""
    if ref.role != "parameter" or len(ref.shape) < 2:
        return "in" if entered and ref.role == "parameter" else "along"
    return "in" if entered else "out"


def _used(found: Trace) -> set[str]:
    """The parameters an operator touched."""
    return {ref.name for op in found.ops for ref in op.refs() if ref.name}


def analyse(
    model: nn.Module,
    example: Any,
    *,
    across_norm: bool = False,
    training: bool = True,
    sizes: bool = False,
) -> Structure:
    """Trace a model on an example and find its groups.

    The forward is recorded in eval mode; where that leaves parameters unused (an auxiliary head that runs only in
    training), the training forward is followed as well. With `sizes` attention heads become smaller instead of
    fewer.
    """
    with collector_paused():
        key = _fingerprint(model, example, across_norm, training)
        known = _RECENT.get(model)
        before = known[1] if known is not None and known[0] == key else {}
        if sizes not in before:
            recorded = next((structure.trace for structure in before.values()), None)
            before = {**before, sizes: _analyse(model, example, across_norm, training, sizes, recorded)}
    found = before[sizes]
    if found.trace.mode == "meta":  # a forward that looks at values may go another way next time
        _RECENT[model] = (key, before)
    return found


_RECENT: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[bool, Structure]]] = weakref.WeakKeyDictionary()
_NAMES = frozenset(vars(nn.Module()))
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def _fingerprint(model: nn.Module, example: Any, across_norm: bool, training: bool) -> Any:
    """What a structure depends on: classes, plain attributes, hooks and shapes of the model and of the example."""
    modules: list[Any] = []
    for name, module in modules_of(model).items():
        state = vars(module)
        modules += (name, type(module), module.training)
        for key, value in state.items():
            if key in _NAMES:
                continue
            if is_atom(value):
                modules += (key, value)
            elif isinstance(value, (int, float, str, tuple)):
                modules += (key, repr(value))
            elif callable(value):
                modules += (key, id(value))
        modules += [len(hooks) for key in _HOOKS if (hooks := state.get(key))]
        for part in (module._parameters, module._buffers):
            for key, tensor in part.items():
                if tensor is not None:
                    modules += (key, id(tensor), tensor.shape, tensor.dtype)
    config = getattr(model, "config", None)
    told: list[Any] = []
    told += [(tuple(tensor.shape), tensor.dtype) for tensor in tensors_in(example)]
    shown = repr(map_tensors(lambda tensor: None, example))
    return (
        tuple(modules),
        repr(config) if config is not None else "",
        tuple(told),
        shown,
        across_norm,
        training,
    )


def _analyse(
    model: nn.Module,
    example: Any,
    across_norm: bool,
    training: bool,
    sizes: bool,
    recorded: Trace | None = None,
) -> Structure:
    recorded = recorded or trace(model, example)
    main = follow(recorded, across_norm, Labels(sizes))
    labels = main.labels
    parameters = {name for name, ref in recorded.parameters.items() if ref.role == "parameter"}
    unused = parameters - _used(recorded)
    more: tuple[Follower, ...] = ()
    if unused and training:
        try:
            second = trace(model, example, training=True, mode=recorded.mode)
        except TraceError:
            second = None
        if second is not None and _used(second) & unused:
            other = Follower(second, labels, across_norm)
            for name, ref in second.parameters.items():
                other.layouts[ref.id] = main.of(recorded.parameters[name])
            other.run()
            more = (other,)
            unused -= _used(second)
    _lock_counted(recorded, labels, (main, *more))
    return _group(recorded, labels, main, more, tuple(sorted(unused)))


def _lock_counted(recorded: Trace, labels: Labels, followers: Sequence[Follower]) -> None:
    """Lock what is averaged over, except the channels that one layer alone puts out."""
    counted = [each for follower in followers for each in follower.counted if not each.anywhere]
    if not counted:
        return
    roots = labels.without_locks()
    entered = np.zeros(labels.count, bool)
    for follower in followers:
        for array in follower.entered:
            entered[array] = True
    asked = np.zeros(labels.count, bool)
    for each in counted:
        asked[roots[each.labels]] = True
    layers = np.zeros(labels.count, int)
    for ref in recorded.parameters.values():
        for part in followers[0].of(ref).fields:
            found = roots[part.labels]
            hit = found[asked[found]]
            if hit.size and _role(ref, bool(entered[part.labels].any())) == "out":
                layers[np.unique(hit)] += 1
    for each in counted:
        if (layers[roots[each.labels]] != 1).any():
            labels.op, labels.operator, labels.path = each.op.index, each.op.name, each.op.path
            labels.lock(each.labels, each.reason)
    labels.op, labels.operator, labels.path = -1, "", ""


def regroup(structure: Structure, locks: Sequence[Lock]) -> Structure:
    """The same trace with more labels locked: groups are collected again."""
    labels = structure.labels.copy()
    for lock in locks:
        labels.op, labels.operator, labels.path = lock.op, lock.operator, lock.path
        labels.lock(lock.labels, lock.reason)
    return _group(structure.trace, labels, structure.follower, structure.more, structure.untouched)


def _group(
    recorded: Trace, labels: Labels, main: Follower, more: tuple[Follower, ...], unused: tuple[str, ...]
) -> Structure:
    """Collect the parameter positions of every class, and the classes that touch the same axes into groups."""
    classes = labels.settle()
    names: list[tuple[str, int]] = []
    arrays: list[np.ndarray] = []
    slots: dict[tuple[str, int], np.ndarray] = {}
    for name, ref in recorded.parameters.items():
        for part in main.of(ref).fields:
            if len(part.axes) == 1:
                names.append((name, part.axes[0]))
                arrays.append(part.labels)
                slots[name, part.axes[0]] = part.labels
    structure = Structure(recorded, main, labels, (), slots, unused, more)
    if not arrays:
        return structure
    entered = np.zeros(labels.count, bool)
    for follower in (main, *more):
        for array in follower.entered:
            entered[array] = True
    sizes = np.array([array.size for array in arrays])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    whole = np.concatenate(arrays)
    is_in = np.logical_or.reduceat(entered[whole], starts)
    roles = [_role(recorded.parameters[name], bool(into)) for (name, _), into in zip(names, is_in)]
    found = classes[whole]
    # A channel is put out by one tensor and taken in by another; what is not both is no channel.
    both = np.ones(labels.count, bool)
    for wanted in ("out", "in"):
        has = np.zeros(labels.count, bool)
        has[found[np.repeat(np.array([role == wanted for role in roles]), sizes)]] = True
        for follower in (main, *more):
            for array in follower.emitted if wanted == "out" else ():
                has[classes[array]] = True
        both &= has
    for follower in (main, *more):  # queries meet keys: both are put out
        for array in follower.sizes:
            both[classes[array]] = True
    free = (found > 0) & both[found]
    if not free.any():
        return structure
    axis_of = np.repeat(np.arange(len(arrays)), sizes)[free]
    position = (np.arange(whole.size) - np.repeat(starts, sizes))[free]
    found = found[free]
    mark = np.zeros(labels.count, bool)
    mark[found] = True
    units = np.flatnonzero(mark)
    number = np.cumsum(mark) - 1
    inverse = number[found]
    # A unit's signature is the sum of random numbers of the axes it touches: equal sums, equal sets of axes.
    random = np.random.default_rng(0).integers(1, 1 << 62, len(arrays), dtype=np.int64).astype(np.uint64)
    signature = np.zeros(units.size, np.uint64)
    np.add.at(signature, inverse, random[axis_of])
    _, first, group_of = np.unique(signature, return_index=True, return_inverse=True)
    # groups in the model's order: that of their first unit
    rank = np.empty(first.size, int)
    rank[np.argsort(first)] = np.arange(first.size)
    group_of = rank[group_of]
    key = group_of[inverse] * len(arrays) + axis_of
    # by group, axis, unit and position; positions ascend already, and runs of units mostly do
    order = np.argsort(key * units.size + inverse, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    stops = np.r_[starts[1:], key.size]
    counts = np.bincount(group_of)
    by_group = np.argsort(group_of, kind="stable")
    members = np.split(units[by_group], np.cumsum(counts)[:-1])
    collected: list[list[Slot]] = [[] for _ in range(counts.size)]
    for start, stop in zip(starts, stops):
        group, axis = divmod(int(key[start]), len(arrays))
        name, dim = names[axis]
        chosen = position[order[start:stop]].reshape(counts[group], -1)
        collected[group].append(Slot(name, dim, chosen, roles[axis], int(sizes[axis])))
    is_head = np.zeros(labels.count, bool)
    for follower in (main, *more):
        for array in follower.heads:
            is_head[classes[array]] = True
    within = np.zeros(labels.count, int)
    for follower in (main, *more):
        for array in follower.sizes:
            unit, times = np.unique(classes[array], return_counts=True)
            within[unit] = np.maximum(within[unit], times)
    groups = []
    for index, (held, ids) in enumerate(zip(collected, members)):
        lead = next((slot for slot in held if slot.role == "out"), held[0])
        numel = 0
        for slot in held:
            ref = recorded.parameters[slot.name]
            if ref.role == "parameter":
                numel += int(np.prod(ref.shape)) * slot.positions.size // slot.size
        groups.append(
            Group(
                index,
                lead.name.rpartition(".")[0] or lead.name,
                ids,
                tuple(held),
                numel,
                bool(is_head[ids].all()),
                int(within[ids].min()),
            )
        )
    structure.groups = tuple(groups)
    return structure
