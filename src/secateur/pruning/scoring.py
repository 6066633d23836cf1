"""`ScoredUnits`: the units of a model with their scores; it shows them to a budget and turns its choice into masks.

`prune` and `scan` both go this way: a criterion scores the weights, the weights' scores become one score per unit, a
budget chooses among the units (`selection`), and its choice becomes one mask per tensor (`masks`).

>>> import torch
>>> from torch import nn
>>> from secateur import budget, criteria, granularity
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
>>> grain, criterion = granularity.registry.make("filter"), criteria.registry.make("l1")
>>> scored = ScoredUnits(layer, criterion, grain, select(layer), Context())
>>> scored.scores["weight"].tolist()
[6.0, 2.0, 4.0]
>>> scored.masks(budget.registry.make(0.4).choose(scored.selection()))["weight"][:, 0]
tensor([ True, False,  True])
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.budget import Candidates, Limits, Selection, floors
from secateur.core.context import Context
from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.core.scores import Scores, check_finite
from secateur.core.targets import Target
from secateur.core.units import AxisMember, Member, Units
from secateur.criteria import Criterion
from secateur.errors import MaskMismatchError, NonFiniteError, NothingToDoError, OptionError
from secateur.execution.fast_copy import tensors_of
from secateur.granularity import Granularity

if TYPE_CHECKING:
    from secateur.pruning.cost import CostModel

__all__ = ["ScoredUnits", "masks_of", "unit_scores"]


class ScoredUnits:
    """The units of one model, the score of each, and the masks that hold already.

    Args:
        model: The model; it is never changed.
        criterion: What scores the weights.
        granularity: What cuts the targets into units.
        targets: The weights that take part.
        context: The data, loss, example and seed of the call.
        start: Masks made before: the units they removed stay removed.

    Raises:
        NothingToDoError: The granularity finds no unit in the targets.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        granularity: Granularity,
        targets: Sequence[Target],
        context: Context,
        start: Masks | None = None,
    ):
        self.model = model
        self.criterion = criterion
        self.targets = targets
        self.context = context
        self.start = start
        self.units = granularity.units(model, targets, context)
        if not self.units:
            raise NothingToDoError(
                f"granularity {granularity} finds no unit to cut in {type(model).__name__}; take another one, or "
                "other layers (only, skip, parameters)"
            )
        self._view: nn.Module | None = None
        self.scores = self._scored()

    def restart(self, start: Masks | None) -> None:
        """Begin another round from these masks: scores that depend on what is gone are made again."""
        self.start = start
        if self.criterion.rescore:
            self.scores = self._scored()

    def selection(self, at_least: Limits = None, at_most: Limits = None) -> Selection:
        """What a budget decides about: every list of units with its scores, its floor, and what is already gone.

        Args:
            at_least: How many units of every list must stay, or a table of patterns to such numbers.
            at_most: The largest share of its units that a list may lose, or a table of patterns to shares.
        """
        known = {target.name for target in self.targets}
        parameters = tensors_of(self.model)
        found = []
        for units in self.units:
            shapes = {member.name: tuple(parameters[member.name].shape) for member in units.members}
            found.append(Candidates(units, self.scores[units.name], self._gone(units, known), shapes=shapes))
        return floors(
            Selection(tuple(found), self.model, self.targets, self.context, self.costs), at_least, at_most
        )

    def masks(self, chosen: Mapping[str, torch.Tensor]) -> Masks:
        """One mask per tensor from one bit per unit of every list; what the masks before removed stays removed."""
        return masks_of(self.model, self.units, chosen, self.start)

    def masks_alone(self, units: Units, chosen: Mapping[str, torch.Tensor]) -> Masks:
        """The masks of a choice among the units of one list, all other lists left whole."""
        return masks_of(self.model, [units], chosen, None)

    def costs(self) -> CostModel:
        """What a choice among these units costs; made only for the budgets that ask, as it loads much."""
        from secateur.pruning.cost import CostModel

        return CostModel(self.model, self.units, self.context, self.start)

    def _scored(self) -> dict[str, torch.Tensor]:
        """The score of every unit, of the model as the masks leave it."""
        self._view = _masked_view(self.model, self.start, self._view)
        return unit_scores(self.criterion, self._view or self.model, self.targets, self.units, self.context)

    def _gone(self, units: Units, known: Collection[str]) -> torch.Tensor | None:
        """Which units the masks before removed: masks cover all scored tensors of a unit and keep nothing of it."""
        masks, members = self.start, _scored_members(units, known)
        if masks is None or not all(member.name in masks for member in members):
            return None
        device = self.scores[units.name].device
        left = [member.gather(masks[member.name]).to(device) for member in members]
        return ~torch.stack([bits[:, 0] if bits.shape[1] == 1 else bits.any(1) for bits in left]).any(0)


def unit_scores(
    criterion: Criterion,
    model: nn.Module,
    targets: Sequence[Target],
    units: Sequence[Units],
    context: Context,
) -> dict[str, torch.Tensor]:
    """The score of every unit of every list, by the list's name.

    Args:
        criterion: What scores the weights.
        model: The model the weights are read from.
        targets: The weights that are scored.
        units: The lists of units.
        context: The data, loss, example and seed of the call.

    Raises:
        NonFiniteError: A weight or a score is NaN or infinite.
        OptionError: The criterion gives scores of another shape than the weights.
    """
    source = _Source.of(criterion, model, targets, context)
    found = {}
    for each in units:
        scores = source.from_slices(each)
        if scores is None:
            scores = source.from_elements(each)
        found[each.name] = scores
    return found


