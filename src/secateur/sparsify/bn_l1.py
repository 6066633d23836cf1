"""Network slimming's penalty: the sum of the sizes of all batch norms' scales drives those of spare channels to 0.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming". Afterwards prune by the criterion
`bn_scale` with granularity `channel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.masks import Masks
from secateur.errors import NothingToDoError
from secateur.execution.example import Example
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero

__all__ = ["BnL1"]


@dataclass(frozen=True)
class BnL1(Sparsifier):
    """strength * sum |gamma| over the scales of all batch norms.

    Args:
        strength: Factor of the penalty; the paper takes 1e-4 and 1e-5.

    >>> BnL1(strength=-1.0)
    Traceback (most recent call last):
    secateur.errors.OptionError: strength: expected a number above 0, got -1.0
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        check_above_zero("strength", self.strength)

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Find the scales."""
        scales = [
            module.weight
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.affine and module.weight.requires_grad
        ]
        if not scales:
            raise NothingToDoError(
                f"bn_l1: {type(model).__name__} has no batch norm with a scale that is trained; take another method, "
                "such as group_lasso"
            )
        return _ScalePenalty(model, scales, self.strength, masks)


class _ScalePenalty(Sparsifying):
    """The penalty on these scales."""

    def __init__(
        self, model: nn.Module, scales: list[nn.Parameter], strength: float, masks: Masks | None
    ) -> None:
        super().__init__(model, masks)
        self._scales, self._strength = scales, strength

    def penalty(self) -> torch.Tensor:
        """strength * sum |gamma|."""
        return self._strength * torch.stack([scale.float().abs().sum() for scale in self._scales]).sum()
