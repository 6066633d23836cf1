"""`TrainingContext`: what one training uses besides the model, the data and the options.

>>> TrainingContext().rewind_weights
True
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from secateur.lab.training.evaluation import Loss
from secateur.lab.training.progress import TrainingProgress
from secateur.lab.training.snapshot import Snapshot

__all__ = ["Evaluate", "TrainingContext"]

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""`evaluate(model)`: the model's metrics by name."""


@dataclass(frozen=True)
class TrainingContext:
    """What one training uses besides the model, the data and the options. Every field may be left out.

    Args:
        teacher: Another network, whose outputs are distilled, with `distill_alpha` above 0 in the options.
        loss: `loss(outputs, inputs, labels)`, in place of cross-entropy or of the model's own `training_loss`.
        evaluate: `evaluate(model) -> metrics`, in place of the pass over the validation images.
        checkpoint: A file, written after every epoch and resumed from if it exists; it is kept when training is done.
        progress: `auto` (bars on a terminal, or in a notebook that has `ipywidgets`; else nothing), None, or a
            `TrainingProgress`.
        rewind: Training starts at the step of this snapshot, as if the earlier steps had been made: the learning rate,
            the images and the random state (of the CPU) are those of the step.
        rewind_weights: Whether the weights and the optimizer's state go back, too (lottery tickets), or stay as they
            are (learning-rate rewinding).
    """

    teacher: nn.Module | None = None
    loss: Loss | None = None
    evaluate: Evaluate | None = None
    checkpoint: str | os.PathLike[str] | None = None
    progress: TrainingProgress | str | None = None
    rewind: Snapshot | None = None
    rewind_weights: bool = True