@dataclass
class _Source:
    """Where the scores of units come from: the weights themselves (`direct`), or the scores of each weight."""

    criterion: Criterion
    model: nn.Module
    targets: Sequence[Target]
    tensors: Mapping[str, torch.Tensor]
    direct: bool
    slices: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)  # by tensor and axis

    @classmethod
    def of(
        cls, criterion: Criterion, model: nn.Module, targets: Sequence[Target], context: Context
    ) -> _Source:
        """The weights, where the criterion scores a unit from its own weights alone; else its scores of them."""
        direct = type(criterion).of_weights is not Criterion.of_weights
        tensors: Mapping[str, torch.Tensor]
        if direct:
            parameters = tensors_of(model)
            tensors = {target.name: parameters[target.name].detach() for target in targets}
        else:
            tensors = _weight_scores(criterion, model, targets, context)
        return cls(criterion, model, targets, tensors, direct)

    def from_slices(self, units: Units) -> torch.Tensor | None:
        """The scores of units made of whole slices, from the score of each slice; None where that is not possible."""
        by_slice = type(self.criterion).of_lines is not Criterion.of_lines
        if not (self.direct and units.combine == "sum" and by_slice):
            return None
        parts = []
        for member in _scored_members(units, self.tensors):
            if not isinstance(member, AxisMember):
                return None
            key = member.name, member.axis
            if key not in self.slices:
                line = self.criterion.of_lines(self.tensors[member.name], member.axis)
                if line is None:
                    return None
                self.slices[key] = line
            line = self.slices[key]
            parts.append(line[member.indices.to(line.device)])
        if not parts:
            return None
        device = parts[0].device
        whole = parts[0] if len(parts) == 1 else torch.cat([part.to(device) for part in parts], dim=1)
        scores = self.criterion.joined(whole)
        return scores if bool(torch.isfinite(scores.sum())) else None

    def from_elements(self, units: Units) -> torch.Tensor:
        """The scores of units from their weights, or from their weights' scores, laid out as [units, elements]."""
        members = _scored_members(units, self.tensors)
        if self.criterion.of_outputs:
            outputs = {target.name: target.out_axis for target in self.targets}
            members = [m for m in members if not isinstance(m, AxisMember) or m.axis == outputs[m.name]]
        rows = [member.gather(self.tensors[member.name]) for member in members]
        if not rows:
            raise OptionError(
                f"criterion {self.criterion} scores none of the tensors of {units.name!r}; leave it out with skip="
            )
        if units.combine != "sum" and len(rows) > 1:
            each = [self._reduced(row, units).to(rows[0].device) for row in rows]
            stacked = torch.stack([row.float() if row.dtype.itemsize < 4 else row for row in each])
            scores = stacked.mean(dim=0) if units.combine == "mean" else stacked.amax(dim=0)
        else:
            whole = rows[0] if len(rows) == 1 else torch.cat([row.to(rows[0].device) for row in rows], dim=1)
            scores = self._reduced(whole, units)
        if self.direct or len(rows) > 1 or rows[0].shape[1] > 1:
            self._check(units, scores)
        return scores

    def _reduced(self, whole: torch.Tensor, units: Units) -> torch.Tensor:
        """The score of each unit from its weights or scores, [units, elements] -> [units]."""
        if whole.dtype in (torch.float16, torch.bfloat16) and whole.shape[1] > 1:
            whole = whole.float()  # a sum in half precision overflows, or makes ties that are none
        scores = self.criterion.of_weights(whole) if self.direct else self.criterion.reduce(whole)
        if scores is None or tuple(scores.shape) != (units.count,):
            got = None if scores is None else tuple(scores.shape)
            raise OptionError(
                f"criterion {self.criterion} gave {got} values for the {units.count} units of {units.name!r}; reduce "
                "turns [units, elements] into [units]"
            )
        return scores

    def _check(self, units: Units, scores: torch.Tensor) -> None:
        """Raise unless every score is finite; where a weight is not, the error names it."""
        try:
            check_finite(f"scores of the units of {units.name!r}", scores, "use a criterion of smaller range")
        except NonFiniteError:
            _check_weights(self.model, self.targets)
            raise


def _weight_scores(
    criterion: Criterion, model: nn.Module, targets: Sequence[Target], context: Context
) -> Scores:
    """The criterion's scores of the weights, checked against the targets."""
    try:
        with torch.enable_grad():
            scores = criterion.scores(model, targets, context)
    except NonFiniteError:
        _check_weights(model, targets)
        raise
    for target in targets:
        if target.name in scores and tuple(scores[target.name].shape) != target.shape:
            raise OptionError(
                f"criterion {criterion} gave {target.name!r} scores of shape {tuple(scores[target.name].shape)}, "
                f"expected {target.shape}: one score per weight"
            )
    return scores


def _check_weights(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise a `NonFiniteError` that names the first weight with a NaN or an infinity in it."""
    for target in targets:
        check_finite(
            f"weight {target.name!r}",
            target.of(model),
            "a weight without a value cannot be ranked; load a sound checkpoint",
        )


def _scored_members(units: Units, known: Collection[str]) -> list[Member]:
    """The members whose weights the score of a unit is made of."""
    return [member for member in units.members if member.scored and member.name in known]


def masks_of(
    model: nn.Module, units: Sequence[Units], chosen: Mapping[str, torch.Tensor], start: Masks | None
) -> Masks:
    """One mask per tensor: a weight stays where every list that it takes part in keeps it, and the masks before do.

    Args:
        model: The model the masks are for.
        units: The lists that were chosen from.
        chosen: By the list's name one bit per unit, True for those that stay.
        start: The masks before.

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


def _masked_view(model: nn.Module, masks: Masks | None, view: nn.Module | None) -> nn.Module | None:
    """A copy of the model with the masks applied, or None where the model itself already looks like that."""
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
