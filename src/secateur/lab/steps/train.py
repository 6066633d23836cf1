"""`train`: train the model, with whatever masks it has held all the while.

Every option of `secateur.lab.training.options.TrainingOptions` is an option of the step.

>>> TrainStep(epochs=3, lr=0.05).training().epochs
3
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from pydantic import Field, create_model
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.data import Augment
from secateur.errors import OptionError, RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Options, Result, Step, Work
from secateur.lab.training import loop as trainer

__all__ = ["Augmentation", "TrainBase", "TrainStep", "augmentation"]


class AugmentOptions(Options):
    """How training images are changed at random."""

    crop: int = 4
    flip: bool = True
    edges: Literal["black", "mirrored"] = "black"


Augmentation = AugmentOptions | bool | str | None


def augmentation(given: Augmentation) -> Augment | None:
    """What a step's `augment` asks for, checked.

    >>> augmentation(AugmentOptions(crop=2)), augmentation("none")
    (Augment(crop=2, flip=True, edges='black'), None)
    """
    return Augment(**given.model_dump()) if isinstance(given, AugmentOptions) else Augment.of(given)


def training_fields(**other: Any) -> dict[str, Any]:
    """The options of `Training` as pydantic fields, so that the two never drift; `other` changes defaults."""
    hints = get_type_hints(trainer.TrainingOptions)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(trainer.TrainingOptions):
        kind = Augmentation if field.name == "augment" else hints[field.name]
        found[field.name] = (kind, other.get(field.name, field.default))
    return found


class TrainBase(Step):
    """What `train` and `retrain` share: how to train, and an earlier step to learn from."""

    version: ClassVar[int] = 1
    teacher: str | None = Field(
        None, description="distilled from: the label of an earlier step, or 'teacher' for the [teacher] table"
    )
    channels_last: bool = Field(
        False, description="train with the channels innermost: faster with bf16 on a CPU"
    )

    def training(self) -> trainer.TrainingOptions:
        """The options as `Training`, which checks their values."""
        given = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(trainer.TrainingOptions)
        }
        given["augment"] = augmentation(given["augment"])
        return trainer.TrainingOptions(**given)

    def check(self, model: nn.Module, before: list[str]) -> None:
        """The values, and that the teacher comes first."""
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
        if self.teacher is None and self.training().distill_alpha > 0:
            raise RecipeError(
                f"step {self.label!r}: distill_alpha needs a teacher, the label of an earlier step or "
                "'teacher' for the [teacher] table"
            )

    def refers(self) -> tuple[str, ...]:
        """The teacher, whose weights are part of what comes out."""
        return (self.teacher,) if self.teacher is not None else ()

    def lay(self, model: nn.Module) -> None:
        """The weights in the order of memory that was asked for."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, state: State, work: Work) -> Result:
        """Train; the log holds the epochs."""
        return self.trained(state, work)

    def trained(self, state: State, work: Work, pruning: trainer.GradualPruning | None = None) -> Result:
        """Train, and prune meanwhile where a plan for it is given."""
        if state.codebooks:
            raise OptionError(
                f"step {self.label!r}: the weights are shared by now, and training would make them all "
                "different again; "
                "train before sharing"
            )
        teacher = work.earlier(self.teacher).model if self.teacher is not None else None
        self.lay(state.model)
        trained = trainer.train(
            state.model,
            work.data,
            self.training(),
            masks=state.masks,
            pruning=pruning,
            teacher=teacher,
            seed=work.seed,
            device=work.device,
            checkpoint=work.checkpoint,
            progress=work.progress.training(),
        )
        state.model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        measured: list[Measurement] = []
        for record in trained.history:
            at = {"epoch": record.epoch}
            measured.append(
                Measurement(
                    "epoch_loss", record.train_loss, "", "mean training loss over the epoch", context=at
                )
            )
            if record.train_accuracy is not None:
                text = "share of training images classified right while the epoch ran"
                measured.append(
                    Measurement("epoch_train_accuracy", record.train_accuracy, "", text, context=at)
                )
            for name, value in record.metrics.items():
                text = f"{name} on the validation images after the epoch"
                measured.append(Measurement(f"epoch_validation_{name}", value, "", text, context=at))
        log = {
            "epochs": len(trained.history),
            "best_epoch": trained.best_epoch,
            "early": trained.stopped_early,
            "resumed_from": trained.resumed_from,
        }
        last = trained.history[-1] if trained.history else None
        line = f"{len(trained.history)} epochs"
        if last is not None:
            line += f", loss {last.train_loss:.3f}"
            if "accuracy" in last.metrics:
                line += f", validation accuracy {last.metrics['accuracy']:.2%}"
        state.model.eval()
        return Result(
            State(state.model, masks=trained.masks, plan=state.plan), Measurements(measured), log, line
        )


TrainStep: Any = create_model("TrainStep", __base__=TrainBase, __module__=__name__, **training_fields())
TrainStep.__doc__ = "Train the model."
