"""Dense weights trained through a mask: the forward pass sees masked weights, the optimizer steps the dense ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.errors import NothingToDoError
from secateur.sparsify import Sparsifying

__all__ = ["MaskedForward"]


class MaskedForward(Sparsifying):
    """Masks the weights before the forward pass, and restores the dense ones before the optimizer's step.

    The gradient of the masked weights is used for the dense ones: the straight-through estimator.

    Args:
        model: The model.
        every: Optimizer steps between two choices.
    """

    method: ClassVar[str]
    """The word of the method, for errors."""

    def __init__(self, model: nn.Module, every: int) -> None:
        super().__init__(model)
        self._every = every
        self._passes = 0
        self._dense: dict[str, torch.Tensor] = {}

    def choose(self) -> Masks | None:
        """The masks of the weights as they are now; None where none are removed."""
        raise NotImplementedError

    @torch.no_grad()
    def _mask(self) -> None:
        """Apply the masks, and keep the dense weights."""
        if self._dense or self.masks is None:
            return
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, mask in self.masks.items():
            self._dense[name] = parameters[name].detach().clone()
            parameters[name].data.masked_fill_(~mask.to(parameters[name].device), 0.0)

    @torch.no_grad()
    def _unmask(self) -> None:
        """Restore the dense weights."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, dense in self._dense.items():
            parameters[name].data.copy_(dense)
        self._dense = {}

    def before_forward(self) -> None:
        """Choose where it is time, and mask."""
        self._passes += 1
        if self.step % self._every == 0:
            self.masks = self.choose()
        self._mask()

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint, whose steps were made with masks."""
        super().load(tensors, step)
        self._passes = step

    def before_step(self) -> None:
        """The optimizer steps the dense weights."""
        self._unmask()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The masked model."""
        before, self.masks = self.masks, self.choose()
        self._mask()
        try:
            yield
        finally:
            self._unmask()
            self.masks = before

    def close(self) -> None:
        """Restore the dense weights if a step was interrupted."""
        self._unmask()

    def finish(self) -> Masks | None:
        """The masks of the last weights, which the model has from now on.

        Raises:
            NothingToDoError: Nothing was trained behind masks: calls were left out of the loop.
        """
        self._unmask()
        if not (self._passes and self.step):
            raise NothingToDoError(
                f"{self.method}: expected a network trained behind masks, got {self._passes} calls of "
                f"before_forward() and {self.step} of after_step(): call before_forward(), before_step() and "
                "after_step() at each optimizer step"
            )
        self.masks = self.choose()
        if self.masks is not None:
            self.masks.apply_(self.model)
        return self.masks
