"""Group lasso: the sum of the norms of all units drives whole units to 0, with granularity `channel` coupled ones.

Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables"; for filters and channels Wen
et al. 2016, "Learning Structured Sparsity in Deep Neural Networks". Afterwards prune by the criterion `l2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero
from secateur.sparsify._units import Patterns, UnitList, lists_of, squares

__all__ = ["GroupLasso"]


@dataclass(frozen=True)
class GroupLasso(Sparsifier):
    """strength * sum over all units of sqrt(size) * norm, where a unit is everything that is removed with it, except
    biases.

    Args:
        strength: Factor of the penalty.
        granularity: What is one unit.
        by_size: Whether a unit's norm counts sqrt(its number of weights) times, so that large units are not favoured.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    A row of norm 5 with two weights, and one of norm 1: 0.1 * sqrt(2) * 6.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> round(GroupLasso(0.1, granularity="filter").start(model).penalty().item(), 4)
    0.8485
    """

    strength: float = 1e-4
    granularity: str | Granularity = "channel"
    by_size: bool = True
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_above_zero("strength", self.strength)

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Find the units."""
        lists = lists_of(model, self.granularity, example, self.only, self.skip)
        return _NormPenalty(model, lists, self, masks)


class _NormPenalty(Sparsifying):
    """The penalty on these units."""

    def __init__(
        self, model: nn.Module, lists: tuple[UnitList, ...], options: GroupLasso, masks: Masks | None
    ) -> None:
        super().__init__(model, masks)
        self._lists, self._strength = lists, options.strength
        self._factors = [math.sqrt(units.size) if options.by_size else 1.0 for units in lists]

    def penalty(self) -> torch.Tensor:
        """strength * sum of factors times norms; a unit that is 0 has gradient 0."""
        total = super().penalty()
        for units, factor in zip(self._lists, self._factors, strict=True):
            found = squares(units)
            norms = torch.where(found > 0, found, 1.0).sqrt() * (found > 0)
            total = total + factor * norms.sum()
        return self._strength * total
