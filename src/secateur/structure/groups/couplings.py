"""Couplings: which slices of which parameters are removed together, found by following one forward index by index.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))
>>> found = analyse(model, torch.zeros(1, 3, 4, 4))
>>> group = found.groups[0]
>>> group.count, [(slot.name, slot.axis, slot.positions.shape) for slot in group.slots if slot.role == "in"]
(8, [('4.weight', 1, (8, 4))])
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.example import Training, own_call
from secateur.execution.fast_copy import collector_paused, is_atom, modules_of
from secateur.execution.operator_costs import (
    CONVOLUTION_KERNELS,
    CONVOLUTIONS,
    LEFT_OPERAND,
    attention_macs,
    convolution_macs,
    product_macs,
)
from secateur.structure.groups.grouping import Group, Slot, collect, marked, parameter_axes
from secateur.structure.groups.labels import Labels, Lock
from secateur.structure.groups.rules import LAYERS, Follower, follow
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.groups.rules.conv import TAPS
from secateur.structure.trace.flags import flag_runs
from secateur.structure.trace.in_training import training_run, used_tensors
from secateur.structure.trace.trace import Op, TensorRef, Trace, trace

__all__ = ["Group", "KeptShapes", "Slot", "Structure", "analyse", "regroup"]


@dataclass(eq=False)
class Structure:
    """The structure of a model: groups that can be cut, axes that are locked, layouts to check a cut against.

    `lasting` says whether it depends on shapes alone: a forward that reads values, in training too, may take another
    branch next time.
    """

    trace: Trace
    follower: Follower
    labels: Labels
    groups: tuple[Group, ...]
    slots: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()
    more: tuple[Follower, ...] = ()
    lasting: bool = True

    @property
    def classes(self) -> np.ndarray:
        """The class of every label; 0 is locked."""
        return self.labels.classes()

    def alive(self, keep: Mapping[int, np.ndarray]) -> np.ndarray:
        """For every label, whether it remains, from one bit per unit of each group named."""
        alive = np.ones(self.labels.count, bool)
        for index, bits in keep.items():
            alive[self.groups[index].classes[~np.asarray(bits, bool)]] = False
        return alive[self.classes]

    def kept_shape(self, ref: TensorRef, alive: np.ndarray) -> tuple[int, ...] | None:
        """The shape a tensor must have once cut; None if the rest is not rectangular."""
        return KeptShapes(self, alive).of(ref)

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
    def weights(self) -> frozenset[str]:
        """The parameters of two axes and more that a product or convolution takes; not tables of matrices (experts)."""
        return frozenset(
            name
            for follower in (self.follower, *self.more)
            for op in follower.trace.ops
            if op.name in _WEIGHED
            for ref in op.refs()
            if (name := follower.plain.get(ref.id)) is not None
            and self.trace.parameters[name].role == "parameter"
            and len(self.trace.parameters[name].shape) > 1
        )

    @cached_property
    def _locks(self) -> tuple[Lock, ...]:
        return tuple(self.labels.locks)

    def macs(self, alive: np.ndarray | None = None) -> int:
        """Multiply-accumulates of the products and convolutions of the recorded forward, once cut."""
        kept = None if alive is None else KeptShapes(self, alive)
        return sum(self._op_macs(op, kept) for op in self._counted)

    def macs_through(self, index: int) -> int:
        """The multiply-accumulates that are removed with all units of a group; only operators with its labels are
        counted.

        Args:
            index: The group's index.
        """
        classes = np.unique(self.groups[index].classes)
        ops = [
            self._counted[place] for place in sorted({p for c in classes for p in self._seen.get(int(c), ())})
        ]
        order, begins = self._by_class
        gone = np.concatenate([order[begins[c] : begins[c + 1]] for c in classes])
        alive = self._all_alive
        alive[gone] = False
        try:
            kept = KeptShapes(self, alive)
            return sum(self._op_macs(op, None) - self._op_macs(op, kept) for op in ops)
        finally:
            alive[gone] = True

    @cached_property
    def _all_alive(self) -> np.ndarray:
        """One bit per label, all set: `macs_through` borrows it, since a new one for each group would make the work
        grow with the square of the model.
        """
        return np.ones(self.labels.count, bool)

    @cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The labels in the order of their classes, and where each class begins among them."""
        order = np.argsort(self.classes, kind="stable")
        return order, np.searchsorted(self.classes[order], np.arange(self.labels.count + 1))

    @cached_property
    def _seen(self) -> dict[int, list[int]]:
        """For every class of labels the counted operators with a tensor that has it."""
        found: dict[int, list[int]] = {}
        for place, op in enumerate(self._counted):
            parts = [part.labels.reshape(-1) for ref in op.refs() for part in self.follower.of(ref).fields]
            for ref in op.results():
                parts += [part.labels.reshape(-1) for part in self.follower.of(ref).fields]
            if parts:
                for each in np.unique(self.classes[np.concatenate(parts)]):
                    found.setdefault(int(each), []).append(place)
        return found

    @cached_property
    def _counted(self) -> list[Op]:
        return [op for op in self.trace.ops if op.name in _COUNTED]

    def _op_macs(self, op: Op, kept: KeptShapes | None) -> int:
        def shape(ref: TensorRef) -> tuple[int, ...]:
            return ref.shape if kept is None else (kept.of(ref) or ref.shape)

        if op.name in _CONVOLUTIONS:
            transposed = op.name in CONVOLUTIONS and bool(op.arg(6, "transposed", False))
            outer = op.args[0] if transposed else op.results()[0]
            return convolution_macs(shape(outer), shape(op.args[1]))
        if op.name in FUSED:
            return attention_macs(*(shape(ref) for ref in op.args[:3]))
        return product_macs(shape(op.args[_PRODUCTS[op.name]]), shape(op.results()[0]))


