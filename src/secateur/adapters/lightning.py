"""Masks held while Lightning's `Trainer` fits.

    masks = sc.prune(module.network, criterion="l1", granularity="element", budget=0.8)
    Trainer(callbacks=[lightning_callback(masks, module.network)]).fit(module, loader)

>>> import inspect
>>> list(inspect.signature(lightning_callback).parameters)
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

__all__ = ["lightning_callback"]


def lightning_callback(masks: Masks, model: nn.Module | None = None) -> object:
    """Make a Lightning `Callback` that holds masks from the first step to the last, and lets go when fitting fails.

    `lightning` is used, else `pytorch_lightning`.

    Args:
        masks: The masks.
        model: The model they belong to, where it is a part of the LightningModule (as `module.network` above).

    Returns:
        A callback for `Trainer(callbacks=[...])`.

    Raises:
        MissingExtraError: Neither library is installed.
    """
    library: Any = None
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            library = importlib.import_module(name)
            break
        except ImportError:
            continue
    if library is None:
        raise MissingExtraError(
            "lightning_callback needs the library lightning (or pytorch_lightning), but neither is "
            "installed; next: pip install lightning"
        )

    class HoldMasks(library.Callback):
        """Holds masks while the trainer fits."""

        held: Held | None = None

        def on_train_start(self, trainer: object, pl_module: nn.Module) -> None:
            """Begin to hold: the module is placed and its optimizers made by now."""
            from secateur.pruning.hold import hold

            self.held = hold(model if model is not None else pl_module, masks)

        def on_train_end(self, trainer: object, pl_module: nn.Module) -> None:
            """Let go; the weights stay masked."""
            if self.held is not None:
                self.held.close()
                self.held = None

        def on_exception(self, trainer: object, pl_module: nn.Module, exception: BaseException) -> None:
            """Let go of a fit that failed."""
            self.on_train_end(trainer, pl_module)

    return HoldMasks()
