"""L1: the score of a unit is the sum of its absolute weights.

Li et al. 2017, "Pruning Filters for Efficient ConvNets".
"""

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

__all__ = ["L1"]

_CACHED = 1 << 17


@dataclass(frozen=True)
class L1(Criterion):
    """The sum of |w| over a unit; for single weights the same as magnitude.

    >>> import torch
    >>> L1().reduce(torch.tensor([[3.0, 2.0], [1.0, 0.5]]))
    tensor([5.0000, 1.5000])
    """

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The absolute value of every weight."""
        return Scores({name: weight.abs() for name, weight in weights(model, targets).items()})

    def of_weights(self, units: torch.Tensor) -> torch.Tensor | None:
        """The same, some rows at a time: rows that are in a processor's cache are not fetched twice."""
        rows = max(1, _CACHED // max(1, units.shape[1]))
        if units.device.type != "cpu" or units.shape[1] == 1 or units.shape[0] <= rows:
            return self.reduce(units.abs())
        scratch = torch.empty((rows, units.shape[1]), dtype=units.dtype)
        parts = units.split(rows)
        return torch.cat([self.reduce(torch.abs(part, out=scratch[: part.shape[0]])) for part in parts])
