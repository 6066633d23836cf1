"""`measure`: accuracy, parameters, multiply-accumulates, bytes and time of the model as it is now.

The step's label names the variant in tables: `dense`, `pruned`, `file`. With `against`, the label of an earlier step,
that step's model and this one are timed in turns, and `speedup` is the ratio within each turn. With `evaluate`, a
function of your own judges the model in place of accuracy.

>>> MeasureStep(label="pruned", against="dense").what
('accuracy', 'params', 'macs', 'size', 'latency')
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from secateur.adapters import functions
from secateur.core.measurement import Measurement, Measurements
from secateur.data import Split
from secateur.errors import OptionError, RecipeError, UnknownNameError, near
from secateur.lab.judging import judged, takes_split
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.training import evaluate
from secateur.metrics import measure, measure_of, names, rows_of
from secateur.metrics.latency import compare

__all__ = ["MeasureStep"]

_SPLITS = ("test", "validation", "train")


class MeasureStep(Step):
    """Measure the model: its metrics on images, its costs, its time."""

    timed: ClassVar[bool] = True
    renamed: ClassVar[dict[str, str]] = {"trials": "repetitions"}
    evaluate: str | None = Field(
        None,
        description="package.module:function that gives a number or a dict of numbers of the model, in place of "
        "accuracy; one of two arguments is also given the split",
    )
    what: tuple[str, ...] = Field(
        ("accuracy", "params", "macs", "size", "latency"),
        description="measures: see `secateur list measures`",
    )
    against: str | None = Field(None, description="label of an earlier step to be timed in turns with")
    repetitions: int = Field(25, ge=1, description="how many times a forward pass is timed")
    batch: int | tuple[int, ...] = Field(
        1, description="images of one timed forward pass; several numbers: timed at each"
    )
    split: str = Field(
        "test", pattern="^(test|validation|train)$", description="images that accuracy is measured on"
    )
    also: tuple[str, ...] = Field(
        (), description="other splits to measure accuracy on, as train_accuracy or validation_accuracy"
    )
    images: int | None = Field(
        None, ge=1, description="of each split in `also`, at most this number of images"
    )
    bias: bool | Literal["both"] = Field(
        False,
        description="count one more multiply-accumulate for every output that adds a bias; 'both': also the "
        "weights alone, as weight_macs",
    )

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the names, and that the step compared with is an earlier one."""
        if not self.what:
            raise OptionError(f"step {self.label!r}: what: expected at least one measure, got none")
        for name in self.what:
            if name not in (known := [*names(), "testing_time"]):
                raise UnknownNameError(
                    f"step {self.label!r}: what: unknown measure {name!r}: {_comes_with(name) or near(name, known)}"
                )
        self._check_evaluate()
        for batch in self._batches():
            if batch < 1:
                raise OptionError(f"step {self.label!r}: batch: expected at least 1 image, got {batch}")
        for split in self.also:
            if split not in _SPLITS:
                raise UnknownNameError(
                    f"step {self.label!r}: also: unknown split {split!r}: {near(split, _SPLITS)}"
                )
        if self.against is not None:
            self._check_against(self.against, before)

    def measured_names(self, model: nn.Module) -> tuple[str, ...] | None:
        """The rows of the measures in `what`; None where a function of the user's or of the model names them."""
        found: list[str] = []
        for name in self.what:
            if name == "accuracy":
                if self.evaluate is not None or hasattr(model, "evaluation_metrics"):
                    return None
                judged = ("loss",) if hasattr(model, "training_loss") else ("accuracy", "loss")
                found += [
                    f"{split}{row}" for split in ("", *(f"{one}_" for one in self.also)) for row in judged
                ]
            elif name == "testing_time":
                found.append(name)
            elif name == "macs" and self.bias == "both":
                found += [f"{kind}{row}" for kind in ("", "weight_") for row in rows_of(name)]
            elif name == "latency" and self.against is not None:
                found += [*rows_of(name), "speedup"]
            else:
                found += rows_of(name)
        return tuple(found)

    def _check_evaluate(self) -> None:
        """Refuse a function that is not there, or that would not be called."""
        if self.evaluate is None:
            return
        if "accuracy" not in self.what:
            raise OptionError(
                f"step {self.label!r}: evaluate stands in place of accuracy; expected 'accuracy' in what"
            )
        function = functions.find(self.evaluate, "evaluate")
        if self.also and not takes_split(function):
            raise OptionError(
                f"step {self.label!r}: also: {self.evaluate} takes the model alone, so that every split would give the "
                "same; leave also out, or let it take (model, split)"
            )

    def chosen(self) -> Table:
        """The options; with `evaluate` also a digest of its file, because the outcome depends on its source. The number
        of repetitions has its old name here, so that outcomes keep their addresses.
        """
        found = super().chosen()
        found["trials"] = found.pop("repetitions")
        if self.evaluate is None:
            return {key: value for key, value in found.items() if key != "evaluate"}
        return {**found, "source": functions.source_digest(self.evaluate, "evaluate")}

    def _check_against(self, against: str, before: list[str]) -> None:
        """Refuse a comparison with no earlier step, or of no time."""
        if against not in before:
            raise RecipeError(
                f"step {self.label!r}: against {against!r} is no earlier step; "
                + (near(against, before) if before else "this is the first step")
            )
        if "latency" not in self.what:
            raise RecipeError(
                f"step {self.label!r}: against compares the time of two models; expected 'latency' in what"
            )

    def _batches(self) -> tuple[int, ...]:
        return self.batch if isinstance(self.batch, tuple) else (self.batch,)

    def run(self, state: State, work: Work) -> Result:
        """Measure; the state does not change."""
        split = getattr(work.data, self.split)
        example = work.data.example.to(work.device)
        model = state.model.to(work.device).eval()
        found: list[Measurement] = []
        judgement = "accuracy"
        for name in self.what:
            if name == "accuracy":
                found += self._judged(model, split, self.split, "", work)
                judgement = judgement if self.evaluate is None else found[-1].name
                for other in self.also:
                    some = getattr(work.data, other).leading(self.images)
                    found += self._judged(model, some, other, f"{other}_", work)
            elif name == "latency":
                for batch in self._batches():
                    found += self._time(model, work, batch)
            elif name == "testing_time":
                found.append(_testing_time(model, split, self.split, work))
            elif name == "macs" and self.bias:
                found += measure(model, example, what=[name], bias=True)
                if self.bias == "both":
                    alone = measure(model, example, what=[name])
                    found += [replace(row, name=f"weight_{row.name}") for row in alone]
            else:
                found += measure(model, example, what=[name])
        model.to("cpu")
        shown = {item.name: item.text() for item in found}
        keys = [key for key in (judgement, "nonzeros", "macs", "latency") if key in shown]
        line = ", ".join(f"{key} {shown[key]}" for key in keys) or ", ".join(shown)
        return Result(state, Measurements(found), {}, line)

    def _judged(
        self, model: nn.Module, split: Split, name: str, prefix: str, work: Work
    ) -> list[Measurement]:
        """The model's numbers on a split: by the user's function, else by its metrics."""
        if self.evaluate is None:
            return _metrics(model, split, name, prefix, work)
        rows = judged(self.evaluate, model, split, name)
        return [replace(row, name=f"{prefix}{row.name}") for row in rows]

    def _time(self, model: nn.Module, work: Work, batch: int) -> Measurements:
        images = work.data.test.first(batch)[0].to(work.device)
        # Of several batch sizes each row names its own.
        own = {"batch": batch} if isinstance(self.batch, tuple) else {}
        if self.against is None:
            return measure(model, images, what=["latency"], repetitions=self.repetitions).within(own)
        other = work.earlier(self.against).model.to(work.device).eval()
        rows = compare(other, model, images, repetitions=self.repetitions, names=(self.against, "this"))
        # The store adds the label as the variant; an outcome does not contain its label.
        this = {"variant": "this"}
        return Measurements(
            replace(row, context=own if row.context == this else {**row.context, **own}) for row in rows
        )


def _comes_with(row: str) -> str:
    """Which measure gives a row of a name that is no measure; "" if none is known to."""
    giving = "accuracy" if row == "loss" else measure_of(row)
    return f"a row of this name comes with {giving!r}; write what = [{giving!r}]" if giving != row else ""


_PASSES = 3


def _testing_time(model: nn.Module, split: Split, name: str, work: Work) -> Measurement:
    """The time of evaluating a whole split, in seconds."""
    readings = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        evaluate(model, split, device=work.device, seed=work.seed)
        readings.append(time.perf_counter() - start)
    text = f"seconds to evaluate the {len(split):,} {name} {split.word}; median of {_PASSES} passes"
    return Measurement("testing_time", statistics.median(readings), "s", text, trials=tuple(readings))


def _metrics(model: nn.Module, split: Split, name: str, prefix: str, work: Work) -> list[Measurement]:
    """The model's metrics on a split."""
    found = evaluate(model, split, device=work.device, seed=work.seed)
    return [
        Measurement(f"{prefix}{metric}", value, "", f"{metric} on {len(split):,} {name} {split.word}")
        for metric, value in found.items()
    ]
