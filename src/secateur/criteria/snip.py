"""SNIP: how strongly the loss depends on a weight being there (Lee, Ajanthan and Torr 2019).

Every weight w is multiplied by a mask c = 1; its score is |dL/dc|, which by the chain rule is |w * dL/dw|,
divided by the sum over all weights of the network.
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

__all__ = ["Snip"]


@dataclass(frozen=True)
class Snip(Criterion):
    """|dL/dc| / sum |dL/dc|, L the mean loss over all of the data.

    `mode` is the mode of the model: "as_found" (the default), "train" or "eval". `normalize` divides by the
    sum over all targets as published; it never changes the order of weights.

    >>> import torch
    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> context = Context(data=[(torch.tensor([[1.0, 6.0]]), None)], loss=lambda outputs, _: outputs.sum())
    >>> Snip().scores(model, select(model), context)["weight"]
    tensor([[0.2500, 0.7500]])
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    mode: str = "as_found"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_mode(self.mode)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """|w * g| per weight, as a share of their sum."""
        held = weights(model, targets)
        with undisturbed(model, mode=self.mode):
            slopes = GradientPass("snip", model, targets, context).gradients()
        products = {name: slope.mul_(held[name]).abs_() for name, slope in slopes.items()}
        return Scores(shares("snip", products, model, self.normalize))