class KeptShapes:
    """The shapes of a model's tensors once cut. Many tensors share an array of labels; each is counted once.

    Args:
        structure: The structure of the model.
        alive: For every label, whether it remains; not changed while this is in use.
    """

    def __init__(self, structure: Structure, alive: np.ndarray):
        self._layouts, self._alive = structure.follower.layouts, alive
        self._known: dict[int, tuple[int, ...] | None] = {}

    def of(self, ref: TensorRef) -> tuple[int, ...] | None:
        """The shape a tensor must have, the very tuple of the tensor where nothing of it leaves; None if the rest is
        not rectangular.
        """
        layout = self._layouts.get(ref.id)
        shape: list[int] | None = None
        for part in () if layout is None else layout.fields:
            left = self._left(part.labels)
            if left is None:
                return None
            if left:
                shape = shape or list(ref.shape)
                for axis, size in zip(part.axes, left):
                    shape[axis] = size
        return ref.shape if shape is None else tuple(shape)

    def _left(self, labels: np.ndarray) -> tuple[int, ...] | None:
        """The remaining length of each axis; none where all of it remains, None where the rest is not rectangular."""
        key = id(labels)
        if key not in self._known:
            self._known[key] = _lengths(self._alive[labels])
        return self._known[key]


def _lengths(stays: np.ndarray) -> tuple[int, ...] | None:
    count = int(np.count_nonzero(stays))
    if count == stays.size:
        return ()
    if stays.ndim == 1:
        return (count,)
    axes = range(stays.ndim)
    lengths = tuple(
        int(np.count_nonzero(stays.any(axis=tuple(other for other in axes if other != axis))))
        for axis in axes
    )
    return lengths if math.prod(lengths) == count else None


_PRODUCTS = {**LEFT_OPERAND, "_grouped_mm": 0}
_CONVOLUTIONS = frozenset((*CONVOLUTIONS, *CONVOLUTION_KERNELS))
_WEIGHED = _CONVOLUTIONS | {"mm", "mv", "addmm", "addmv", "linear"}
_COUNTED = _CONVOLUTIONS | {*_PRODUCTS, *FUSED}


def analyse(
    model: nn.Module,
    example: object,
    *,
    across_norm: bool = False,
    training: Training = True,
    sizes: bool = False,
) -> Structure:
    """Trace a model on an example and find its groups.

    The forward is recorded in evaluation mode; where that leaves parameters unused (an auxiliary head that runs only
    in training, a branch that a flag chooses), the training forward and those of other flags are followed as well.
    The last result for each model is kept and used again while neither the model nor the shapes of the example
    change.

    Args:
        model: The model; it is not changed.
        example: What it is called with.
        across_norm: Follow channels through normalisations that mix them.
        training: What the model is called with in training, where its forward there is followed as well: True for the
            example.
        sizes: Attention heads become smaller instead of fewer.

    Returns:
        Groups, locks and the layout of every tensor.
    """
    with collector_paused():
        key = _fingerprint(model, example, across_norm, training)
        known = _RECENT.get(model)
        before = known[1] if known is not None and known[0] == key else {}
        if sizes not in before:
            recorded = next((structure.trace for structure in before.values()), None)
            before = {**before, sizes: _analyse(model, example, across_norm, training, sizes, recorded)}
    found = before[sizes]
    if found.lasting:
        _RECENT[model] = (key, before)
    return found


_RECENT: weakref.WeakKeyDictionary[nn.Module, tuple[object, dict[bool, Structure]]] = (
    weakref.WeakKeyDictionary()
)
_NAMES = frozenset(vars(nn.Module()))
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def _fingerprint(model: nn.Module, example: object, across_norm: bool, training: Training) -> object:
    """The fingerprint of everything that a structure depends on: classes, plain attributes, hooks and shapes of the
    model and of the example.
    """
    modules: list[object] = []
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
        for part in (state["_parameters"], state["_buffers"]):
            for key, tensor in part.items():
                if tensor is not None:
                    modules += (key, id(tensor), tensor.shape, tensor.dtype)
    config = getattr(model, "config", None)
    return (
        tuple(modules),
        repr(config) if config is not None else "",
        _attention(config),
        _shapes(example),
        across_norm,
        _shapes(training) if own_call(training) else training,
    )


