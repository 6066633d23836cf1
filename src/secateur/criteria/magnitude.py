"""Magnitude: the score of a weight is its absolute value; that of a unit the sum (its L1 norm)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w|. Also called level.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1); _ = model.weight.data.copy_(__import__("torch").tensor([[-3.0, 2.0]]))
    >>> Magnitude().scores(model, select(model), Context())["weight"]
    tensor([[3., 2.]])
    """

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The absolute value of every weight."""
        return Scores({name: weight.abs() for name, weight in weights(model, targets).items()})

    def of_weights(self, units: torch.Tensor) -> torch.Tensor | None:
        """The same without keeping every |w|."""
        return self.reduce(units.abs())
