"""Wanda: the size of a weight times the norm of its input, on data without labels.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.compensation.fitting import Observed
from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._moments import scored

__all__ = ["Wanda"]


@dataclass(frozen=True)
class Wanda(Criterion):
    """|w| times the root mean square of the weight's input over the data; targets are ignored.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> context = Context(data=[torch.tensor([[3.0, 1.0], [4.0, 7.0]])])
    >>> Wanda().scores(model, select(model), context)["weight"]
    tensor([[7.0711, 5.0000]])
    """

    needs_data: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    rescore: ClassVar[bool] = True
    of_layers: ClassVar[bool] = True

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """|w| * sqrt(mean x²) per weight."""
        return scored("wanda", model, targets, context, _score)


def _score(layer: Observed, matrix: torch.Tensor) -> torch.Tensor:
    squares = layer.moments.hessian.diagonal(dim1=1, dim2=2) / max(1, layer.moments.rows)
    return matrix.abs() * squares.clamp_min(0).sqrt()[:, :, None]