def _attention(config: object) -> tuple[str, ...]:
    """The implementations of attention that a configuration asks for, of which its text says nothing."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
    return tuple(str(getattr(each, "_attn_implementation", None)) for each in (config, *inner))


def _shapes(example: object) -> tuple[object, ...]:
    """The shapes and types of an example's tensors, and everything else that it holds."""
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors_in(example)]
    return tuple(shapes), repr(map_tensors(lambda tensor: None, example))


def _analyse(
    model: nn.Module,
    example: object,
    across_norm: bool,
    training: Training,
    sizes: bool,
    recorded: Trace | None = None,
) -> Structure:
    recorded = recorded or trace(model, example)
    main = follow(recorded, across_norm, Labels(sizes))
    labels = main.labels
    parameters = {name for name, ref in recorded.parameters.items() if ref.role == "parameter"}
    unused = parameters - used_tensors(recorded)
    idle = unused | {
        name for name, ref in recorded.parameters.items() if ref.role == "buffer" and ref.shape
    } - used_tensors(recorded)
    more: list[Follower] = []
    lasting = recorded.mode == "meta"
    for second, flag in _further_runs(recorded, model, example, training) if idle else ():
        lasting = lasting and second.mode == "meta"
        if not (used := used_tensors(second)) & idle:
            continue
        other = Follower(second, labels, across_norm)
        for name, ref in second.parameters.items():
            other.layouts[ref.id] = main.of(recorded.parameters[name])
        known = len(labels.locks)
        other.run()
        if flag:
            labels.locks[known:] = [_with_flag(lock, flag) for lock in labels.locks[known:]]
        more.append(other)
        unused -= used
    _lock_counted(labels, (main, *more))
    found = _group(recorded, labels, main, tuple(more), tuple(sorted(unused)))
    found.lasting = lasting
    return found


def _further_runs(
    recorded: Trace, model: nn.Module, example: object, training: Training
) -> Iterator[tuple[Trace, str]]:
    """The recordings that may use parameters which the forward does not: in training, and with a flag turned round,
    each with that flag and its value.
    """
    second = training_run(recorded, model, example, training is False or training)
    if second is not None:
        yield second.trace, ""
    yield from ((run.trace, run.said) for run in flag_runs(recorded, model, example))


def _with_flag(lock: Lock, flag: str) -> Lock:
    """A lock that is met with another flag alone, which says so."""
    return lock if lock.reason == TAPS else replace(lock, reason=f"{lock.reason}, with {flag}")


def _lock_counted(labels: Labels, followers: Sequence[Follower]) -> None:
    """Lock averaged axes if they belong to a stream: channels that a layer reads and a later layer adds to again.
    Cutting a stream cuts everything that reads it, and each of its normalisations would need a fixed count. Channels
    inside a block (those of a gate and its operand, the heads of queries and keys) are not a stream. With `across_norm`
    a stream is cut anyway, and its means are those of the remaining channels.
    """
    counted = [each for follower in followers for each in follower.counted if not each.anywhere]
    if not counted:
        return
    roots = labels.without_locks()
    streams = np.zeros(labels.count, bool)
    for follower in followers:
        streams |= _streams(follower, roots)
    for follower in followers:
        crossing = [
            each
            for each in follower.counted
            if follower.across_norm and not each.anywhere and streams[roots[each.labels]].any()
        ]
        follower.crossed += [(each.op.name, each.op.path) for each in crossing]
        follower.counted = [each for each in follower.counted if each not in crossing]
        counted = [each for each in counted if each not in crossing]
    for each in counted:
        if streams[roots[each.labels]].any():
            labels.op, labels.operator, labels.path = each.op.index, each.op.name, each.op.path
            labels.lock(each.labels, each.reason)
    labels.op, labels.operator, labels.path = -1, "", ""
    # the earliest is the one reported
    labels.locks.sort(key=lambda lock: lock.op if lock.op >= 0 else math.inf)


def _streams(follower: Follower, roots: np.ndarray) -> np.ndarray:
    """One flag for each class of labels: whether it is an output of a layer after one that reads it, or of the same
    layer.
    """
    entered = marked(roots.size, follower.entered)
    taken_in, put_out = np.full(roots.size, np.iinfo(int).max), np.full(roots.size, -1)
    for op in follower.trace.ops:
        weights = [ref for ref in op.refs() if ref.id in follower.plain and len(ref.shape) > 1]
        for part in (part for ref in weights if op.name in LAYERS for part in follower.of(ref).fields):
            found = roots[part.labels.reshape(-1)]
            if entered[part.labels].any():
                taken_in[found] = np.minimum(taken_in[found], op.index)
            else:
                put_out[found] = op.index
    return put_out >= taken_in


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
    followers = (main, *more)
    axes = parameter_axes(recorded.parameters, followers, labels.count)
    groups = collect(axes, followers, classes) if axes else ()
    slots = {(axis.ref.name, axis.axis): axis.labels for axis in axes}
    return Structure(recorded, main, labels, groups, slots, unused, more)
