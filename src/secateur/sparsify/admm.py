"""ADMM: a penalty pulls the weights towards their pruned values; at the end they are pruned.

Zhang et al. 2018, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of Multipliers".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.budget import Budget
from secateur.core.masks import Masks
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.pruning.prune import PruneOptions, prune
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero, check_whole
from secateur.sparsify._units import Patterns

__all__ = ["Admm"]


@dataclass(frozen=True)
class Admm(Sparsifier):
    """strength / 2 * sum of (w - z + u)**2, where every `every` steps z becomes w + u, pruned, and u becomes w + u - z.

    At the start z is w pruned and u is 0. At the end the weights themselves are pruned.

    Args:
        strength: Factor of the penalty, the paper's rho.
        every: Optimizer steps between two updates of z and u.
        granularity: What is one unit; its score is the norm of its weights.
        budget: How much is removed: a share of every tensor, or a value.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    (3, 1) pruned is (3, 0): the penalty is 0.5 / 2 * 1.

    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> Admm(strength=0.5).start(model).penalty().item()
    0.25
    """

    changes_masks: ClassVar[bool] = True

    strength: float = 1e-3
    every: int = 100
    granularity: str | Granularity = "element"
    budget: float | str | Budget = 0.5
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_above_zero("strength", self.strength)
        check_whole("every", self.every)

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Prune for the first time."""
        return _AdmmPenalty(model, self, example, masks, seed)


class _AdmmPenalty(Sparsifying):
    """Weights pulled towards z - u."""

    def __init__(
        self, model: nn.Module, options: Admm, example: Example, before: Masks | None, seed: int
    ) -> None:
        super().__init__(model, before)
        self._options, self._example = options, example
        self._limits = PruneOptions(only=options.only, masks=before, seed=seed)
        masks = self._choose()
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if name in masks and not name.endswith("bias")
        }
        self._z = self._pruned({name: p.detach().clone() for name, p in self._parameters.items()}, masks)
        self._u = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    def _choose(self) -> Masks:
        """The masks of the weights as they are now."""
        options = self._options
        criterion = "magnitude" if options.granularity == "element" else "l2"
        return prune(
            self.model,
            criterion,
            options.granularity,
            options.budget,
            skip=options.skip,
            example=self._example,
            options=self._limits,
        )

    @staticmethod
    def _pruned(weights: dict[str, torch.Tensor], masks: Masks) -> dict[str, torch.Tensor]:
        return {
            name: weight.masked_fill(~masks[name].to(weight.device), 0.0) for name, weight in weights.items()
        }

    def penalty(self) -> torch.Tensor:
        """strength / 2 * sum of (w - z + u)**2."""
        total = super().penalty()
        for name, parameter in self._parameters.items():
            total = total + (parameter - self._z[name] + self._u[name]).float().square().sum()
        return self._options.strength / 2 * total

    @torch.no_grad()
    def after_step(self) -> None:
        """Update z and u where it is time."""
        super().after_step()
        if self.step % self._options.every:
            return
        dense = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        moved = {name: dense[name] + self._u[name] for name in dense}
        try:
            for name, parameter in self._parameters.items():
                parameter.copy_(moved[name])  # so that w + u is what is pruned
            masks = self._choose()
        finally:
            for name, parameter in self._parameters.items():
                parameter.copy_(dense[name])
        self._z = self._pruned(moved, masks)
        self._u = {name: moved[name] - self._z[name] for name in dense}

    def finish(self) -> Masks:
        """Prune the weights."""
        self.masks = self._choose()
        self.masks.apply_(self.model)
        return self.masks

    def tensors(self) -> dict[str, torch.Tensor]:
        """z and u."""
        return {f"z/{name}": z for name, z in self._z.items()} | {f"u/{n}": u for n, u in self._u.items()}

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with these."""
        super().load(tensors, step)
        self._z = {name: tensors[f"z/{name}"] for name in self._z}
        self._u = {name: tensors[f"u/{name}"] for name in self._u}
