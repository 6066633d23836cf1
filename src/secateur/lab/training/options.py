"""`TrainingOptions`: how to train, as one frozen value; and the learning rate as a function of how far training has
come.

>>> options = TrainingOptions(epochs=4, lr=0.1, schedule="cosine")
>>> [round(rate(options, done), 4) for done in (0, 1, 2, 4)]
[0.1, 0.0854, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from secateur.core.masks import Masks
from secateur.data import Augment
from secateur.errors import OptionError, near

__all__ = ["EpochRecord", "Trained", "TrainingOptions", "rate"]

_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = ("constant", "step", "cosine", "linear")
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Every field has a default; wrong values are refused when the value is made.

    `milestones` and `gamma` belong to the schedule `step`: the rate is multiplied by gamma when so many
    epochs are done. `warmup` is how many epochs the rate takes to rise linearly to `lr`, before any schedule.
    `batch_size` is the images per optimizer step, however many micro-batches (`accumulate`) or processes
    share it. `augment` is `standard` (crop 4 and flip), `crop`, `flip`, none or an `Augment`. `early_stop`
    ends training after so many epochs without a better validation result, and `keep="best"` returns to the
    epoch with the best one (accuracy, or the loss where there is none; the earliest of equals). `precision`
    fp32 is exact fp32 on every device; tf32, bf16 and fp16 are faster on accelerators that have them. `mix` is
    the part of the images that are mixed with another one of the batch, at least half their own. With `average`,
    a decay such as 0.999, the model ends as the running average of its weights, and is validated as that.

    >>> TrainingOptions(lr=-1)
    Traceback (most recent call last):
    secateur.errors.OptionError: lr: expected a number above 0, got -1
    """

    epochs: int = 10
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    distill_alpha: float = 0.0
    distill_temperature: float = 4.0
    batch_size: int = 128
    accumulate: int = 1
    augment: Augment | str | bool | None = None
    early_stop: int | None = None
    precision: str = "fp32"
    grad_clip: float | None = None
    keep: str = "last"
    mix: float = 0.0
    average: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", Augment.of(self.augment))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "betas", tuple(self.betas))
        _one_of("optimizer", self.optimizer, _OPTIMIZERS)
        _one_of("schedule", self.schedule, _SCHEDULES)
        _one_of("precision", self.precision, _PRECISIONS)
        _one_of("keep", self.keep, ("last", "best"))
        for name in ("epochs", "batch_size", "accumulate", "early_stop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected at least 1, got {value}")
        for name in ("lr", "gamma", "distill_temperature", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise OptionError(f"{name}: expected a number above 0, got {value}")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        for name in ("distill_alpha", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name}: expected a share 0 <= share <= 1, got {getattr(self, name)}")
        if self.average is not None and not 0 < self.average < 1:
            raise OptionError(f"average: expected a decay 0 < decay < 1, got {self.average}")
        if self.weight_decay < 0:
            raise OptionError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if not 0 <= self.warmup < self.epochs:
            raise OptionError(f"warmup: expected 0 <= warmup < epochs ({self.epochs}), got {self.warmup}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise OptionError(f"betas: expected two numbers 0 <= beta < 1, got {self.betas}")
        if (self.schedule == "step") != bool(self.milestones):
            raise OptionError(
                "milestones: expected some with schedule='step' and none with another, got "
                f"{self.milestones} with schedule={self.schedule!r}"
            )
        if any(not 0 < milestone < self.epochs for milestone in self.milestones):
            raise OptionError(
                f"milestones: expected epochs between 1 and {self.epochs - 1} (epochs={self.epochs}), got "
                f"{self.milestones}"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise OptionError("nesterov: expected optimizer='sgd' with momentum above 0")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(
            f"{name}: expected one of {', '.join(known)}, got {value!r}; {near(str(value), known)}"
        )


def rate(options: TrainingOptions, done: float) -> float:
    """The learning rate when so many epochs (a fraction counts) are done.

    A function of that number alone, so that nothing about it has to be kept in a checkpoint.

    >>> step = TrainingOptions(epochs=10, lr=1.0, schedule="step", milestones=(5, 7), warmup=2)
    >>> [round(rate(step, done), 4) for done in (0.5, 1, 4.9, 5, 9)]
    [0.25, 0.5, 1.0, 0.1, 0.01]
    """
    if done < options.warmup:
        return options.lr * done / options.warmup
    if options.schedule == "step":
        return options.lr * options.gamma ** sum(done >= milestone for milestone in options.milestones)
    share = min(1.0, (done - options.warmup) / (options.epochs - options.warmup))
    if options.schedule == "cosine":
        return options.lr * 0.5 * (1 + math.cos(math.pi * share))
    if options.schedule == "linear":
        return options.lr * (1 - share)
    return options.lr


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to. `metrics` are the validation split's, empty where it has no image.

    >>> EpochRecord(1, train_loss=2.3, train_accuracy=0.1, lr=0.1, seconds=1.0).metrics
    {}
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    lr: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What training came to; the weights are in the model that was given.

    `best_epoch` is the epoch with the best validation result (the last one where nothing was validated),
    `resumed_from` how many epochs a checkpoint had done before, `seconds` the time of all epochs together,
    `masks` those held at the end.
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from: int
    seconds: float
    masks: Masks | None = None
