"""`Objective`: what a training minimises: the loss on the labels, and the distance from a teacher.

>>> objective = Objective(nn.Linear(4, 3), TrainingOptions(), TrainingContext())
>>> objective.classifies
True
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.lab.training import mix as mixing
from secateur.lab.training.context import TrainingContext
from secateur.lab.training.distill import Recorded, recorded
from secateur.lab.training.evaluation import distillation, logits_of, loss_of
from secateur.lab.training.options import TrainingOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Objective"]


class Objective:
    """The loss of a model on some images.

    Args:
        model: The model that is trained.
        options: How it is trained.
        context: The teacher and the custom loss, if any.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions, context: TrainingContext):
        self.model, self.options, self.context = model, options, context
        self.loss, self.classifies = loss_of(model, context.loss, options.label_smoothing)
        self.recorded: list[Recorded] = []  # of the student and of the teacher

    def record(self, stack: ExitStack) -> None:
        """Record the layers that distillation compares."""
        pairs = [pair for term in self.options.distill or () for pair in term.pairs if pair != ("", "")]
        if self.context.teacher is not None and self.options.distill:
            ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
            self.recorded = [
                stack.enter_context(recorded(self.model, ours, "student")),
                stack.enter_context(recorded(self.context.teacher, theirs, "teacher")),
            ]

    def of(
        self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, accelerator: Accelerator
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """The loss of some images, and how many of them are classified correctly."""
        options, teacher = self.options, self.context.teacher
        pairs = mixing.mixed(images, labels, options.mix) if options.mix else None
        images = images if pairs is None else pairs.images
        with accelerator.autocast():
            outputs = network(images)
            answers = None
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(images)
        if pairs is None:
            value = self.loss(outputs, images, labels)
        else:
            value = mixing.cross_entropy(logits_of(outputs).float(), pairs, options.label_smoothing)
        if answers is not None and not options.distill_alpha:
            value = value + self._compared(outputs, answers)
        elif answers is not None:
            distilled = distillation(outputs, answers, options.distill_temperature)
            value = options.distill_alpha * distilled + (1 - options.distill_alpha) * value
            value = value + self._compared(outputs, answers)
        if not self.classifies:
            return value, 0
        return value, (logits_of(outputs).detach().argmax(1) == labels).sum()

    def _compared(self, outputs: object, answers: object) -> torch.Tensor | float:
        """The terms of distillation that compare layers, each averaged over them."""
        total: torch.Tensor | float = 0.0
        for term in self.options.distill or ():
            parts = [
                term.compare(logits_of(outputs), logits_of(answers))
                if pair == ("", "")
                else term.compare(self.recorded[0].of(pair[0]), self.recorded[1].of(pair[1]))
                for pair in term.pairs
            ]
            total = total + term.weight * torch.stack(parts).mean()
        return total
