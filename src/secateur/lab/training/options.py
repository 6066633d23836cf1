"""`TrainingOptions`: how to train, as one frozen value; and `rate`, the learning rate as a function of epochs done.

>>> options = TrainingOptions(epochs=4, lr=0.1, schedule="cosine")
>>> [round(rate(options, done), 4) for done in (0, 1, 2, 4)]
[0.1, 0.0854, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.core.json_text import is_count
from secateur.core.masks import Masks
from secateur.data import Augment
from secateur.errors import OptionError, near
from secateur.lab.training.distill import Distillation
from secateur.lab.training.distill import registry as distillations
from secateur.lab.training.snapshot import Snapshot
from secateur.sparsify import Sparsifier
from secateur.sparsify import registry as sparsifiers

__all__ = ["EpochRecord", "Trained", "TrainingOptions", "best_epoch", "rate"]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Every field has a default; a wrong value is refused at once.

    Args:
        epochs: Passes over the training images.
        optimizer: sgd, adam or adamw.
        lr: The learning rate, before schedule and warmup.
        momentum: Of sgd.
        nesterov: Nesterov's momentum, of sgd.
        weight_decay: Of the optimizer.
        betas: Of adam and adamw.
        schedule: constant, step, cosine or linear.
        milestones: With schedule `step`: the epochs after which the rate is multiplied by `gamma`.
        gamma: With schedule `step`: the factor at every milestone.
        warmup: Epochs in which the rate rises linearly to `lr`, before any schedule.
        label_smoothing: Of cross-entropy.
        distill_alpha: Weight of the teacher's outputs in the loss; the labels weigh the rest.
        distill_temperature: Divides both networks' logits before they are compared.
        batch_size: Images per optimizer step, however many micro-batches or processes share them.
        accumulate: Micro-batches per optimizer step.
        augment: `standard` (crop 4 and flip), `crop`, `flip`, `none`, or an `Augment`.
        early_stop: Ends training after this number of epochs without a better validation result.
        precision: fp32 is exact fp32 on every device; tf32, bf16 and fp16 are faster on accelerators that have them.
        grad_clip: Largest norm of all gradients together.
        keep: `last`, or `best`: the earliest epoch with the best validation accuracy (or loss, where there is none).
        mix: Share of the images that are mixed with another one of the batch, each at least half its own.
        average: A decay such as 0.999: the model ends as the running average of its weights, and is validated as that.
        sparsify: A method of `secateur.sparsify`, a word or a value: makes weights small, or removes them, while
            training runs.
        distill: Terms of `secateur.lab.training.distill` that compare layers with the teacher's: words or values.
        save_at: The optimizer step, counted from 0, before which a snapshot is taken to rewind to.

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
    sparsify: Sparsifier | str | None = None
    distill: tuple[Distillation, ...] | None = None
    save_at: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", Augment.of(self.augment))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.distill is not None:
            object.__setattr__(self, "distill", tuple(distillations.make(one) for one in self.distill))
        if self.sparsify is not None:
            object.__setattr__(self, "sparsify", sparsifiers.make(self.sparsify))
        _check_words(self)
        _check_ranges(self)
        _check_schedule(self)
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise OptionError("nesterov: expected optimizer='sgd' with momentum above 0")
        _check_sparsify(self)


_WORDS = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("constant", "step", "cosine", "linear"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "keep": ("last", "best"),
}
# what is expected, whether a value is that, and the options it holds for
_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda value: value >= 1, ("epochs", "batch_size", "accumulate", "early_stop")),
    (
        "a number above 0",
        lambda value: value > 0 and math.isfinite(value),
        ("lr", "gamma", "distill_temperature", "grad_clip"),
    ),
    ("0 <= {name} < 1", lambda value: 0 <= value < 1, ("momentum", "label_smoothing")),
    ("a share 0 <= share <= 1", lambda value: 0 <= value <= 1, ("distill_alpha", "mix")),
    ("a decay 0 < decay < 1", lambda value: 0 < value < 1, ("average",)),
    ("0 or more", lambda value: value >= 0, ("weight_decay", "save_at")),
)


def _check_words(options: TrainingOptions) -> None:
    """Refuse a word that an option does not know."""
    for name, known in _WORDS.items():
        value = getattr(options, name)
        if value not in known:
            raise OptionError(
                f"{name}: expected one of {', '.join(known)}, got {value!r}; {near(str(value), known)}"
            )


def _check_ranges(options: TrainingOptions) -> None:
    """Refuse a number outside its range; None is an option not given."""
    for expected, allowed, names in _RANGES:
        for name in names:
            value = getattr(options, name)
            if value is not None and not allowed(value):
                raise OptionError(f"{name}: expected {expected.format(name=name)}, got {value}")
    if len(options.betas) != 2 or not all(0 <= beta < 1 for beta in options.betas):
        raise OptionError(f"betas: expected two numbers 0 <= beta < 1, got {options.betas}")


def _check_schedule(options: TrainingOptions) -> None:
    """Refuse warmup and milestones that do not fit the epochs or the schedule."""
    if not 0 <= options.warmup < options.epochs:
        raise OptionError(f"warmup: expected 0 <= warmup < epochs ({options.epochs}), got {options.warmup}")
    if (options.schedule == "step") != bool(options.milestones):
        raise OptionError(
            "milestones: expected some with schedule='step' and none with another, got "
            f"{options.milestones} with schedule={options.schedule!r}"
        )
    if any(not 0 < milestone < options.epochs for milestone in options.milestones):
        raise OptionError(
            f"milestones: expected epochs between 1 and {options.epochs - 1} (epochs={options.epochs}), got "
            f"{options.milestones}"
        )


def _check_sparsify(options: TrainingOptions) -> None:
    """Refuse to keep an earlier epoch, or an average of weights, where masks change until the end."""
    method = options.sparsify
    if not isinstance(method, Sparsifier) or not method.changes_masks:
        return
    if options.keep == "best" or options.early_stop is not None or options.average is not None:
        raise OptionError(
            f"sparsify: {type(method).__name__} changes its masks until the last step, and they belong to the last "
            "weights; expected keep='last', no early_stop and no average"
        )


def rate(options: TrainingOptions, done: float) -> float:
    """The learning rate as a function of the epochs done only, so that a checkpoint need not store it.

    Args:
        options: Rate, schedule and warmup.
        done: Epochs done, with the fraction of the present one.

    Returns:
        The rate of the next optimizer step.

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
    """The result of one epoch. `metrics` are those of the validation split, empty where it has no image.

    >>> EpochRecord(1, train_loss=2.3, train_accuracy=0.1, lr=0.1, seconds=1.0).metrics
    {}
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    lr: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EpochRecord:
        """The record of plain data, as a checkpoint holds it.

        Args:
            values: Its fields by name.

        Raises:
            ValueError: They are not the fields of a record.
        """
        numbers = {name: value for name, value in values.items() if name not in ("epoch", "metrics")}
        metrics = values["metrics"]
        sound = is_count(values["epoch"]) and isinstance(metrics, dict)
        if numbers.get("train_accuracy", 0) is None:
            del numbers["train_accuracy"]
        if not sound or not all(
            type(each) in (int, float) for each in (*numbers.values(), *metrics.values())
        ):
            raise ValueError("an epoch's record holds something else than numbers")
        return cls(**values)


@dataclass(frozen=True)
class Trained:
    """The history of a training; the weights are in the model that was given.

    Args:
        history: One record per epoch.
        best_epoch: The epoch with the best validation result; the last one where nothing was validated.
        stopped_early: Whether `early_stop` ended it.
        resumed_from: Epochs that a checkpoint had done before.
        seconds: Time of all epochs together.
        masks: Those held at the end.
        snapshot: The training as it was before the step `save_at`.
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from: int
    seconds: float
    masks: Masks | None = None
    snapshot: Snapshot | None = None


def best_epoch(history: Sequence[EpochRecord]) -> int:
    """The earliest epoch with the best validation result, or the last one where nothing was validated; 0 of none.

    Args:
        history: The epochs so far.
    """

    def quality(record: EpochRecord) -> float:
        metrics = record.metrics
        return metrics["accuracy"] if "accuracy" in metrics else -metrics.get("loss", -record.epoch)

    if not history:
        return 0
    return max(history, key=lambda record: (quality(record), -record.epoch)).epoch
