"""Straight-through masks: chosen repeatedly from dense weights, which are trained by the masked network's gradients.

Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons"; with `decay` Zhou et al. 2021,
"Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch" (SR-STE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.budget import Budget
from secateur.core.masks import Masks
from secateur.criteria import Criterion
from secateur.errors import OptionError
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.pruning.prune import PruneOptions, prune
from secateur.sparsify import Sparsifier, Sparsifying, check_whole
from secateur.sparsify._masked_forward import MaskedForward
from secateur.sparsify._units import Patterns

__all__ = ["StraightThrough"]


@dataclass(frozen=True)
class StraightThrough(Sparsifier):
    """The forward pass uses the weights that the three choices keep; the masked network's gradients train all weights.

    A removed weight is regrown when its score exceeds that of a kept one. At the end removed weights are 0.

    Args:
        criterion: How weights are scored; one that reads no data.
        granularity: What is one unit.
        budget: How much is removed: a share of every tensor, or a value such as `sc.budget.NOfM(2, 4)`.
        every: Optimizer steps between two choices. A choice waits for an accelerator several times.
        decay: decay * w is added to the gradient of removed weights, so that masks settle (SR-STE; the paper: 2e-4).
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> active = StraightThrough().start(model); active.before_forward(); model.weight.tolist()
    [[3.0, 0.0]]
    >>> model(torch.ones(1, 2)).sum().backward(); active.before_step(); model.weight.tolist()
    [[3.0, 1.0]]
    >>> model.weight.grad.tolist()
    [[1.0, 1.0]]
    """

    changes_masks: ClassVar[bool] = True

    criterion: str | Criterion = "magnitude"
    granularity: str | Granularity = "element"
    budget: float | str | Budget = 0.5
    every: int = 1
    decay: float = 0.0
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_whole("every", self.every)
        if not self.decay >= 0:
            raise OptionError(f"decay: expected 0 or more, got {self.decay}")

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Choose for the first time."""
        return _Chosen(model, self, example, masks, seed)


class _Chosen(MaskedForward):
    """Masks chosen at a fixed interval of steps."""

    method = "straight_through"

    def __init__(
        self, model: nn.Module, options: StraightThrough, example: Example, before: Masks | None, seed: int
    ) -> None:
        super().__init__(model, options.every)
        self._options, self._example = options, example
        self._limits = PruneOptions(only=options.only, masks=before, seed=seed)
        self.masks = self.choose()

    def choose(self) -> Masks:
        """The masks of the weights as they are now."""
        options = self._options
        return prune(
            self.model,
            options.criterion,
            options.granularity,
            options.budget,
            skip=options.skip,
            example=self._example,
            options=self._limits,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The masks in force."""
        return dict(self.masks or {})

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with these."""
        super().load(tensors, step)
        self.masks = Masks(tensors)

    @torch.no_grad()
    def before_step(self) -> None:
        """Restore the dense weights, and let removed ones decay."""
        super().before_step()
        if self._options.decay and self.masks is not None:
            parameters = dict(self.model.named_parameters(remove_duplicate=False))
            for name, mask in self.masks.items():
                parameter = parameters[name]
                if parameter.grad is not None:
                    removed = ~mask.to(parameter.device)
                    parameter.grad.add_(parameter.detach() * removed, alpha=self._options.decay)
