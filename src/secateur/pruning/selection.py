"""`selection_of`: the input of a budget, from the units of a model with their scores.

>>> import torch
>>> from torch import nn
>>> from secateur import budget, criteria, granularity
>>> from secateur.core.context import Context
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 3, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]))
>>> grain, criterion = granularity.registry.make("filter"), criteria.registry.make("l1")
>>> scored = ScoredUnits(layer, criterion, grain, select(layer), Context())
>>> budget.registry.make(0.4).choose(selection_of(scored))["weight"]
tensor([ True, False,  True])
"""

from __future__ import annotations

from secateur.budget import Candidates, Limits, Selection, floors
from secateur.execution.fast_copy import tensors_of
from secateur.pruning.scored_units import ScoredUnits
from secateur.pruning.unit_masks import removed_units

__all__ = ["selection_of"]


def selection_of(scored: ScoredUnits, at_least: Limits = None, at_most: Limits = None) -> Selection:
    """Every list of units with its scores, its floor, and the units already removed.

    Args:
        scored: The units and their scores.
        at_least: Fewest units of every list that must remain, or a table of patterns to such numbers.
        at_most: The largest share of its units that a list may lose, or a table of patterns to shares.
    """
    known = {target.name for target in scored.targets}
    parameters = tensors_of(scored.model)
    found = []
    for units in scored.units:
        scores = scored.scores[units.name]
        shapes = {member.name: tuple(parameters[member.name].shape) for member in units.members}
        gone = removed_units(units, scored.start, known, scores.device)
        found.append(Candidates(units, scores, gone, shapes=shapes))
    whole = Selection(tuple(found), scored.model, scored.targets, scored.context, scored.costs)
    return floors(whole, at_least, at_most)
