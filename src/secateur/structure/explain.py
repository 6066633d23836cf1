"""`explained`: the `Explanation` of a structure: what can be cut, what is locked and why, what a budget does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from torch import nn

from secateur.core.targets import select
from secateur.core.wrapped_layers import adapters_of
from secateur.errors import NothingToDoError, OptionError
from secateur.structure.depth.blocks import NORMALISED, find_blocks
from secateur.structure.explanation import Explanation, GroupRow, LayerRow, LockRow
from secateur.structure.groups.couplings import Structure
from secateur.structure.groups.grouping import Group, marked
from secateur.structure.groups.rules.conv import TAPS

__all__ = ["cut_by_default", "default_names", "explained", "layer_names", "layer_rows", "own_weights"]


def default_names(structure: Structure, model: nn.Module) -> frozenset[str]:
    """The parameters that a call of `prune` which names none would cut, tied ones under their first name."""
    names = layer_names(structure, model)
    return names | own_weights(structure, structure.groups, names, adapters_of(model))


def layer_names(structure: Structure, model: nn.Module) -> frozenset[str]:
    """The weights of layers that are known as such without a forward, tied ones under their first name."""
    try:
        targets = select(model)
    except NothingToDoError:
        return frozenset()
    aliases = structure.trace.aliases
    return frozenset(aliases.get(target.name, target.name) for target in targets)


def own_weights(
    structure: Structure, groups: Iterable[Group], names: Collection[str], adapters: Collection[str] = ()
) -> frozenset[str]:
    """The parameters that products and convolutions take as weights, in groups that no known layer is part of.

    So a module's own parameter is pruned like a layer's weight: by the operator that uses it.

    Args:
        structure: The structure of the model.
        groups: The groups to consider.
        names: The weights of known layers.
        adapters: Parameters that were added to layers, which are left out.
    """
    return frozenset(
        slot.name
        for group in groups
        if group.count > 1 and not any(slot.name in names for slot in group.slots)
        for slot in group.slots
        if slot.name not in adapters
        and (slot.name in structure.weights or (slot.role == "out" and _by_scale(structure, group)))
    )


def _by_scale(structure: Structure, group: Group) -> bool:
    """Whether a weight norm's scales mask the group's channels: then they give the channels' scores."""
    return any((slot.name, slot.axis) in structure.follower.unmasked for slot in group.slots)


def cut_by_default(group: Group, names: Collection[str]) -> bool:
    """Whether such a call cuts a group: of several units, in which one of these parameters is."""
    return group.count > 1 and any(slot.name in names for slot in group.slots)


def explained(
    structure: Structure, model: nn.Module, budget: float | None, names: Collection[str]
) -> Explanation:
    """The explanation of a structure.

    Args:
        structure: The groups and locks.
        model: The model.
        budget: The share of each group to remove; None leaves this part out.
        names: The parameters that are cut by default.

    Raises:
        OptionError: The budget is not a share.
    """
    if budget is not None and not 0 <= budget < 1:
        raise OptionError(f"budget: expected the share to remove, 0 <= share < 1, got {budget!r}")
    total = sum(parameter.numel() for parameter in model.parameters())
    macs = structure.macs()
    rows, keep, normed = [], {}, _sizes_of_norm_groups(structure)
    for group in structure.groups:
        by_name = not cut_by_default(group, names)
        go = 0 if budget is None or by_name else min(round(budget * group.count), group.count - 1)
        bits = np.ones(group.count, bool)
        bits[group.count - go :] = False
        keep[group.index] = bits
        members = tuple((slot.name, slot.axis, slot.role, slot.positions.shape[1]) for slot in group.slots)
        carried, named = structure.macs_through(group.index), by_name and group.count > 1
        size = _norm_group(group, normed)
        rows.append(GroupRow(group.name, group.count, members, group.parameters, carried, go, named, size))
    gone_parameters = gone_macs = 0
    if budget is not None:
        alive = structure.alive({i: b for i, b in keep.items() if not b.all()})
        gone_macs = macs - structure.macs(alive)
        kept = structure.keep_of(alive)
        for name, parameter in model.named_parameters():
            if name in kept:
                left = 1
                for axis, size in enumerate(parameter.shape):
                    left *= len(kept[name].get(axis, range(size)))
                gone_parameters += parameter.numel() - left
    return Explanation(
        type(model).__name__,
        total,
        macs,
        tuple(rows),
        _lock_rows(structure),
        structure.untouched,
        _prunable(structure, model),
        budget,
        gone_parameters,
        gone_macs,
    )


