"""Masks held while transformers' `Trainer` trains.

    masks = sc.prune(model, criterion="l1", granularity="element", budget=0.8)
    trainer = Trainer(model=model, args=args, train_dataset=..., callbacks=[trainer_callback(masks)])
    trainer.train()          # removed weights are exactly 0 during training and afterwards

>>> import inspect
>>> list(inspect.signature(trainer_callback).parameters)
['masks', 'model']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch import nn

from secateur.core.masks import Masks
from secateur.errors import MissingExtraError

if TYPE_CHECKING:
    from secateur.pruning.hold import Held

__all__ = ["trainer_callback"]


def trainer_callback(masks: Masks, model: nn.Module | None = None) -> object:
    """Make a `transformers.TrainerCallback` that holds masks from the first step to the last.

    Args:
        masks: The masks.
        model: The model they belong to, where it is a part of the trainer's model.

    Returns:
        A callback for `Trainer(callbacks=[...])`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            "trainer_callback needs the library transformers, but it is not installed; next: pip install "
            "'secateur[transformers]'"
        ) from error

    class HoldMasks(transformers.TrainerCallback):
        """Holds masks while the trainer trains."""

        held: Held | None = None

        def on_train_begin(self, args: object, state: object, control: object, **given: Any) -> None:
            """Begin to hold: the model is placed and the optimizer made by now."""
            from secateur.pruning.hold import hold

            self.held = hold(model if model is not None else given["model"], masks, given.get("optimizer"))

        def on_train_end(self, args: object, state: object, control: object, **given: Any) -> None:
            """Let go; the weights stay masked."""
            if self.held is not None:
                self.held.close()
                self.held = None

    return HoldMasks()
