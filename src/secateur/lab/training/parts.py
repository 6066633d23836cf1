"""`TrainingParts`: everything that one training is made of; parts that conflict are refused before the first step.

>>> from secateur import data, models
>>> digits, model = data.load("digits", size=28, limit=200, validation=0.0), models.build("lenet-300-100")
>>> TrainingParts(model, digits, TrainingOptions(keep="best"), None, None, TrainingContext()).check(classifies=True)
Traceback (most recent call last):
secateur.errors.OptionError: keep='best' and early_stop choose by the validation split, which is empty; ...
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from secateur.core.masks import Masks
from secateur.data import Data
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.lab.training.checkpoint import tensors_digest
from secateur.lab.training.context import TrainingContext
from secateur.lab.training.options import TrainingOptions
from secateur.lab.training.pruning import GradualPruning

__all__ = ["TrainingParts"]


@dataclass(frozen=True)
class TrainingParts:
    """The model, its data, and how it is trained."""

    model: nn.Module
    data: Data
    options: TrainingOptions
    masks: Masks | None
    pruning: GradualPruning | None
    context: TrainingContext

    def check(self, classifies: bool) -> None:
        """Raise where something is missing, or where two parts conflict.

        Args:
            classifies: Whether the loss is cross-entropy of the model's outputs.
        """
        _check_parts(self, classifies)
        _check_validation(self)

    def identity(self, seed: int) -> dict[str, Any]:
        """What a checkpoint says of its training, as plain data: that of another one is refused.

        Args:
            seed: The seed of the training.
        """
        custom = [
            getattr(part, "__qualname__", type(part).__name__)
            for part in (self.context.loss, self.context.evaluate)
        ]
        options = asdict(replace(self.options, sparsify=None, distill=None))
        about = {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in options.items()},
            "seed": seed,
            "data": self.data.fingerprint,
            "start": tensors_digest(self.model),
            "teacher": tensors_digest(self.context.teacher),
            "masks": None if self.masks is None else self.masks.digest(),
            "functions": custom,
        }
        about["distill"] = None if not self.options.distill else repr(self.options.distill)
        rewind = self.context.rewind
        about["rewind"] = None if rewind is None else [rewind.digest(), self.context.rewind_weights]
        about["sparsify"] = None if self.options.sparsify is None else repr(self.options.sparsify)
        if self.pruning is not None:
            about["pruning"] = json.loads(json.dumps(asdict(self.pruning), default=repr))
        return about


def _check_parts(parts: TrainingParts, classifies: bool) -> None:
    """Refuse missing images, a model without anything to train, and parts that conflict."""
    name = type(parts.model).__name__
    teacher, alpha = parts.context.teacher, parts.options.distill_alpha
    if len(parts.data.train) == 0:
        raise DataError(f"{parts.data.name}: expected training images, got none")
    if not any(parameter.requires_grad for parameter in parts.model.parameters()):
        raise NothingToDoError(f"{name} has no parameter that requires a gradient: there is nothing to train")
    if (teacher is not None) != (alpha > 0 or bool(parts.options.distill)):
        raise OptionError(
            "distillation needs both a teacher and distill_alpha above 0, or distill; got "
            f"{'a teacher' if teacher is not None else 'no teacher'} and distill_alpha={alpha}"
        )
    if alpha > 0 and not classifies:
        raise OptionError(
            f"distillation compares logits, which {name} does not return; leave the teacher out"
        )
    if parts.options.mix and (parts.context.loss is not None or not classifies):
        raise OptionError(
            f"mix: only cross-entropy takes two labels per image, and {name} is trained with another loss"
        )
    if parts.context.rewind is not None and (parts.options.sparsify or parts.pruning) is not None:
        raise OptionError("rewind: a training that rewinds holds its masks; expected no sparsify or pruning")
    if parts.options.sparsify is not None and parts.pruning is not None:
        raise OptionError("sparsify: gradual pruning chooses the masks itself; expected one of the two")
    if parts.masks is not None:
        parts.masks.check(parts.model)


def _check_validation(parts: TrainingParts) -> None:
    """Refuse options that choose an epoch where no epoch can be chosen."""
    if parts.options.keep != "best" and parts.options.early_stop is None:
        return
    if parts.context.evaluate is None and len(parts.data.validation) == 0:
        raise OptionError(
            "keep='best' and early_stop choose by the validation split, which is empty; load the data "
            "with validation=0.1"
        )
    if parts.pruning is not None:
        raise OptionError(
            "pruning: the best epoch may come before the last weights are removed; expected keep='last' and no "
            "early_stop"
        )