def _sizes_of_norm_groups(structure: Structure) -> dict[str, int]:
    """The channels of one group, by the weights and biases of norms over groups of channels."""
    found: dict[str, int] = {}
    for op in structure.trace.ops:
        if op.name in ("native_group_norm", "group_norm"):
            groups = op.arg(6, "group") if op.name == "native_group_norm" else op.arg(1, "num_groups")
            found |= {ref.name: ref.shape[0] // int(groups) for ref in op.refs() if ref.name}
    return found


def _norm_group(group: Group, sizes: Mapping[str, int]) -> int:
    """How many channels a unit takes, where it is one group of a norm that has several; else 0."""
    taken = {
        size
        for slot in group.slots
        if (size := int(slot.positions.shape[1])) > 1 and sizes.get(slot.name) == size
    }
    return max(taken, default=0)


def layer_rows(model: nn.Module, example: object) -> tuple[LayerRow, ...]:
    """The blocks of a model that can be removed whole, and those that cannot and why.

    Args:
        model: The model.
        example: What it is called with.
    """
    found = find_blocks(model, example)

    def size(path: str) -> int:
        return sum(parameter.numel() for parameter in model.get_submodule(path).parameters())

    rows = [LayerRow(each.path, size(each.path), "", each.kind == NORMALISED) for each in found.found]
    return (*rows, *(LayerRow(each.path, size(each.path), each.reason) for each in found.refused))


def _prunable(structure: Structure, model: nn.Module) -> float:
    """The share of parameters with at least one axis that can be cut."""
    classes, grouped = structure.classes, _grouped(structure)
    total, free = 0, 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if name not in structure.trace.parameters or not parameter.numel():
            continue
        locked = 1.0
        for axis in range(parameter.dim()):
            labels = structure.slots.get((name, axis))
            if labels is not None:
                locked *= float((~grouped[classes[labels]]).mean())
        free += parameter.numel() * (1 - locked)
    return free / total if total else 0.0


def _grouped(structure: Structure) -> np.ndarray:
    """One flag per class of labels: whether a group has it."""
    return marked(structure.labels.count, (group.classes for group in structure.groups))


_MET = "summed over with another computed tensor; granularity 'head_size' removes these positions"
_UNREAD = "no layer takes these positions in"


def _unread_rows(structure: Structure) -> list[LockRow]:
    """Parameter axes that are free, and in no group: no layer has the positions as its inputs."""
    classes, grouped = structure.classes, _grouped(structure)
    met = {int(each): op for labels, op in structure.follower.met for each in np.unique(classes[labels])}
    use = {ref.name: op for op in reversed(structure.trace.ops) for ref in op.refs() if ref.name}
    held: dict[tuple[str, str, str], dict[tuple[str, int], int]] = {}
    for (name, axis), own in structure.slots.items():
        if structure.trace.parameters[name].role != "parameter":
            continue
        free = classes[own]
        free = free[(free > 0) & ~grouped[free]]
        if not free.size:
            continue
        meeting = met.get(int(free[0]))
        op = meeting or use.get(name)
        key = (_MET if meeting else _UNREAD, op.name if op else "", op.path if op else "")
        held.setdefault(key, {})[name, axis] = int(free.size)
    return [LockRow(*key, sum(axes.values()), tuple(axes)) for key, axes in held.items()]


def _lock_rows(structure: Structure) -> tuple[LockRow, ...]:
    """Parameter axes that are locked, by the earliest reason that reached them, and those that no layer takes in."""
    labels = structure.labels
    linked = labels.without_locks()
    reason_of = np.full(labels.count, -1)
    for index in range(len(labels.locks) - 1, -1, -1):
        reason_of[linked[labels.locks[index].labels]] = index
    taps = marked(labels.count, (lock.labels for lock in labels.locks if lock.reason == TAPS))
    held: dict[tuple[str, str, str], dict[tuple[str, int], int]] = {}
    for (name, axis), own in structure.slots.items():
        if structure.trace.parameters[name].role != "parameter":
            continue
        locked = own[structure.classes[own] == 0]
        if not locked.size or taps[locked].all():  # an axis that holds no channels, whatever else locks it
            continue
        which, counts = np.unique(reason_of[linked[locked]], return_counts=True)
        for index, count in zip(which, counts):
            lock = labels.locks[index] if index >= 0 else None
            if lock is not None and lock.reason == TAPS:
                continue  # an axis that holds no channels
            key = (
                (lock.reason, lock.operator, lock.path)
                if lock
                else ("tied to an axis that is locked", "", "")
            )
            held.setdefault(key, {})[name, axis] = int(count)
    rows = [LockRow(*key, sum(axes.values()), tuple(axes)) for key, axes in held.items()]
    return (*rows, *_unread_rows(structure))
