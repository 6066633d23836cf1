"""Masks held while transformers' `Trainer` trains.

    masks = sc.prune(model, criterion="l1", granularity="element", budget=0.8)
    trainer = Trainer(model=model, args=args, train_dataset=..., callbacks=[sc.trainer_callback(masks)])
    trainer.train()          # removed weights are exactly 0 during training and afterwards

>>> import inspect
>>> list(inspect.signature(trainer_callback).parameters)
['masks', 'model', 'gradual', 'copies', 'plan', 'example']
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from secateur.adapters.holding import GradualLike, MaskKeeper
from secateur.core.masks import Masks
from secateur.errors import MissingExtraError
from secateur.execution.example import Example
from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["trainer_callback"]


def trainer_callback(
    masks: Masks | None = None,
    model: nn.Module | None = None,
    *,
    gradual: GradualLike | None = None,
    copies: nn.Module | Iterable[nn.Module] = (),
    plan: ShrinkPlan | None = None,
    example: Example = None,
) -> object:
    """Make a `transformers.TrainerCallback` that holds masks from the first step to the last.

    `sparsity` is added to what the trainer logs, and `callback.masks` are the masks in force.
    Masks and plan are written into every checkpoint's folder, and
    `trainer.train(resume_from_checkpoint=True)` continues from them.

    Args:
        masks: The masks; None where `gradual` makes them.
        model: The model they belong to, where it is a part of the trainer's model.
        gradual: Makes masks while training runs: `sc.GradualPruning(0.9)`.
        copies: Models of the same names that stay masked too, such as an EMA copy.
        plan: The plan of a model that was cut before. Checkpoints have the cut widths and the dense configuration: with
            the plan beside them (`secateur_plan.json`), `plan.apply_(fresh)` makes a model that they load into.
        example: One input as the model is called with it, where `gradual` follows the forward (granularities "channel",
            "head", "head_size", "layer"). None takes what the model is called with first, without labels that are
            keywords.

    Returns:
        A callback for `Trainer(callbacks=[...])`.

    Raises:
        MissingExtraError: transformers is not installed.
        OptionError: There is nothing to hold, or the model has the widths from before the cut.
        MaskMismatchError: The masks are those of another model.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            "trainer_callback needs the library transformers, but it is not installed; next: pip install "
            "'secateur[transformers]'"
        ) from error
    keeper = MaskKeeper(masks, gradual, model, copies, plan, example)

    class HoldMasks(transformers.TrainerCallback):
        """Holds masks while the trainer trains."""

        @property
        def masks(self) -> Masks | None:
            """The masks in force; None before the first ones are made."""
            return keeper.masks

        def on_init_end(self, args: object, state: object, control: object, **given: Any) -> None:
            """Refuse the trainer's model where no checkpoint would fit it."""
            if keeper.model is None and given.get("model") is not None:
                keeper.check(given["model"])

        def on_train_begin(self, args: Any, state: Any, control: object, **given: Any) -> None:
            """Begin to hold: the model is placed and the optimizer made by now, and a checkpoint is loaded."""
            if state.global_step > 0:
                keeper.resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            keeper.start(given["model"], given.get("optimizer"))

        def on_step_begin(self, args: object, state: Any, control: object, **given: object) -> None:
            """Make the masks that are due."""
            keeper.step(state.global_step, state.max_steps)

        def on_log(self, args: object, state: Any, control: object, **given: Any) -> None:
            """Add the sparsity to what is logged, and to the history, which is written before this is called."""
            for logs in (given.get("logs"), state.log_history[-1] if state.log_history else None):
                if logs is not None:
                    logs.update(keeper.logged())

        def on_save(self, args: Any, state: Any, control: object, **given: object) -> None:
            """Write masks and plan beside the weights."""
            if state.is_world_process_zero:
                keeper.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: object, state: object, control: object, **given: object) -> None:
            """Release the masks; the weights stay masked."""
            keeper.stop()

    return HoldMasks()
