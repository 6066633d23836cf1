"""`ScoredUnits`: the units of a model with the score of each, and the masks already in force. `prune` and `scan` both
use it: `scoring` turns the criterion's scores of weights into one score per unit; this value keeps them with the
earlier masks; `selection` passes them to a budget; `unit_masks` turns the budget's choice into one mask per tensor.

>>> import torch
>>> from torch import nn
>>> from secateur import criteria, granularity
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
>>> grain, criterion = granularity.registry.make("filter"), criteria.registry.make("l1")
>>> ScoredUnits(layer, criterion, grain, select(layer), Context()).scores["weight"].tolist()
[6.0, 2.0, 4.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.masks import Masks
from secateur.core.targets import Target
from secateur.core.units import AxisMember, Units
from secateur.criteria import Criterion
from secateur.errors import NothingToDoError
from secateur.granularity import Granularity
from secateur.pruning.scoring import unit_scores
from secateur.pruning.unit_masks import masked_view, scored_members

if TYPE_CHECKING:
    from secateur.pruning.cost import CostModel

__all__ = ["ScoredUnits"]


class ScoredUnits:
    """The units of one model, the score of each, and the masks already in force. Args:
        model: The model; it is never changed.
        criterion: Scores the weights.
        granularity: Divides the targets into units.
        targets: The weights that take part.
        context: The data, loss, example and seed of the call.
        start: Earlier masks: the units they removed stay removed.

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
        self.units = _that_can_be_scored(criterion, granularity.units(model, targets, context), targets)
        if not self.units:
            raise NothingToDoError(
                f"granularity {granularity} finds no unit to cut in {type(model).__name__}; use another one, or "
                "other layers (only, skip, parameters)"
            )
        self._view: nn.Module | None = None
        self.scores = self._scored()

    def restart(self, start: Masks | None) -> None:
        """Begin another round from these masks: scores that depend on removed weights are computed again."""
        self.start = start
        if self.criterion.rescore:
            self.scores = self._scored()

    def costs(self) -> CostModel:
        """The costs of choices among these units; made only for the budgets that ask, because its imports are slow."""
        from secateur.pruning.cost import CostModel

        return CostModel(self.model, self.units, self.context, self.start)

    def _scored(self) -> dict[str, torch.Tensor]:
        """The score of every unit, of the model as the masks leave it."""
        self._view = masked_view(self.model, self.start, self._view)
        return unit_scores(self.criterion, self._view or self.model, self.targets, self.units, self.context)


def _that_can_be_scored(
    criterion: Criterion, units: Sequence[Units], targets: Sequence[Target]
) -> tuple[Units, ...]:
    """The units, without those of bare parameters only, where a criterion scores layers' outputs. If none would remain,
    all are returned, and scoring raises with the reason.
    """
    if not (criterion.of_layers and criterion.of_outputs):
        return tuple(units)
    outputs = {target.name: target.out_axis for target in targets}
    kept = [
        each
        for each in units
        if any(
            not isinstance(member, AxisMember) or member.axis == outputs[member.name]
            for member in scored_members(each, outputs)
        )
    ]
    return tuple(kept or units)
