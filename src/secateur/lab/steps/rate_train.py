"""`rate_train`: train weights as whole multiples of a learnt step, for accuracy and for the bytes of the file at once.

The cost of a bit follows a schedule of bytes, from the file at the start to `target` bytes. After every epoch the real
file is written and its bytes are compared with the training's estimate.

>>> RateTrainStep(target=3000, epochs=20).training().lr
0.001
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, create_model
from torch import nn

from secateur.container.archive import save
from secateur.container.save_options import SaveOptions
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement
from secateur.core.targets import select
from secateur.data import Data
from secateur.errors import OptionError, RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Result, Work
from secateur.lab.steps.train import EPOCH_ROWS, TrainBase, training_fields
from secateur.lab.training import evaluate
from secateur.quantize.latent_training import LatentOptions, LatentTraining

__all__ = ["RateTrainStep"]

Patterns = str | tuple[str, ...] | None


class _RateTrain(TrainBase):
    """Training for bytes."""

    version: ClassVar[int] = 3
    measures: ClassVar[tuple[str, ...] | None] = (*EPOCH_ROWS, "estimated_bytes", "measured_bytes")
    target: int = Field(..., ge=1, description="bytes of the file to reach")
    until: float = Field(
        0.7, gt=0, le=1, description="share of the epochs after which the schedule is at the target"
    )
    most: int = Field(3, ge=1, le=100, description="the largest multiple of the step, on both sides of zero")
    scale: float = Field(
        0.7, gt=0, description="the first step, in root mean squares of a tensor's weights that are not zero"
    )
    price: float = Field(1e-6, gt=0, description="the price of a bit at the start, in units of the loss")
    start: str | None = Field(
        None, description="start from the weights of this earlier step, or of 'teacher', the [teacher] table"
    )
    only: Patterns = Field(None, description="layers to train so, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    biases: int | None = Field(
        None, description="bits of biases in the file that is measured; with a number they are priced too"
    )
    batch_norm: str | int | None = Field(
        None, description="how the file that is measured folds batch norm, as in pack"
    )
    ahead: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of the bytes wanted beyond the schedule at the highest learning rate; 0: never",
    )
    coder: str = Field("strong", description="coder of the file that is measured: fast, mixed or strong")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the values, the patterns, and that the last epoch is the one kept."""
        super().check(model, before)
        select(model, self.only, self.skip)
        self._save_options()
        if self.start is not None and self.start not in before:
            raise RecipeError(
                f"step {self.label!r}: start {self.start!r} is no earlier step; "
                + (near(self.start, before) if before else "this is the first step")
            )
        training = self.training()
        if training.keep != "last" or training.early_stop is not None or training.average is not None:
            raise OptionError(
                f"step {self.label!r}: the bytes are those of the last epoch; expected keep='last', no early_stop "
                "and no average"
            )

    def refers(self) -> tuple[str, ...]:
        """The teacher's step, and the one whose weights training starts from."""
        return super().refers() + ((self.start,) if self.start is not None else ())

    def _save_options(self) -> SaveOptions:
        return SaveOptions(batch_norm=self.batch_norm, biases=self.biases, coder=self.coder)

    def _latent_options(self, data: Data) -> LatentOptions:
        """The options with the number of steps that the training will take."""
        training = self.training()
        steps = -(-len(data.train) // training.batch_size) * training.epochs
        return LatentOptions(
            self.target, steps, self.until, self.most, self.scale, self.price, self.biases, self.ahead
        )

    def _start_from(self, earlier: nn.Module, model: nn.Module) -> None:
        """Copy all tensors of another network of the same shapes."""
        there, here = earlier.state_dict(), model.state_dict()
        wrong = [name for name in here if name not in there or there[name].shape != here[name].shape]
        if wrong:
            raise OptionError(
                f"step {self.label!r}: {wrong[0]} of {self.start!r} has another shape; start from a network of the "
                "same widths"
            )
        model.load_state_dict({name: there[name] for name in here})

    def run(self, state: State, work: Work) -> Result:
        """Train inside `LatentTraining`; masks then say which weights are zero."""
        if state.codebooks:
            raise OptionError(f"step {self.label!r}: the weights are shared; train for bytes before sharing")
        if self.start is not None:
            self._start_from(work.earlier(self.start).model, state.model)
        model = state.model.to(work.device)
        self.set_memory_format(model)
        options, plain = self._latent_options(work.data), copy.deepcopy(model).cpu()
        with LatentTraining(model, options, self.only, self.skip) as training:
            watch = _ByteWatch(training, plain, work, self._save_options(), state.plan)
            watch.measure()
            beside = {n: m for n, m in (state.masks or {}).items() if n not in training.names}
            biases = [] if self.biases is None else _biases_of(model, training.names)
            masks = Masks(beside) if beside else None
            result = self.trained(State(model, masks=masks, plan=state.plan), work, evaluate=watch)
            levels = {name: level.cpu() for name, level in training.levels().items()}
        model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.eval()
        kept = {**(state.masks or {}), **{name: level != 0 for name, level in levels.items()}}
        kept |= {name: model.get_parameter(name).detach() != 0 for name in biases}
        weights = sum(level.numel() for level in levels.values())
        left = sum(int((level != 0).sum()) for level in levels.values())
        rows = [
            Measurement(
                "estimated_bytes", watch.believed, "bytes", "bytes of the file as the training believed"
            ),
            Measurement(
                "measured_bytes", watch.size, "bytes", "bytes of the file written after the last epoch"
            ),
        ]
        return replace(
            result,
            state=State(model, masks=Masks(kept), plan=state.plan, files=state.files),
            measurements=result.measurements + rows,
            line=f"{result.line}, {left:,} of {weights:,} weights left, {watch.size:,} bytes "
            f"(believed {watch.believed:,.0f})",
        )


def _biases_of(model: nn.Module, names: list[str]) -> list[str]:
    """The biases of the layers that own these weights."""
    there = dict(model.named_parameters())
    paths = [name.rpartition(".")[0] for name in names]
    return [bias for path in paths if (bias := f"{path}.bias" if path else "bias") in there]


class _ByteWatch:
    """Evaluates after every epoch, and writes the file to compare its bytes with the estimate."""

    def __init__(
        self,
        training: LatentTraining,
        plain: nn.Module,
        work: Work,
        options: SaveOptions,
        plan: str | None,
    ):
        self.training, self.plain, self.work, self.options, self.plan = training, plain, work, options, plan
        self.size, self.believed = 0, 0.0

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.measure()
        data = self.work.data
        found = (
            evaluate(model, data.validation, device=self.work.device)
            if len(data.validation)
            else {"loss": 0.0}
        )
        return {**found, "file_bytes": float(self.size), "estimated_bytes": self.believed}

    def measure(self) -> None:
        """Write the file as it would be now."""
        self.plain.load_state_dict(self.training.state())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "now.sct"
            saved = save(self.plain, path, plan=self.plan, names="model", options=self.options)
        self.size = saved.size
        self.believed = self.training.measured(saved.size)


RateTrainStep: Any = create_model(
    "RateTrainStep",
    __base__=_RateTrain,
    __module__=__name__,
    **training_fields(lr=0.001, optimizer="adam", schedule="cosine"),
)
RateTrainStep.__doc__ = "Train for accuracy and bytes at once."
