"""From masks to the units that are removed, rounded to the widths asked for; and back to masks of everything removed.

>>> import torch
>>> from torch import nn
>>> from secateur.core.masks import Masks
>>> from secateur.structure.groups.couplings import analyse
>>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
>>> found = analyse(model, torch.zeros(1, 2))
>>> masks = Masks({"0.weight": torch.tensor([[True] * 2, [False] * 2, [True] * 2, [False] * 2])})
>>> dropped(found, masks, model, "union")[0].tolist()
[False, True, False, True]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.errors import MaskMismatchError
from secateur.execution.fast_copy import tensors_of
from secateur.structure.groups.couplings import Group, Slot, Structure

__all__ = ["dropped", "dropped_lines", "extended", "rounded", "staying"]


def dropped_lines(structure: Structure, masks: Masks) -> dict[tuple[str, int], np.ndarray]:
    """For every masked parameter axis, the positions that are dropped whole."""
    masks = _first_names(structure, masks)
    found = {}
    for name, axis in structure.slots:
        if name not in masks:
            continue
        own = masks.lines(name)
        if own is None:
            found[name, axis] = ~_any_along(masks[name].cpu().numpy(), axis)
        elif any(other != axis and not bool(line.any()) for other, line in own.axes.items()):
            found[name, axis] = np.ones(own.shape[axis], bool)
        elif axis in own.axes:
            found[name, axis] = ~own.axes[axis].cpu().numpy()
        else:
            found[name, axis] = np.zeros(own.shape[axis], bool)
    return found


def _any_along(mask: np.ndarray, axis: int) -> np.ndarray:
    """Whether anything is True at each position of an axis; rows are joined first, eight flags at a time."""
    size = mask.shape[axis]
    before = mask.reshape(int(np.prod(mask.shape[:axis])), -1)
    line = before[0] if before.shape[0] == 1 else np.bitwise_or.reduce(_words(before), axis=0).view(bool)
    return np.asarray(_words(line.reshape(size, -1)).any(axis=1))


def _words(flags: np.ndarray) -> np.ndarray:
    """Rows of flags as rows of whole words, where they divide into such."""
    whole = flags.flags.c_contiguous and flags.shape[1] % 8 == 0 and flags.size > 0
    return flags.view(np.uint64) if whole else flags


def dropped(
    structure: Structure,
    masks: Masks,
    model: nn.Module,
    coupling: str,
    lines: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """For every group, the units that the masks drop; `lines` are those of `dropped_lines`, where known."""
    lines = dropped_lines(structure, masks) if lines is None else lines
    unmasked = structure.follower.unmasked
    lines = {place: line for place, line in lines.items() if place not in unmasked} if unmasked else lines
    found = {}
    for group in structure.groups:
        votes = {role: _votes(group, role, lines) for role in ("out", "in")}
        if coupling == "coupled":
            _agree(group, lines)
        gone = np.zeros(group.count, bool)
        for role, bits in votes.items():
            slots = [s for s in group.slots if s.role == role and (s.name, s.axis) not in unmasked]
            if slots and len(bits) == len(slots):
                gone |= np.logical_and.reduce(bits)
        if not any(slot.role in ("out", "in") for slot in group.slots):
            bits = _votes(group, "along", lines)
            if bits:
                gone |= np.logical_and.reduce(bits)
        found[group.index] = gone
    return found


def _first_names(structure: Structure, masks: Masks) -> Masks:
    """Masks under the first name of tied parameters."""
    aliases = structure.trace.aliases
    if not any(name in aliases for name in masks):
        return masks
    renamed: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        first = aliases.get(name, name)
        renamed[first] = mask if first not in renamed else renamed[first] & mask
    return Masks(renamed)


def _votes(group: Group, role: str, lines: Mapping[tuple[str, int], np.ndarray]) -> list[np.ndarray]:
    return [
        lines[slot.name, slot.axis][slot.positions].all(axis=1)
        for slot in group.slots
        if slot.role == role and (slot.name, slot.axis) in lines
    ]


def _agree(group: Group, lines: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Raise where the masks of a group's members do not agree."""
    seen: tuple[Slot, np.ndarray] | None = None
    for slot in group.slots:
        if (slot.name, slot.axis) not in lines:
            continue
        line = lines[slot.name, slot.axis][slot.positions]
        if not (line.all(axis=1) == line.any(axis=1)).all() or (
            seen and not np.array_equal(line.all(1), seen[1])
        ):
            other = seen[0].name if seen else slot.name
            raise MaskMismatchError(
                f"masks of {slot.name!r} and {other!r} disagree on the {group.count} channels they share (group "
                f"{group.name!r}); prune with granularity='channel', or pass coupling='union' to remove only those "
                "that all members dropped"
            )
        seen = (slot, line.all(axis=1))


