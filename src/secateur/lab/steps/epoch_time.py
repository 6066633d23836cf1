"""`epoch_time`: how long an epoch of training and an epoch of evaluation take, this model and an earlier one in turns.

Copies are trained by the loop that `train` uses, and thrown away.

>>> EpochTimeStep(label="epoch", against="dense", turns=5).turns
5
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.data import Data
from secateur.errors import RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.training import loop as trainer
from secateur.metrics.latency import median_interval

__all__ = ["EpochTimeStep"]


class EpochTimeStep(Step):
    """Time epochs of this model and of an earlier step's, turn by turn."""

    timed: ClassVar[bool] = True
    against: str = Field(description="label of an earlier step whose model takes the other turns")
    turns: int = Field(3, ge=1, description="epochs of each model")
    images: int | None = Field(
        None,
        ge=1,
        description="time so many images of each split and scale to the whole; default: all of them",
    )
    batch_size: int = Field(128, ge=1, description="images of an optimizer step")
    optimizer: str = Field("adam", description="sgd, adam or adamw")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """That the other model comes first, and that the training options are sound."""
        self._training()
        if self.against not in before:
            raise RecipeError(
                f"step {self.label!r}: against {self.against!r} is no earlier step; "
                + (near(self.against, before) if before else "this is the first step")
            )

    def _training(self) -> trainer.TrainingOptions:
        # The smallest rate: what is timed must not diverge, whatever state it starts from.
        return trainer.TrainingOptions(
            epochs=1, optimizer=self.optimizer, lr=1e-6, batch_size=self.batch_size
        )

    def run(self, state: State, work: Work) -> Result:
        """Train and evaluate copies; the state stays as it is."""
        data = work.data
        cut = replace(
            data,
            train=data.train.leading(self.images),
            validation=data.validation.leading(0),
            test=data.test.leading(self.images),
        )
        scale = (len(data.train) / len(cut.train), len(data.test) / len(cut.test))
        models = (work.earlier(self.against).model, state.model)
        readings: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
        # One turn more than asked for: the first warms up and is not counted.
        for turn in range(self.turns + 1):
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                masks = state.masks if which else None
                one = copy.deepcopy(models[which])
                taken = _epoch(one, cut, self._training(), masks, work), _evaluation(one, cut, work)
                if turn:
                    for kind in (0, 1):
                        readings[which][kind].append(taken[kind] * scale[kind])
        found: list[Measurement] = []
        line = []
        for kind, (name, count, part) in enumerate(
            (("training", len(data.train), cut.train), ("evaluation", len(data.test), cut.test))
        ):
            said = "" if len(part) == count else f", from {len(part):,} of them"
            text = f"seconds of one epoch of {name} on {count:,} images{said}; median of {self.turns} turns"
            for which, context in ((0, {"variant": self.against}), (1, {})):
                own = readings[which][kind]
                found.append(_row(f"{name}_time", own, "s", text, context))
            ratios = [a / b for a, b in zip(readings[0][kind], readings[1][kind])]
            text = f"time of {self.against} over the time of this, turn by turn; median of {self.turns}"
            found.append(_row(f"{name}_speedup", ratios, "x", text, {}))
            line.append(f"{name} {statistics.median(ratios):.2f} times as fast")
        return Result(state, Measurements(found), {}, ", ".join(line))


def _epoch(
    model: nn.Module, data: Data, options: trainer.TrainingOptions, masks: object, work: Work
) -> float:
    start = time.perf_counter()
    trainer.train(model, data, options, masks=masks, seed=work.seed, device=work.device)  # type: ignore[arg-type]
    return time.perf_counter() - start


def _evaluation(model: nn.Module, data: Data, work: Work) -> float:
    start = time.perf_counter()
    trainer.evaluate(model, data.test, device=work.device)
    return time.perf_counter() - start


def _row(name: str, readings: list[float], unit: str, text: str, context: dict[str, str]) -> Measurement:
    low, high, reached = median_interval(readings)
    few = f"with {len(readings)} readings the interval holds the median with {reached:.0%} confidence only"
    return Measurement(
        name,
        statistics.median(readings),
        unit,
        text,
        trials=tuple(readings),
        notes=() if reached >= 0.95 else (few,),
        context=context,
        spread={"low": float(low), "high": float(high)},
    )
