"""SET: at a fixed interval the smallest weights of each tensor are removed, and as many regrown at random.

Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science": sparse evolutionary training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from secateur.core.masks import Masks
from secateur.errors import OptionError
from secateur.execution.example import Example
from secateur.sparsify import Sparsifying
from secateur.sparsify._moving import Moving, MovingMasks

__all__ = ["Set"]


@dataclass(frozen=True)
class Set(MovingMasks):
    """Removes a share of each tensor's weights, the smallest, and regrows as many, drawn at random, which start at 0.

    Each tensor keeps its number of weights, exactly.

    Args:
        sparsity: The share removed at random at the start; None where masks of an earlier pruning are given.
        budget: How `sparsity` is spread over the layers: the name of a budget that takes a share.
        share: The share of a tensor's weights that is exchanged, rounded down.
        every: Optimizer steps between two changes; the paper changes masks once in an epoch.
        until: The share of all steps after which the masks no longer change; below 1 the number of steps must be known.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    >>> model = nn.Linear(10, 10)
    >>> active = Set(0.9).start(model)
    >>> active.masks.kept
    10
    """

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Take the masks given, or draw them."""
        if steps is None and self.until < 1:
            raise OptionError("set: until needs steps=, the number of optimizer steps of the whole training")
        found = self.first_masks(model, masks, seed)
        return _Random(model, found, self, None if steps is None else self.until * steps, seed)


class _Random(Moving):
    """Masks that change at random."""

    method = "set"

    def __init__(self, model: nn.Module, masks: Masks, options: Set, until: float | None, seed: int) -> None:
        super().__init__(model, masks, options.every, until, seed)
        self._share = options.share

    def before_forward(self) -> None:
        """Change the masks if it is due."""
        super().before_forward()
        if self.is_due():
            self.move(self._share, {})