def rounded(
    structure: Structure, gone: Mapping[int, np.ndarray], round_to: int | None, at_least: int
) -> dict[int, np.ndarray]:
    """Bring units back, the earliest first, until every group keeps enough and its width is a multiple.

    Args:
        structure: The groups.
        gone: For each group one flag per unit: whether it is removed.
        round_to: Widths become a multiple of this.
        at_least: The least number of units of a group that remain.

    Returns:
        The flags, with fewer units removed.
    """
    found = {}
    for index, bits in gone.items():
        bits = bits.copy()
        left = int((~bits).sum())
        wanted = max(left, min(at_least, bits.size))
        if round_to and left < bits.size:
            wide = _width(structure.groups[index])
            while wanted < bits.size and (wanted * wide) % round_to:
                wanted += 1
        bits[np.flatnonzero(bits)[: wanted - left]] = False
        found[index] = bits
    return found


def _width(group: Group) -> int:
    """The number of positions that one unit takes on its output axis, or of a head that gets smaller."""
    if group.within:
        return group.within
    slot = next((slot for slot in group.slots if slot.role == "out"), group.slots[0])
    return slot.positions.shape[1]


def extended(
    structure: Structure,
    masks: Masks,
    alive: np.ndarray,
    model: nn.Module,
    lines: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> Masks:
    """The masks, and every slice of every parameter that is removed: batch norm, biases and consumers as well."""
    lines = lines or {}
    found: dict[str, torch.Tensor | Lines] = {name: masks.lines(name) or masks[name] for name in masks}
    parameters = tensors_of(model)
    for name, axes in structure.keep_of(alive).items():
        parameter = parameters[name]
        if not isinstance(parameter, nn.Parameter):
            continue
        if name in found and all(
            (name, axis) in lines and lines[name, axis][~alive[structure.slots[name, axis]]].all()
            for axis in axes
        ):
            continue  # the masks drop all of it already
        stays = {}
        for axis, kept in axes.items():
            if (name, axis) not in structure.follower.unmasked:
                line = torch.zeros(parameter.shape[axis], dtype=torch.bool)
                line[torch.from_numpy(kept)] = True
                stays[axis] = line.to(parameter.device)
        mask = found.get(name)
        if isinstance(mask, torch.Tensor):
            found[name] = (
                mask & Lines(stays, tuple(parameter.shape)).mask().to(mask.device) if stays else mask
            )
            continue
        for axis, line in () if mask is None else mask.axes.items():
            stays[axis] = stays[axis] & line.to(parameter.device) if axis in stays else line
        found[name] = Lines(stays, tuple(parameter.shape))
    return Masks(found)


def staying(
    structure: Structure, gone: dict[int, np.ndarray], alike: Collection[str], uncut: Collection[str]
) -> dict[int, np.ndarray]:
    """What is removed, without what stays for the sake of some modules whose forwards have hard-coded widths.

    Args:
        structure: The structure of the model.
        gone: For every group, the units that are removed.
        alike: Modules in which groups along one axis of a tensor keep the same number of units: an axis that the
            forward splits into pieces of one size.
        uncut: Modules whose own layers keep all their units.
    """
    if not alike:
        return gone
    found = dict(gone)
    tied: dict[tuple[str, int, int], list[Group]] = {}
    for group in structure.groups:
        for slot in group.slots:
            if any(slot.name.startswith(f"{path}." if path else "") for path in uncut):
                found[group.index] = np.zeros(group.count, bool)
            if any(slot.name.startswith(f"{path}." if path else "") for path in alike):
                tied.setdefault((slot.name, slot.axis, group.count), []).append(group)
    for groups in tied.values():
        least = min(int(found[group.index].sum()) for group in groups)
        for group in groups:
            bits = found[group.index].copy()
            bits[np.flatnonzero(bits)[least:]] = False
            found[group.index] = bits
    return found
