"""L2: the score of a unit is its Euclidean (Frobenius) norm; that of a single weight its absolute value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import line_norms, norms, weights

__all__ = ["L2"]


@dataclass(frozen=True)
class L2(Criterion):
    """The square root of the sum of w^2 over a unit.

    The score of a weight is |w| rather than w^2, so that neither small nor large weights leave the number range and a
    single weight scores exactly |w|.

    >>> L2().reduce(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([5., 1.])
    """

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The absolute value of every weight."""
        return Scores({name: weight.abs() for name, weight in weights(model, targets).items()})

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The norm of each unit."""
        return norms(units)

    def of_weights(self, units: torch.Tensor) -> torch.Tensor | None:
        """The same without keeping every |w|."""
        return norms(units)

    def of_lines(self, weight: torch.Tensor, axis: int) -> torch.Tensor | None:
        """The norm of each slice."""
        return line_norms(weight, axis)

    def joined(self, parts: torch.Tensor) -> torch.Tensor:
        """The norm of their norms."""
        return norms(parts)
