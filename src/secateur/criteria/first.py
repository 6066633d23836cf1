"""First: earlier units score higher, whatever their weights; the first units of every layer remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion

__all__ = ["First"]


@dataclass(frozen=True)
class First(Criterion):
    """The position from the end, along the axis of outputs.

    To make a network narrower before it is trained (again): which units remain does not matter then, and the
    first units of a layer are stored as a range.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(1, 3)
    >>> First().scores(model, select(model), Context())["weight"].tolist()
    [[3.0], [2.0], [1.0]]
    """

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """For every weight how many outputs there are from its own on."""
        found = {}
        for target in targets:
            weight = target.of(model).detach()
            count = weight.shape[target.out_axis]
            left = torch.arange(count, 0, -1, dtype=torch.float32, device=weight.device)
            shape = [count if axis == target.out_axis else 1 for axis in range(weight.dim())]
            found[target.name] = left.reshape(shape).expand(weight.shape)
        return Scores(found)
