"""Fisher: the change of the loss to second order, with the empirical Fisher information for the curvature.

LeCun, Denker and Solla 1990, "Optimal Brain Damage" (the diagonal); Theis et al. 2018, "Faster gaze prediction with
dense networks and Fisher pruning" (the Fisher information in its place).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.nested import map_tensors
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights
from secateur.execution.example import read_batch
from secateur.execution.gradients import GradientPass, batches, shares
from secateur.execution.undisturbed import check_mode, undisturbed

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher(Criterion):
    """w^2 / 2 times the mean of g^2, g the gradient of one example's loss; a unit scores the sum.

    Every example is run by itself, as squares of a batch's mean gradient would be other numbers. So it takes as many
    passes as there are examples; a few hundred rank weights well.

    Args:
        mode: What the model runs in: "eval" (the default, as single examples have no batch statistics), "as_found" or
            "train".

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> data = [(torch.tensor([[1.0, 3.0], [3.0, 1.0]]), None)]
    >>> context = Context(data=data, loss=lambda outputs, _: outputs.mean())
    >>> Fisher().scores(model, select(model), context)["weight"]  # (1 + 9) / 2 times 4 / 2 and 1 / 2
    tensor([[10.0000,  2.5000]])
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    mode: str = "eval"

    def __post_init__(self) -> None:
        check_mode(self.mode)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """w^2 * mean(g^2) / 2 per weight."""
        held = weights(model, targets)
        with undisturbed(model, mode=self.mode):
            alone = replace(context, data=_Singles(context))
            squares = GradientPass("fisher", model, targets, alone).squared_gradients()
        found = {name: square.mul_(held[name]).mul_(held[name]).div_(2) for name, square in squares.items()}
        return Scores(shares("fisher", found, model, normalize=False))


@dataclass(frozen=True)
class _Singles:
    """The examples of the batches, one after the other, each as a batch of one."""

    context: Context

    def __iter__(self) -> Iterator[object]:
        for index, raw in enumerate(batches("fisher", self.context)):
            size = read_batch(raw, index, labels_apart=True).size
            for row in range(size):
                yield _row(raw, row, size)


def _row(raw: object, row: int, size: int) -> object:
    """One example of a batch: of every tensor that counts the examples along its first axis, that slice."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[row : row + 1] if tensor.dim() and tensor.shape[0] == size else tensor

    if isinstance(raw, Mapping):
        return {key: map_tensors(one, value) for key, value in raw.items()}
    return map_tensors(one, raw)
