"""Taylor: the change of the loss, to first order, when a weight is removed: |w * dL/dw|.

Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights
from secateur.execution.gradients import GradientPass, shares
from secateur.execution.undisturbed import check_mode, undisturbed

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor(Criterion):
    """|w * g|, g the gradient of the mean loss over all of the data; a unit scores the sum.

    `mode` is the mode of the model: "as_found" (the default), "train" or "eval". In train mode batch norm
    uses each batch's own statistics, so that many small batches differ from one large one.

    >>> import torch
    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> context = Context(data=[(torch.tensor([[1.0, 3.0]]), None)], loss=lambda outputs, _: outputs.sum())
    >>> Taylor().scores(model, select(model), context)["weight"]
    tensor([[2., 3.]])
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    mode: str = "as_found"

    def __post_init__(self) -> None:
        check_mode(self.mode)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """|w * g| per weight."""
        held = weights(model, targets)
        with undisturbed(model, mode=self.mode):
            slopes = GradientPass("taylor", model, targets, context).gradients()
        products = {name: slope.mul_(held[name]).abs_() for name, slope in slopes.items()}
        return Scores(shares("taylor", products, model, normalize=False))
