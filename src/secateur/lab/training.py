"""Training: one plain loop on Hugging Face accelerate, the same bytes for the same seed, resumed to the bit.

    options = Training(epochs=3, optimizer="sgd", lr=0.1, schedule="cosine")
    trained = train(model, data, options, masks=masks, seed=0, progress="auto")
    trained.history[-1].metrics["accuracy"], evaluate(model, data.test)["accuracy"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from secateur.core.masks import Masks
from secateur.data import Augment, Data, Split

__all__ = ["EpochRecord", "Progress", "Trained", "Training", "evaluate", "train"]


@dataclass(frozen=True)
class Training:
    """How to train. Every field has a default; wrong values are refused when the value is made."""

    epochs: int = 10
    optimizer: str = "sgd"  # sgd, adam, adamw
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"  # constant, step, cosine, linear
    milestones: tuple[int, ...] = ()  # for step: lr is multiplied by gamma when this many epochs are done
    gamma: float = 0.1
    warmup: float = 0.0  # epochs over which the rate rises linearly from 0; goes with any schedule
    label_smoothing: float = 0.0
    distill_alpha: float = 0.0  # share of the loss that comes from the teacher
    distill_temperature: float = 4.0
    batch_size: int = 128  # images per optimizer step, whatever `accumulate` and the number of processes
    accumulate: int = 1  # micro-batches a batch is cut into
    augment: Augment | None = None  # also True, or "standard" for crop 4 and flip
    early_stop: int | None = None  # epochs without a better validation result
    precision: str = "fp32"  # fp32, bf16, fp16
    grad_clip: float | None = None  # largest norm of the whole gradient
    keep: str = "last"  # last, or best: the weights of the epoch with the best validation result


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to. `metrics` are the validation split's (empty where there is none)."""

    epoch: int  # 1, 2, ...
    train_loss: float
    train_accuracy: float | None
    lr: float
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Trained:
    """What training came to. The weights are in the model that was given."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from: int  # epochs found done in the checkpoint, 0 for none
    seconds: float


class Progress(Protocol):
    """What a front end implements to watch a training; every method is called on the main process only."""

    def start(self, epochs: int, steps: int, done: int) -> None:
        """Training begins: so many epochs of so many steps, `done` of the epochs already done."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step is done (called a few times a second at most; loss is the epoch's running mean)."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def finish(self) -> None:
        """Training is over, also after an error."""


def train(
    model: nn.Module,
    data: Data,
    options: Training | None = None,
    *,
    masks: Masks | None = None,
    teacher: nn.Module | None = None,
    loss: Callable[[Any, Any, Any], Any] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: Any = None,
    progress: Progress | str | None = None,
) -> Trained:
    """Train the model in place.

    `masks` are held: removed weights stay exactly 0. `teacher` distils (needs options.distill_alpha > 0). `loss(outputs,
    inputs, labels)` replaces cross-entropy; without it the model's own `training_loss` is used where it has one.
    `evaluate(model) -> metrics` replaces the pass over data.validation. `checkpoint` is a file: written after every epoch,
    resumed from when it is there. `progress` is "auto" (rich on a terminal, else quiet), None, or a `Progress`.
    """
    raise NotImplementedError


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    device: str = "auto",
    loss: Callable[[Any, Any, Any], Any] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics of a model over a split: accuracy and loss, or what the model's own `evaluation_metrics` gives."""
    raise NotImplementedError
