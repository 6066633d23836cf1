"""Masks held while Lightning's `Trainer` fits.

    masks = sc.prune(module.network, criterion="l1", granularity="element", budget=0.8)
    Trainer(callbacks=[sc.lightning_callback(masks, module.network)]).fit(module, loader)

>>> import inspect
>>> list(inspect.signature(lightning_callback).parameters)
['masks', 'model', 'gradual', 'copies', 'plan', 'example']
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from secateur.adapters.holding import GradualLike, MaskKeeper
from secateur.core.masks import Masks
from secateur.errors import MaskMismatchError, MissingExtraError, OptionError
from secateur.execution.example import Example
from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["lightning_callback"]

STATE_KEY = "secateur.HoldMasks"
"""The name of the callback's state in Lightning's checkpoints."""
_EARLIER_KEY = "lightning_callback.<locals>.HoldMasks"


def _library() -> Any:
    """Lightning, by either of its names."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError(
        "lightning_callback needs the library lightning (or pytorch_lightning), but neither is "
        "installed; next: pip install lightning"
    )


def _rename_state(states: dict[str, Any]) -> None:
    """Give the callback's state of an earlier version its name of now."""
    if STATE_KEY not in states and _EARLIER_KEY in states:
        states[STATE_KEY] = states.pop(_EARLIER_KEY)


def lightning_callback(
    masks: Masks | None = None,
    model: nn.Module | None = None,
    *,
    gradual: GradualLike | None = None,
    copies: nn.Module | Iterable[nn.Module] = (),
    plan: ShrinkPlan | None = None,
    example: Example = None,
) -> object:
    """Make a Lightning `Callback` that holds masks from the first step to the last, and releases them when fitting
    fails.

    `lightning` is used, else `pytorch_lightning`. `sparsity` is logged after every epoch, and `callback.masks` are the
    masks in force. Masks and plan are part of Lightning's checkpoints, under the key "secateur.HoldMasks" of its
    callbacks, and `fit(ckpt_path=...)` continues from them.

    Args:
        masks: The masks; None where `gradual` makes them.
        model: The model they belong to, where it is a part of the LightningModule (as `module.network` above).
        gradual: Makes masks while training runs: `sc.GradualPruning(0.9)`.
        copies: Models of the same names that stay masked too, such as an EMA copy.
        plan: The plan of a model that was cut before, kept in every checkpoint as "secateur_plan": applied to a new
            model (`plan.apply_(fresh)`), it makes one that the checkpoint loads into.
        example: One input as the model is called with it, where `gradual` follows the forward (granularities "channel",
            "head", "head_size", "layer"). None takes what the model is called with first, without labels that are
            keywords.

    Returns:
        A callback for `Trainer(callbacks=[...])`.

    Raises:
        MissingExtraError: Neither library is installed.
        OptionError: There is nothing to hold, the model has the widths from before the cut, or `gradual` follows a
            forward and neither `model` nor `example` says which.
        MaskMismatchError: The masks are those of another model.
    """
    library: Any = _library()
    keeper = MaskKeeper(masks, gradual, model, copies, plan, example)
    if model is None and keeper.needs_call:
        raise OptionError(
            "gradual: its granularity or criterion follows a network's forward, and a LightningModule may be trained "
            "without its own; give model=, the network that training_step calls (module.network), or example=, what "
            "the forward of the LightningModule itself takes"
        )

    class HoldMasks(library.Callback):
        """Holds masks while the trainer fits."""

        @property
        def masks(self) -> Masks | None:
            """The masks in force; None before the first ones are made."""
            return keeper.masks

        @property
        def state_key(self) -> str:
            """The name of this callback's state in checkpoints."""
            return STATE_KEY

        def on_load_checkpoint(
            self, trainer: object, pl_module: nn.Module, checkpoint: dict[str, Any]
        ) -> None:
            """Find the state in a checkpoint that has it under the name of before."""
            _rename_state(checkpoint.get("callbacks") or {})

        def setup(self, trainer: object, pl_module: nn.Module, stage: str) -> None:
            """Refuse a module for training that no checkpoint would fit, before one is loaded. A module that makes its
            layers later is checked when training starts.
            """
            if stage == "fit" and keeper.model is None and keeper.names_known(pl_module):
                keeper.check(pl_module)

        def on_save_checkpoint(
            self, trainer: object, pl_module: nn.Module, checkpoint: dict[str, object]
        ) -> None:
            """Keep the plan where a reader finds it."""
            if keeper.plan is not None:
                checkpoint["secateur_plan"] = keeper.plan.to_json()

        def on_train_start(self, trainer: object, pl_module: nn.Module) -> None:
            """Begin to hold: the module is placed, its optimizers are made, and a checkpoint is loaded by now."""
            if keeper.model is None:
                keeper.check(pl_module)
            keeper.start(pl_module)

        def on_train_batch_start(
            self, trainer: Any, pl_module: nn.Module, batch: object, batch_idx: int
        ) -> None:
            """Make the masks that are due."""
            keeper.step(trainer.global_step, int(trainer.estimated_stepping_batches))

        def on_train_epoch_end(self, trainer: object, pl_module: Any) -> None:
            """Log the sparsity."""
            for name, value in keeper.logged().items():
                pl_module.log(name, value, sync_dist=True)  # the same in every process

        def state_dict(self) -> dict[str, object]:
            """What a checkpoint keeps."""
            return {"masks": keeper.state(), "plan": keeper.plan.to_json() if keeper.plan is not None else ""}

        def load_state_dict(self, state_dict: dict[str, dict[str, torch.Tensor]]) -> None:
            """Continue from a checkpoint."""
            keeper.restore(state_dict["masks"])

        def on_train_end(self, trainer: object, pl_module: nn.Module) -> None:
            """Release the masks; the weights stay masked."""
            keeper.stop()

        def on_exception(self, trainer: object, pl_module: nn.Module, exception: BaseException) -> None:
            """Release the masks after a fit that failed, for its own reason."""
            with suppress(MaskMismatchError):
                keeper.stop()

    return HoldMasks()
