"""Network slimming: the score of a channel is the absolute value of its batch-norm factor.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming". It is meant for networks trained
with an L1 penalty on these factors, which drives those of spare channels towards 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.context import Context
from secateur.core.scores import Scores, check_finite
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._outputs import layers_of, norm_after, spread
from secateur.errors import StructureError
from secateur.execution.gradients import first_call, move
from secateur.execution.undisturbed import undisturbed

__all__ = ["BnScale"]


@dataclass(frozen=True)
class BnScale(Criterion):
    """|gamma| of the batch norm that takes the layer's output; a unit scores the mean over its weights.

    Layers whose outputs reach no batch norm directly have no score: leave them out with `skip`. Channels that are
    outputs of several layers (a residual stream) score the mean of all their factors, weighted by the layers' weights.

    >>> from secateur.core.targets import select
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    >>> _ = model[1].weight.data.copy_(torch.tensor([0.5, -2.0]))
    >>> BnScale().scores(model, select(model), Context(example=torch.zeros(1, 1, 2, 2)))["0.weight"].flatten()
    tensor([0.5000, 2.0000])
    """

    needs_example: ClassVar[bool] = True
    of_outputs: ClassVar[bool] = True

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without a batch norm that has factors."""
        if not any(isinstance(module, _BatchNorm) and module.affine for module in model.modules()):
            raise StructureError(
                f"bn_scale: expected a model with batch norms that have factors, got {type(model).__name__} without; "
                "take another criterion, such as l2"
            )

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """|gamma| of each weight's output."""
        layers = layers_of(targets)
        reference = next(model.parameters())
        call = move(first_call("bn_scale", context, model), reference.device, reference.dtype)
        with undisturbed(model, mode="eval"):
            after = norm_after(model, layers, call)
        values = {}
        for layer, name in after.items():
            gamma = model.get_submodule(name).weight
            if gamma is None:
                continue  # a norm without factors scales nothing
            assert isinstance(gamma, torch.Tensor)
            check_finite(f"weight {name + '.weight'!r}", gamma, "load a sound checkpoint")
            values[layer] = gamma.detach().abs()
        if not values:
            raise StructureError(
                f"bn_scale: no layer of {type(model).__name__} passes its output directly to a batch norm with "
                "factors; "
                "take another criterion, such as l2"
            )
        return Scores(spread(values, layers))

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The mean over a unit's weights."""
        return units.float().mean(dim=1) if units.dtype.itemsize < 4 else units.mean(dim=1)
