"""RigL: at a fixed interval the smallest weights of each tensor are removed, and those of the largest gradients
regrown.

Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from secateur.core.masks import Masks
from secateur.errors import OptionError
from secateur.execution.example import Example
from secateur.sparsify import Sparsifying
from secateur.sparsify._moving import Moving, MovingMasks

__all__ = ["Rigl"]


@dataclass(frozen=True)
class Rigl(MovingMasks):
    """Removes a share of each tensor's weights, the smallest, and regrows as many, those with the largest |gradient|.

    The share falls along half a cosine: share / 2 * (1 + cos(pi * step / last)). Regrown weights start at 0; one that
    was just removed may be regrown with its value. A step that changes masks does nothing else: it removes all
    gradients, so that optimizers skip it. Each tensor keeps its number of weights, exactly.

    Args:
        sparsity: The share removed at random at the start; None where masks of an earlier pruning are given.
        budget: How `sparsity` is spread over the layers: the name of a budget that takes a share.
        share: The share of a tensor's weights that is exchanged at the start, rounded down.
        every: Optimizer steps between two changes.
        until: The share of all steps after which the masks no longer change; `last` above.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    >>> method = Rigl(0.9, until=0.5)
    >>> [round(method.share_at(step, 400), 3) for step in (0, 100, 200)]
    [0.3, 0.15, 0.0]
    """

    until: float = 0.75

    def share_at(self, step: int, steps: int) -> float:
        """The share of weights that is exchanged at a step.

        Args:
            step: Counted from 0.
            steps: Optimizer steps of the whole training.
        """
        return self.share / 2 * (1 + math.cos(math.pi * step / (self.until * steps)))

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
        if steps is None:
            raise OptionError(
                "rigl: expected steps=, the number of optimizer steps of the whole training, got none"
            )
        found = self.first_masks(model, masks, seed)
        return _ByGradient(model, found, self, steps, seed)


class _ByGradient(Moving):
    """Masks that change by the gradients of removed weights."""

    method = "rigl"

    def __init__(self, model: nn.Module, masks: Masks, options: Rigl, steps: int, seed: int) -> None:
        super().__init__(model, masks, options.every, options.until * steps, seed)
        self._options, self._steps = options, steps

    def before_forward(self) -> None:
        """Let the gradients of removed weights through, where they will be read."""
        super().before_forward()
        if self.is_due():
            self.held().mask_gradients(False)

    def before_step(self) -> None:
        """Change the masks if it is due, and remove the gradients."""
        if not self.is_due():
            return
        slopes = {
            name: parameter.grad
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if parameter.grad is not None
        }
        missing = [name for name in self.masks or {} if name not in slopes]
        if missing:
            raise OptionError(f"rigl: expected a gradient of every masked tensor, got none of {missing[0]!r}")
        self.move(self._options.share_at(self.step, self._steps), slopes)
        self.held().mask_gradients(True)
        for parameter in self.model.parameters():
            parameter.grad = None
