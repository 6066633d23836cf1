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
from secateur.core.units import AxisMember, Units, one_of_each
from secateur.criteria import Criterion
from secateur.errors import NothingToDoError, OptionError
from secateur.granularity import Granularity, Mixed
from secateur.pruning.scoring import unit_scores
from secateur.pruning.unit_masks import masked_view, scored_members

if TYPE_CHECKING:
    from secateur.pruning.cost import CostModel

__all__ = ["ScoredUnits", "rules_of"]


class ScoredUnits:
    """The units of one model, the score of each, and the masks already in force.

    Args:
        model: The model; it is never changed.
        criterion: Scores the weights; of several granularities one for all, or one for each.
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
        criterion: Criterion | Sequence[Criterion],
        granularity: Granularity,
        targets: Sequence[Target],
        context: Context,
        start: Masks | None = None,
    ):
        self.model = model
        self.targets = targets
        self.context = context
        self.start = start
        pairs = rules_of(criterion, granularity)
        lists = one_of_each(
            _that_can_be_scored(rule, part.units(model, targets, context), targets) for rule, part in pairs
        )
        self._parts = [(rule, units) for (rule, _), units in zip(pairs, lists, strict=True)]
        self.units = tuple(units for part in lists for units in part)
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
        if any(rule.rescore for rule, _ in self._parts):
            self.scores = self._scored()

    def costs(self) -> CostModel:
        """The costs of choices among these units; made only for the budgets that ask, because its imports are slow."""
        from secateur.pruning.cost import CostModel

        return CostModel(self.model, self.units, self.context, self.start)

    def _scored(self) -> dict[str, torch.Tensor]:
        """The score of every unit, of the model as the masks leave it."""
        self._view = masked_view(self.model, self.start, self._view)
        found: dict[str, torch.Tensor] = {}
        for rule, units in _by_rule(self._parts):
            found |= unit_scores(rule, self._view or self.model, self.targets, units, self.context)
        return found


def _by_rule(
    parts: Sequence[tuple[Criterion, tuple[Units, ...]]],
) -> list[tuple[Criterion, tuple[Units, ...]]]:
    """The lists of each criterion, so that one that reads data reads it once for all of its lists."""
    found: list[tuple[Criterion, tuple[Units, ...]]] = []
    for rule, units in parts:
        place = next((i for i, (other, _) in enumerate(found) if other == rule), None)
        if place is None:
            found.append((rule, units))
        else:
            found[place] = (rule, (*found[place][1], *units))
    return found


def rules_of(
    criterion: Criterion | Sequence[Criterion], granularity: Granularity
) -> tuple[tuple[Criterion, Granularity], ...]:
    """Each granularity of a call with the criterion that scores its units.

    Args:
        criterion: One for all granularities, or one for each.
        granularity: One granularity, or several as one.

    Raises:
        OptionError: There are several criteria, but not one for each granularity.
    """
    parts = granularity.parts if isinstance(granularity, Mixed) else (granularity,)
    if isinstance(criterion, Criterion):
        return tuple((criterion, part) for part in parts)
    if len(criterion) != len(parts):
        raise OptionError(
            f"criterion: expected one, or one for each of the {len(parts)} granularities {granularity}, got "
            f"{len(criterion)}"
        )
    return tuple(zip(criterion, parts, strict=True))


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
