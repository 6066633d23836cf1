"""Movement: weights that training moves away from zero score high, those that it moves towards zero low.

Sanh, Wolf and Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights
from secateur.execution.gradients import (
    GradientPass,
    accumulator_dtype,
    batches,
    check_losses,
    check_positive,
    shares,
)
from secateur.execution.undisturbed import check_mode, undisturbed

__all__ = ["Movement"]


@dataclass(frozen=True)
class Movement(Criterion):
    """The sum of -g * w over steps of stochastic gradient descent on a copy, one step a batch; a unit scores the sum.

    g is the gradient of the batch's loss and w the weight, both as they are at that step. The copy is trained densely:
    these are the scores of the published method, without the mask that it applies during training. Weights that are
    exactly 0 at the beginning stay 0. The model itself is not changed.

    Args:
        lr: The learning rate of the copy's steps.
        mode: What the copy runs in: "as_found" (the default), "train" or "eval".

    With L = w^2 / 2 at w = 1 and lr = 0.5: -g * w is -1, then w is 0.5 and it is -0.25.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(1, 1, bias=False); _ = model.weight.data.fill_(1.0)
    >>> context = Context(data=[(torch.ones(1, 1), None)] * 2, loss=lambda outputs, _: outputs.square().mean() / 2)
    >>> Movement(lr=0.5).scores(model, select(model), context)["weight"]
    tensor([[-1.2500]])
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    lr: float = 1e-3
    mode: str = "as_found"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_positive("lr", self.lr)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The sum of -g * w per weight."""
        held = weights(model, targets)
        with undisturbed(model, mode=self.mode):  # buffers and random state come back as well
            trained = copy.deepcopy(model)
            for parameter in trained.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            totals = {
                name: torch.zeros_like(w, dtype=accumulator_dtype(w.device)) for name, w in held.items()
            }
            zeros = {name: weight == 0 for name, weight in held.items()}
            passes = GradientPass("movement", trained, targets, context)
            losses = []
            for index, raw in enumerate(batches("movement", context)):
                loss = passes.loss_of(raw, index)
                losses.append(loss.detach())
                self._step(trained, loss, totals, zeros)
            check_losses("movement", losses)
        return Scores(shares("movement", totals, model, normalize=False))

    def _step(
        self,
        trained: nn.Module,
        loss: torch.Tensor,
        totals: dict[str, torch.Tensor],
        zeros: dict[str, torch.Tensor],
    ) -> None:
        """Add -g * w of one batch, then move every parameter of the copy along -g."""
        parameters = dict(trained.named_parameters())
        slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
                if slope is None:
                    continue
                slope = slope.to_dense() if slope.is_sparse else slope
                if name in totals:
                    wide = totals[name].dtype
                    totals[name].sub_(slope.to(wide) * parameter.to(wide))
                    slope = slope.masked_fill(zeros[name], 0.0)
                parameter.sub_(slope, alpha=self.lr)
