"""Sparse training: methods that make weights small, or remove them, while the network is trained. One file each.

In go a model, and for some methods one example input, masks, and the number of optimizer steps. Out comes a
`Sparsifying`, with one call for each place in a training loop; a call that a method does not need does nothing, so one
loop serves all of them:

    with method.start(model, example=x, steps=1000) as active:
        for images, labels in batches:
            active.before_forward()
            loss = criterion(model(images), labels) + active.penalty()
            loss.backward()
            active.before_step()
            optimizer.step(); optimizer.zero_grad()
            active.after_step()
        masks = active.finish()

Every training step of a recipe takes a method as `sparsify`, such as `sparsify = {name = "group_lasso"}`.

In reading order: `bn_l1`, `group_lasso`, `group_sparse`, `growing`, `admm` (penalties); `_moving` with `set` and `rigl`
(masks that change, and are held in between); `_masked_forward` with `straight_through` and `movement_scores` (dense
weights that are trained through a mask). To add one, add a file with a class of its name in CamelCase.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
>>> _ = model[1].weight.data.copy_(torch.tensor([0.5, -2.0]))
>>> registry.make("bn_l1", strength=0.1).start(model).penalty().item()
0.25
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, TypeVar

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.errors import OptionError
from secateur.execution.example import Example
from secateur.registry import Registry

__all__ = ["Sparsifier", "SparsifierLike", "Sparsifying", "check_above_zero", "check_whole", "registry"]

_Self = TypeVar("_Self", bound="Sparsifying")


class Sparsifying:
    """A method active on a model, as `Sparsifier.start` returns it: for a `with` block, or until `finish`.

    Args:
        model: The model that is trained.
        masks: The weights that are removed so far, or None.

    Attributes:
        model: The model that is trained.
        masks: The weights that are removed so far, or None.
        step: How many optimizer steps have been made.
    """

    def __init__(self, model: nn.Module, masks: Masks | None = None):
        self.model, self.masks, self.step = model, masks, 0

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def penalty(self) -> torch.Tensor:
        """A scalar to add to the loss; 0 for a method without one."""
        return torch.zeros((), device=next(self.model.parameters()).device)

    def before_forward(self) -> None:
        """Called before the forward passes of an optimizer step."""

    def before_step(self) -> None:
        """Called after the backward pass, before `optimizer.step()`."""

    def after_step(self) -> None:
        """Called after `optimizer.step()`."""
        self.step += 1

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model as it would be if training ended now, for an evaluation during training."""
        yield

    def finish(self) -> Masks | None:
        """End: the model has its final weights, and the masks say which are removed, if any are."""
        self.close()
        return self.masks

    def close(self) -> None:
        """Remove the hooks of the method from the model. Closing twice is harmless."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state that a checkpoint must hold besides the model, the optimizer and the number of steps."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint; called before the `with` block.

        Args:
            tensors: A result of `tensors()`.
            step: Optimizer steps made before.
        """
        self.step = step


class Sparsifier(ABC):
    """The base class of all methods: a frozen value of its options, with `start`."""

    changes_masks: ClassVar[bool] = False
    """Whether the masks change until the last step, so that no earlier epoch can be kept as the best."""
    moves: ClassVar[bool] = False
    """Whether removed weights may be regrown: then the method itself holds the masks, starting from those given."""

    @abstractmethod
    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Start the method on a model.

        Args:
            model: The model that is trained.
            example: One input, for granularities that follow the channels through the model.
            masks: Weights that are removed already.
            steps: Optimizer steps of the whole training: batches per epoch times epochs. Methods whose schedule follows
                the length of the training need it (`rigl`, `movement_scores`, `set` with `until` below 1).
            seed: The seed of everything random.
        """


SparsifierLike = str | Sparsifier | type[Sparsifier]
"""Every form in which a method is given: a word, a value, or a class."""


def check_above_zero(name: str, value: float) -> None:
    """Raise an `OptionError` unless a number is above 0 and finite.

    >>> check_above_zero("strength", 0.0)
    Traceback (most recent call last):
    secateur.errors.OptionError: strength: expected a number above 0, got 0.0
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and value > 0 and math.isfinite(value)):
        raise OptionError(f"{name}: expected a number above 0, got {value!r}")


def check_whole(name: str, value: int) -> None:
    """Raise an `OptionError` unless a number is whole and at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}: expected a whole number of at least 1, got {value!r}")


registry = Registry(__name__, __path__, "sparse training method", base="secateur.sparsify:Sparsifier")


def __getattr__(name: str) -> object:
    return registry.attribute(name)
