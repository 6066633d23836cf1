"""GraSP: keep the weights that the gradient's flow depends on (Wang, Zhang and Grosse 2020).

Removing a weight w changes the squared norm of the gradient, to first order, in proportion to -w * (H g),
with g the gradient and H the Hessian of the loss. The published rule removes the weights for which -w * Hg is
highest, that is the lowest w * Hg: a negative score marks a weight whose removal makes the gradient larger.
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
from secateur.execution.gradients import GradientPass, check_positive, double_backward, shares
from secateur.execution.undisturbed import check_mode, undisturbed

__all__ = ["Grasp"]


@dataclass(frozen=True)
class Grasp(Criterion):
    """w * (H g) / |sum of w * (H g)|, lowest removed first.

    Two passes over the data: g, the mean gradient with respect to all targets; then H g, the gradient of (g .
    gradient) with the first g held constant. The outputs are divided by `temperature` before the loss. `mode`
    is the mode of the model: "as_found" (the default), "train" or "eval"; `normalize` divides as published
    and changes no order.

    With L = (w1 w2)^2 / 2 at w1 = w2 = 1: g = (1, 1), H = [[1, 2], [2, 1]], H g = (3, 3).

    >>> import torch
    >>> from secateur.core.targets import select
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for parameter in model.parameters(): _ = parameter.data.fill_(1.0)
    >>> context = Context(data=[(torch.ones(1, 1), None)], loss=lambda outputs, _: (outputs**2).mean() / 2)
    >>> dict(Grasp(temperature=1, normalize=False).scores(model, select(model), context))
    {'0.weight': tensor([[3.]]), '1.weight': tensor([[3.]])}
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    temperature: float = 200.0
    mode: str = "as_found"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_positive("temperature", self.temperature)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """w * (H g) per weight."""
        held = weights(model, targets)
        passes = GradientPass("grasp", model, targets, context, temperature=float(self.temperature))
        passes.check_passes(2)
        with undisturbed(model, mode=self.mode), double_backward():
            products = passes.hessian_times(passes.gradients())
        for name, product in products.items():
            product.mul_(held[name])
        return Scores(shares("grasp", products, model, self.normalize))
