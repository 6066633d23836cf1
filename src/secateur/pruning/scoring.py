"""`unit_scores`: one score per unit, from the weights themselves or from the criterion's score of each weight.

>>> import torch
>>> from torch import nn
>>> from secateur import criteria, granularity
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
>>> targets, context = select(layer), Context()
>>> units = granularity.registry.make("filter").units(layer, targets, context)
>>> unit_scores(criteria.registry.make("l1"), layer, targets, units, context)["weight"].tolist()
[6.0, 2.0, 4.0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores, check_finite
from secateur.core.targets import Target
from secateur.core.units import AxisMember, Member, TensorMember, Units
from secateur.criteria import Criterion
from secateur.errors import NonFiniteError, OptionError
from secateur.execution.fast_copy import tensors_of
from secateur.pruning.unit_masks import scored_members

__all__ = ["unit_scores"]


def unit_scores(
    criterion: Criterion,
    model: nn.Module,
    targets: Sequence[Target],
    units: Sequence[Units],
    context: Context,
) -> dict[str, torch.Tensor]:
    """The score of every unit of every list, by the list's name.

    Args:
        criterion: Scores the weights.
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
    """The source of the scores of units: the weights themselves (`direct`), or the score of each weight."""

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
        for member in scored_members(units, self.tensors):
            if not isinstance(member, AxisMember):
                return None
            key = member.name, member.axis
            if key not in self.slices:
                line = self.criterion.of_lines(self.tensors[member.name], member.axis)
                if line is None:
                    return None
                self.slices[key] = line
            line = self.slices[key]
            parts.append(line.take(member.indices.to(line.device)))
        if not parts:
            return None
        device = parts[0].device
        whole = parts[0] if len(parts) == 1 else torch.cat([part.to(device) for part in parts], dim=1)
        scores = self.criterion.joined(whole)
        return scores if bool(torch.isfinite(scores.sum())) else None

    def from_elements(self, units: Units) -> torch.Tensor:
        """The scores of units from their weights, or from their weights' scores, laid out as [units, elements]."""
        members = self._members(units)
        whole_tensors = [member for member in members if isinstance(member, TensorMember)]
        if members and len(whole_tensors) == len(members):
            return self._of_tensors(units, whole_tensors)
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

    def _members(self, units: Units) -> list[Member]:
        """The members that are scored; those along the axis of outputs where the criterion scores outputs."""
        members = scored_members(units, self.tensors)
        if not self.criterion.of_outputs:
            return members
        outputs = {target.name: target.out_axis for target in self.targets}
        return [m for m in members if not isinstance(m, AxisMember) or m.axis == outputs[m.name]]

    def _of_tensors(self, units: Units, members: Sequence[TensorMember]) -> torch.Tensor:
        """The scores of units that own whole tensors, one unit after the other."""
        rows = []
        for unit in range(units.count):
            mine = [self.tensors[m.name].reshape(1, -1) for m in members if m.unit == unit]
            rows.append(torch.cat([row.to(mine[0].device) for row in mine], dim=1))
        if self.criterion.among:
            # units share no position, so each is one norm on an axis that no other unit has
            sizes = [torch.linalg.vector_norm(row.float()).to(rows[0].device) for row in rows]
            found = self._reduced(torch.diag(torch.stack(sizes)), units)
        else:
            alone = replace(units, count=1)
            found = torch.cat([self._reduced(row, alone).to(rows[0].device) for row in rows])
        self._check(units, found)
        return found

    def _reduced(self, whole: torch.Tensor, units: Units) -> torch.Tensor:
        """The score of each unit from its weights or scores, [units, elements] -> [units]."""
        if whole.dtype in (torch.float16, torch.bfloat16) and whole.shape[1] > 1:
            whole = whole.float()  # a sum in half precision overflows, or makes false ties
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
