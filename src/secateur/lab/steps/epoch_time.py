"""`epoch_time`: the time of an epoch of training and of evaluation; this model and an earlier one take turns.

Copies are trained by the loop that `train` uses, and discarded.

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

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.data import Data
from secateur.errors import RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.training import TrainingOptions, evaluate, train
from secateur.metrics.latency import median_interval

__all__ = ["EpochTimeStep"]


class EpochTimeStep(Step):
    """Time epochs of this model and of an earlier step's model, turn by turn."""

    measures: ClassVar[tuple[str, ...] | None] = (
        "training_time",
        "evaluation_time",
        "training_speedup",
        "evaluation_speedup",
    )
    timed: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    against: str = Field(description="label of an earlier step whose model is timed in turns with this one")
    turns: int = Field(3, ge=1, description="epochs of each model")
    images: int | None = Field(
        None,
        ge=1,
        description="time this number of images of each split, and scale to all of them; default: all",
    )
    batch_size: int = Field(128, ge=1, description="images per optimizer step")
    optimizer: str = Field("adam", description="sgd, adam or adamw")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check that the other model is an earlier step's, and the training options."""
        self._training()
        if self.against not in before:
            raise RecipeError(
                f"step {self.label!r}: against {self.against!r} is no earlier step; "
                + (near(self.against, before) if before else "this is the first step")
            )

    def _training(self) -> TrainingOptions:
        # A tiny rate, so that training does not diverge from any state.
        return TrainingOptions(epochs=1, optimizer=self.optimizer, lr=1e-6, batch_size=self.batch_size)

    def run(self, state: State, work: Work) -> Result:
        """Train and evaluate copies; the state does not change."""
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
                seconds = _epoch(one, cut, self._training(), masks, work), _evaluation(one, cut, work)
                if turn:
                    for kind in (0, 1):
                        readings[which][kind].append(seconds[kind] * scale[kind])
        found: list[Measurement] = []
        line = []
        for kind, (name, whole, part) in enumerate(
            (("training", data.train, cut.train), ("evaluation", data.test, cut.test))
        ):
            rows, ratio = self._rows(name, readings[0][kind], readings[1][kind], (len(whole), len(part)))
            found += rows
            line.append(f"{name} {ratio:.2f} times as fast")
        return Result(state, Measurements(found), {}, ", ".join(line))

    def _rows(
        self, name: str, theirs: list[float], ours: list[float], images: tuple[int, int]
    ) -> tuple[list[Measurement], float]:
        """The times of both models and their ratio, as measurements; and the ratio's median."""
        count, timed = images
        part = "" if timed == count else f", from {timed:,} of them"
        text = f"seconds of one epoch of {name} on {count:,} images{part}; median of {self.turns} turns"
        rows = [
            _row(f"{name}_time", own, "s", text, context)
            for own, context in ((theirs, {"variant": self.against}), (ours, {}))
        ]
        ratios = [a / b for a, b in zip(theirs, ours)]
        text = f"time of {self.against} over the time of this, turn by turn; median of {self.turns}"
        rows.append(_row(f"{name}_speedup", ratios, "x", text, {}))
        return rows, statistics.median(ratios)


def _epoch(model: nn.Module, data: Data, options: TrainingOptions, masks: Masks | None, work: Work) -> float:
    start = time.perf_counter()
    train(model, data, options, masks=masks, seed=work.seed, device=work.device)
    return time.perf_counter() - start


def _evaluation(model: nn.Module, data: Data, work: Work) -> float:
    start = time.perf_counter()
    evaluate(model, data.test, device=work.device)
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
