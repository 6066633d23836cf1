"""LAMP: a weight's square as a share of the squares of its tensor that are not smaller.

Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning". The largest weight of every tensor scores 1,
so that scores of different tensors are comparable and `sc.budget.Overall` finds each layer's sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import norms, weights

__all__ = ["Lamp"]


@dataclass(frozen=True)
class Lamp(Criterion):
    """u^2 divided by the sum of v^2 over all units of the list with v^2 >= u^2, where u is a unit's norm.

    With granularity "element" the units are the weights of one tensor: the published score. Units of equal norm have
    equal scores. Other granularities use norms of units in place of weights, as Torch-Pruning does.

    >>> Lamp().reduce(torch.tensor([[1.0], [-2.0], [3.0]]))
    tensor([0.0714, 0.3077, 1.0000])
    """

    among: ClassVar[bool] = True

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The absolute value of every weight; `reduce` compares the units of a list."""
        return Scores({name: weight.abs() for name, weight in weights(model, targets).items()})

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """Each unit's square among those that are not smaller."""
        sizes = norms(units)
        if not len(sizes):
            return sizes
        peak = float(sizes.max())
        if peak == 0.0:
            return torch.zeros_like(sizes)
        # Relative to the largest, so that no square leaves the number range; summed from the smallest on.
        squares = (sizes / peak).to("cpu", torch.float64).square()
        values, places, counts = torch.unique(squares, return_inverse=True, return_counts=True)
        not_smaller = (values * counts).flip(0).cumsum(0).flip(0)
        return (squares / not_smaller[places]).to(sizes.device, sizes.dtype)

    def of_weights(self, units: torch.Tensor) -> torch.Tensor | None:
        """The same without keeping every |w|."""
        return self.reduce(units)
