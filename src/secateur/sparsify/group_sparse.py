"""DepGraph's group sparsity: weight decay that is up to 2**alpha times as strong for the smallest unit of each group.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; Torch-Pruning's `GroupNormPruner.regularize`. Afterwards
prune by the criterion `l2` with granularity `channel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero
from secateur.sparsify._units import Patterns, UnitList, lists_of, squares

__all__ = ["GroupSparse"]


@dataclass(frozen=True)
class GroupSparse(Sparsifier):
    """strength / 2 * sum of g * norm**2 over all units, g = 2**(alpha * (largest - norm) / (largest - smallest)).

    The norms in g are those of the unit's group as they are, constants to the gradient, which is then strength * g * w.
    Where all norms of a group are equal, g is 1.

    Args:
        strength: Factor of the penalty.
        alpha: Power of 2 by which the smallest unit of a group is shrunk more than the largest.
        granularity: What is one unit.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    Rows of norm 5 and 1: 0.1 / 2 * (1 * 25 + 16 * 1).

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> round(GroupSparse(0.1, granularity="filter").start(model).penalty().item(), 4)
    2.05
    """

    strength: float = 1e-4
    alpha: float = 4.0
    granularity: str | Granularity = "channel"
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_above_zero("strength", self.strength)
        check_above_zero("alpha", self.alpha)

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
        return _GroupDecay(model, lists, self, masks)


class _GroupDecay(Sparsifying):
    """The decay of these units."""

    def __init__(
        self, model: nn.Module, lists: tuple[UnitList, ...], options: GroupSparse, masks: Masks | None
    ) -> None:
        super().__init__(model, masks)
        self._lists, self._options = lists, options

    def penalty(self) -> torch.Tensor:
        """strength / 2 * sum of g * norm**2."""
        total = super().penalty()
        for units in self._lists:
            found = squares(units)
            total = total + (_factors(found.detach().sqrt(), self._options.alpha) * found).sum()
        return self._options.strength / 2 * total


def _factors(norms: torch.Tensor, alpha: float) -> torch.Tensor:
    """How strongly each unit is shrunk: 1 for the largest of the list, 2**alpha for the smallest.

    >>> _factors(torch.tensor([5.0, 3.0, 1.0]), 4.0).tolist(), _factors(torch.ones(2), 4.0).tolist()
    ([1.0, 4.0, 16.0], [1.0, 1.0])
    """
    low, high = norms.min(), norms.max()
    apart = high > low  # read nowhere: a value that is read makes the processor wait for the device
    span = torch.where(apart, high - low, 1.0)
    return torch.where(apart, torch.exp2(alpha * (high - norms) / span), 1.0)
