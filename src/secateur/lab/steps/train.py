"""`train`: train the model; its masks, where it has some, are held.

Every option of `secateur.lab.training.TrainingOptions` is an option of the step.

>>> TrainStep(epochs=3, lr=0.05).training().epochs
3
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from pydantic import Field, create_model
from torch import nn

from secateur import budget, criteria, granularity, sparsify
from secateur.core.measurement import Measurement, Measurements
from secateur.data import Augment
from secateur.errors import OptionError, RecipeError, near
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Options, Plugin, Result, Step, Work, make
from secateur.lab.training import (
    EpochRecord,
    Evaluate,
    GradualPruning,
    Snapshot,
    Trained,
    TrainingContext,
    TrainingOptions,
    distill,
    train,
)
from secateur.sparsify import Sparsifier

__all__ = ["EPOCH_ROWS", "Augmentation", "TrainBase", "TrainStep", "augmentation"]

EPOCH_ROWS = ("epoch_loss", "epoch_train_accuracy", "epoch_validation_*")
"""What every training step measures after an epoch."""

_LATER = ("sparsify", "distill", "save_at", "rewind", "rewind_rate")


class AugmentOptions(Options):
    """How training images are augmented."""

    crop: int = 4
    flip: bool = True
    edges: Literal["black", "mirrored"] = "black"


Augmentation = AugmentOptions | bool | str | None


def augmentation(given: Augmentation) -> Augment | None:
    """The augmentation that a step's `augment` asks for.

    Args:
        given: A table, a word, or None.

    Returns:
        The augmentation, or None for none.

    >>> augmentation(AugmentOptions(crop=2)), augmentation("none")
    (Augment(crop=2, flip=True, edges='black'), None)
    """
    return Augment(**given.model_dump()) if isinstance(given, AugmentOptions) else Augment.of(given)


def sparsifier(given: Plugin | None) -> Sparsifier | None:
    """The sparse training method that a step's `sparsify` asks for.

    Args:
        given: A word, or a table of `name` and options, in which a budget, criterion or granularity may be a table too.

    Returns:
        The method, or None for none.

    >>> sparsifier({"name": "growing", "budget": {"name": "overall", "sparsity": 0.5}}).budget.sparsity
    0.5
    """
    if given is None:
        return None
    if isinstance(given, dict):
        folders = {
            "budget": budget.registry,
            "criterion": criteria.registry,
            "granularity": granularity.registry,
        }
        given = {
            key: make(folders[key], value)
            if key in folders and (isinstance(value, dict) or ":" in str(value))
            else value
            for key, value in given.items()
        }
    found: Sparsifier = make(sparsify.registry, given)
    return found


def training_fields(**other: object) -> dict[str, Any]:
    """The options of `TrainingOptions` as pydantic fields.

    Args:
        other: Other defaults, by name.

    Returns:
        Type and default of every field, as `pydantic.create_model` takes them.
    """
    hints = get_type_hints(TrainingOptions)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(TrainingOptions):
        kinds = {
            "augment": Augmentation,
            "sparsify": Plugin | None,
            "distill": tuple[str | dict[str, Any], ...] | None,
        }
        kind = kinds.get(field.name, hints[field.name])
        found[field.name] = (kind, other.get(field.name, field.default))
    return found


class TrainBase(Step):
    """What all steps that train a model share: how to train, and an earlier step to learn from."""

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True
    teacher: str | None = Field(
        None, description="distilled from: the label of an earlier step, or 'teacher' for the [teacher] table"
    )
    rewind: str | None = Field(
        None,
        description="label of an earlier training with save_at: weights, optimizer and rate go back to that step",
    )
    rewind_rate: str | None = Field(
        None, description="the same with the learning rate alone: the weights stay as they are"
    )
    channels_last: bool = Field(
        False, description="train with the channels innermost: faster with bf16 on a CPU"
    )

    def training(self) -> TrainingOptions:
        """The options as `TrainingOptions`, which checks their values."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainingOptions)}
        given["augment"] = augmentation(given["augment"])
        given["sparsify"] = sparsifier(given["sparsify"])
        if given["distill"] is not None:
            given["distill"] = tuple(make(distill.registry, one) for one in given["distill"])
        return TrainingOptions(**given)

    def chosen(self) -> Table:
        """The options as plain data; those of later versions only where given, so that addresses of older outcomes stay
        valid.
        """
        return {
            key: value for key, value in super().chosen().items() if key not in _LATER or value is not None
        }

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the values, and that the teacher is an earlier step."""
        self.training()
        if self.teacher is not None and self.teacher not in before:
            if self.teacher == "teacher":
                raise RecipeError(
                    f"step {self.label!r}: no earlier step is labelled 'teacher', and the recipe has no [teacher] "
                    "table; name a step, or the other network in that table"
                )
            raise RecipeError(
                f"step {self.label!r}: teacher {self.teacher!r} is no earlier step; "
                + (near(self.teacher, before) if before else "this is the first step")
            )
        self._check_rewind(before)
        options = self.training()
        if self.teacher is None and (options.distill_alpha > 0 or options.distill):
            raise RecipeError(
                f"step {self.label!r}: {'distill' if options.distill else 'distill_alpha'} needs a teacher, the label "
                "of an earlier step or 'teacher' for the [teacher] table"
            )

    def refers(self) -> tuple[str, ...]:
        """The teacher, on whose weights the outcome depends, and the training that it rewinds to."""
        return tuple(one for one in (self.teacher, self.rewind, self.rewind_rate) if one is not None)

    def _check_rewind(self, before: list[str]) -> None:
        """Check that the training to rewind to is one earlier step."""
        if self.rewind is not None and self.rewind_rate is not None:
            raise RecipeError(f"step {self.label!r}: expected one of rewind and rewind_rate, got both")
        label = self.rewind or self.rewind_rate
        if label is not None and label not in before:
            raise RecipeError(
                f"step {self.label!r}: rewind to {label!r}, which is no earlier step; "
                + (near(label, before) if before else "this is the first step")
            )

    def _snapshot(self, work: Work) -> Snapshot | None:
        """The snapshot to rewind to."""
        label = self.rewind or self.rewind_rate
        if label is None:
            return None
        found = work.earlier(label).snapshot
        if found is None:
            raise OptionError(
                f"step {self.label!r}: step {label!r} has no snapshot to rewind to; give it save_at, the optimizer step"
            )
        return Snapshot.from_bytes(found)

    def set_memory_format(self, model: nn.Module) -> None:
        """Put the weights into the memory format that was asked for."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, state: State, work: Work) -> Result:
        """Train; the log holds the epochs."""
        return self.trained(state, work)

    def trained(
        self,
        state: State,
        work: Work,
        pruning: GradualPruning | None = None,
        evaluate: Evaluate | None = None,
    ) -> Result:
        """Train; `pruning` also removes weights, `evaluate` takes the place of the usual evaluation."""
        if state.codebooks:
            raise OptionError(
                f"step {self.label!r}: the weights are shared, and training would make them all different again; "
                "train before sharing, or use a `refine` step"
            )
        teacher = work.earlier(self.teacher).model if self.teacher is not None else None
        self.set_memory_format(state.model)
        trained = train(
            state.model,
            work.data,
            self.training(),
            masks=state.masks,
            pruning=pruning,
            seed=work.seed,
            device=work.device,
            context=TrainingContext(
                teacher,
                evaluate=evaluate,
                checkpoint=work.checkpoint,
                progress=work.progress.training(),
                rewind=self._snapshot(work),
                rewind_weights=self.rewind is not None,
            ),
        )
        state.model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        log = {
            "epochs": len(trained.history),
            "best_epoch": trained.best_epoch,
            "early": trained.stopped_early,
            "resumed_from": trained.resumed_from,
        }
        state.model.eval()
        return Result(
            State(
                state.model,
                masks=trained.masks,
                plan=state.plan,
                snapshot=None if trained.snapshot is None else trained.snapshot.to_bytes(),
            ),
            Measurements(row for record in trained.history for row in _rows(record)),
            log,
            _line(trained),
        )


def _rows(record: EpochRecord) -> list[Measurement]:
    """The measurements of one epoch."""
    at = {"epoch": record.epoch}
    rows = [Measurement("epoch_loss", record.train_loss, "", "mean training loss over the epoch", context=at)]
    if record.train_accuracy is not None:
        text = "share of training images classified correctly during the epoch"
        rows.append(Measurement("epoch_train_accuracy", record.train_accuracy, "", text, context=at))
    for name, value in record.metrics.items():
        text = f"{name} on the validation images after the epoch"
        rows.append(Measurement(f"epoch_validation_{name}", value, "", text, context=at))
    return rows


def _line(trained: Trained) -> str:
    """The training in half a sentence."""
    line = f"{len(trained.history)} epochs"
    if trained.history:
        last = trained.history[-1]
        line += f", loss {last.train_loss:.3f}"
        if "accuracy" in last.metrics:
            line += f", validation accuracy {last.metrics['accuracy']:.2%}"
    return line


class _Train(TrainBase):
    """Training, and nothing else."""

    measures: ClassVar[tuple[str, ...] | None] = EPOCH_ROWS


TrainStep: Any = create_model("TrainStep", __base__=_Train, __module__=__name__, **training_fields())
TrainStep.__doc__ = "Train the model."
