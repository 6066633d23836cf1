"""`masks_of` and `removed_units`: from a choice among units to masks of tensors, and back.

>>> import torch
>>> from torch import nn
>>> from secateur import granularity
>>> from secateur.core.context import Context
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> units = granularity.registry.make("filter").units(layer, select(layer), Context())
>>> masks_of(layer, units, {"weight": torch.tensor([True, False, True])}, None)["weight"][:, 0]
tensor([ True, False,  True])
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.core.units import AxisMember, Member, TensorMember, Units
from secateur.errors import MaskMismatchError
from secateur.execution.fast_copy import tensors_of

__all__ = ["masked_view", "masks_of", "removed_units", "scored_members"]


def masks_of(
    model: nn.Module, units: Sequence[Units], chosen: Mapping[str, torch.Tensor], start: Masks | None
) -> Masks:
    """One mask per tensor: a weight is kept if every list that it takes part in and the earlier masks keep it.

    Args:
        model: The model the masks are for.
        units: The lists that were chosen from.
        chosen: By the list's name one bit per unit, True for those that remain.
        start: The earlier masks.

    Raises:
        MaskMismatchError: A choice is not one bit per unit.
    """
    parameters = tensors_of(model)
    lines: dict[str, dict[int, torch.Tensor]] = {}
    loose: dict[str, torch.Tensor] = {}
    for each in units:
        keep = chosen[each.name]
        if keep.dtype != torch.bool or tuple(keep.shape) != (each.count,):
            raise MaskMismatchError(
                f"the budget's choice for {each.name!r}: expected one bit per unit ({each.count}), got "
                f"{tuple(keep.shape)} of {keep.dtype}"
            )
        for member in each.members:
            weight = parameters[member.name]
            stays, axes = keep.to(weight.device), lines.setdefault(member.name, {})
            if isinstance(member, AxisMember):
                line = member.line(stays, weight.shape[member.axis])
                axes[member.axis] = axes[member.axis] & line if member.axis in axes else line
            else:
                mask = member.scatter(stays, weight.shape)
                loose[member.name] = mask if member.name not in loose else loose[member.name] & mask
    found: dict[str, torch.Tensor | Lines] = {}
    for name, axes in lines.items():
        product = Lines(axes, tuple(parameters[name].shape))
        other = loose.get(name)
        found[name] = product if other is None else other & product.mask() if axes else other
    masks = Masks(found)
    return masks if start is None else masks.merge(start)


def removed_units(
    units: Units, masks: Masks | None, known: Collection[str], device: torch.device
) -> torch.Tensor | None:
    """Which units the masks removed: the masks cover all scored tensors of a unit and keep nothing of it.

    Args:
        units: The list of units.
        masks: The masks made before, if any.
        known: The names of the tensors that are scored.
        device: The device of the result.

    Returns:
        One bit per unit, or None where the masks do not cover the list.
    """
    members = scored_members(units, known)
    if masks is None or not all(member.name in masks for member in members):
        return None
    if all(isinstance(member, TensorMember) for member in members):
        kept = torch.zeros(units.count, dtype=torch.bool, device=device)
        for member in members:
            if isinstance(member, TensorMember) and bool(masks[member.name].any()):
                kept[member.unit] = True
        return ~kept
    left = [member.gather(masks[member.name]).to(device) for member in members]
    return ~torch.stack([bits[:, 0] if bits.shape[1] == 1 else bits.any(1) for bits in left]).any(0)


def scored_members(units: Units, known: Collection[str]) -> list[Member]:
    """The members whose weights enter the score of a unit."""
    return [member for member in units.members if member.scored and member.name in known]


def masked_view(model: nn.Module, masks: Masks | None, view: nn.Module | None) -> nn.Module | None:
    """A copy of the model with the masks applied, or None if the model itself is already masked.

    Args:
        model: The model; it is not changed.
        masks: What is removed from the copy.
        view: The copy of an earlier round, which is changed instead of a new one: masks only grow.
    """
    if masks is None:
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if view is None:
        if not any(
            bool((parameters[name][~mask.to(parameters[name].device)] != 0).any())
            for name, mask in masks.items()
        ):
            return None
        view = copy.deepcopy(model)
    masks.apply_(view)  # masks only grow, so applying the new ones is enough
    return view
