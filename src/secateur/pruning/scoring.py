"""From scores to masks: the three moves that `prune` and `scan` share.

`worth_of` asks a criterion what every unit is worth, `pools_of` puts that before a budget, and `masks_of` turns the
budget's answer into one mask per tensor.

>>> import torch
>>> from torch import nn
>>> from secateur import budget, criteria, granularity
>>> from secateur.core.context import Context
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
>>> targets, context = select(layer), Context()
>>> pieces = granularity.registry.make("filter").units(layer, targets, context)
>>> worth = worth_of(criteria.registry.make("l1"), layer, targets, pieces, context)
>>> worth["weight"].tolist()
[6.0, 2.0, 4.0]
>>> contest = budget.Selection(pools_of(layer, pieces, worth, targets, None), layer, targets, context)
>>> masks_of(layer, pieces, budget.registry.make(0.4).choose(contest), None)["weight"][:, 0]
tensor([ True, False,  True])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur import criteria
from secateur.budget import Candidates
from secateur.core.context import Context
from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.core.scores import Scores, check_finite
from secateur.core.targets import Target
from secateur.core.units import AxisMember, Member, Units
from secateur.errors import MaskMismatchError, NonFiniteError, OptionError
from secateur.execution.fast_copy import tensors_of

__all__ = ["masks_of", "pools_of", "worth_of"]


def _scores(
    rule: criteria.Criterion, model: nn.Module, targets: Sequence[Target], context: Context
) -> Scores:
    """The criterion's scores, checked against the targets."""
    try:
        with torch.enable_grad():
            scores = rule.scores(model, targets, context)
    except NonFiniteError:
        _check_weights(model, targets)
        raise
    for target in targets:
        if target.name in scores and tuple(scores[target.name].shape) != target.shape:
            raise OptionError(
                f"criterion {rule} gave {target.name!r} scores of shape {tuple(scores[target.name].shape)}, "
                f"expected {target.shape}: one score per weight"
            )
    return scores


def _check_weights(model: nn.Module, targets: Sequence[Target]) -> None:
    for target in targets:
        check_finite(
            f"weight {target.name!r}",
            target.of(model),
            "a weight without a value cannot be ranked; load a sound checkpoint",
        )


def worth_of(
    rule: criteria.Criterion,
    model: nn.Module,
    targets: Sequence[Target],
    pieces: Sequence[Units],
    context: Context,
) -> dict[str, torch.Tensor]:
    """What every unit of every list is worth, by the list's name."""
    direct = type(rule).of_weights is not criteria.Criterion.of_weights
    tensors: Mapping[str, torch.Tensor]
    if direct:
        parameters = tensors_of(model)
        tensors = {target.name: parameters[target.name].detach() for target in targets}
    else:
        tensors = _scores(rule, model, targets, context)
    found = {}
    lines: dict[tuple[str, int], torch.Tensor] = {}
    for units in pieces:
        if direct and units.combine == "sum" and type(rule).of_lines is not criteria.Criterion.of_lines:
            worth = _from_lines(rule, units, tensors, lines)
            if worth is not None:
                found[units.name] = worth
                continue
        rows = [member.gather(tensors[member.name]) for member in _scored(units, tensors)]
        if not rows:
            raise OptionError(f"criterion {rule} scores none of the tensors of {units.name!r}")
        if units.combine != "sum" and len(rows) > 1:
            each = [_reduced(rule, row, units, direct).to(rows[0].device) for row in rows]
            stacked = torch.stack([row.float() if row.dtype.itemsize < 4 else row for row in each])
            worth = stacked.mean(dim=0) if units.combine == "mean" else stacked.amax(dim=0)
        else:
            whole = rows[0] if len(rows) == 1 else torch.cat([row.to(rows[0].device) for row in rows], dim=1)
            worth = _reduced(rule, whole, units, direct)
        if direct or len(rows) > 1 or rows[0].shape[1] > 1:
            try:
                check_finite(
                    f"worth of the units of {units.name!r}", worth, "use a criterion of smaller range"
                )
            except NonFiniteError:
                _check_weights(model, targets)
                raise
        found[units.name] = worth
    return found


def _from_lines(
    rule: criteria.Criterion,
    units: Units,
    tensors: Mapping[str, torch.Tensor],
    lines: dict[tuple[str, int], torch.Tensor],
) -> torch.Tensor | None:
    """The worth of units made of slices, from what each slice is worth; None where that is not the way."""
    parts = []
    for member in _scored(units, tensors):
        if not isinstance(member, AxisMember):
            return None
        key = member.name, member.axis
        if key not in lines:
            line = rule.of_lines(tensors[member.name], member.axis)
            if line is None:
                return None
            lines[key] = line
        line = lines[key]
        parts.append(line[member.indices.to(line.device)])
    if not parts:
        return None
    device = parts[0].device
    worth = rule.joined(
        parts[0] if len(parts) == 1 else torch.cat([part.to(device) for part in parts], dim=1)
    )
    return worth if bool(torch.isfinite(worth.sum())) else None


def _reduced(rule: criteria.Criterion, whole: torch.Tensor, units: Units, direct: bool) -> torch.Tensor:
    """The worth of each unit from its weights or scores, [units, elements] -> [units]."""
    if whole.dtype in (torch.float16, torch.bfloat16) and whole.shape[1] > 1:
        whole = whole.float()  # a sum in half precision overflows, or makes ties that are none
    worth = rule.of_weights(whole) if direct else rule.reduce(whole)
    if worth is None or tuple(worth.shape) != (units.count,):
        got = None if worth is None else tuple(worth.shape)
        raise OptionError(
            f"criterion {rule} gave {got} values for the {units.count} units of {units.name!r}; reduce "
            "turns [units, elements] into [units]"
        )
    return worth


def _scored(units: Units, known: Mapping[str, Any]) -> list[Member]:
    """The members whose weights a unit's worth is made of."""
    return [member for member in units.members if member.scored and member.name in known]


def pools_of(
    model: nn.Module,
    pieces: Sequence[Units],
    worth: Mapping[str, torch.Tensor],
    targets: Sequence[Target],
    masks: Masks | None,
) -> tuple[Candidates, ...]:
    """The lists as a budget sees them: the worth of every unit, and which are already gone."""
    names = {target.name: target for target in targets}
    parameters = tensors_of(model)
    pools = []
    for units in pieces:
        values, gone = worth[units.name], None
        members = _scored(units, names)
        # A unit is gone when masks cover all of its scored tensors and keep nothing of it in any.
        if masks is not None and all(member.name in masks for member in members):
            left = [member.gather(masks[member.name]).to(values.device) for member in members]
            gone = ~torch.stack([bits[:, 0] if bits.shape[1] == 1 else bits.any(1) for bits in left]).any(0)
        shapes = {member.name: tuple(parameters[member.name].shape) for member in units.members}
        pools.append(Candidates(units, values, gone, shapes=shapes))
    return tuple(pools)


def masks_of(
    model: nn.Module, pieces: Sequence[Units], chosen: Mapping[str, torch.Tensor], start: Masks | None
) -> Masks:
    """One mask per tensor: what every list it takes part in keeps, and the masks before."""
    parameters = tensors_of(model)
    lines: dict[str, dict[int, torch.Tensor]] = {}
    loose: dict[str, torch.Tensor] = {}
    for units in pieces:
        keep = chosen[units.name]
        if keep.dtype != torch.bool or tuple(keep.shape) != (units.count,):
            raise MaskMismatchError(
                f"the budget's choice for {units.name!r} is not one bit per unit ({units.count})"
            )
        for member in units.members:
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
