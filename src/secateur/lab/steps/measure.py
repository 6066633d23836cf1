"""`measure`: accuracy, parameters, multiply-accumulates, bytes and time of the model as it now is.

The step's label names the variant in tables: `dense`, `pruned`, `file`. With `against`, the label of an
earlier step, its model and this one are timed in turns, and `speedup` is the ratio within each turn.

>>> Measure(label="pruned", against="dense").what
('accuracy', 'params', 'macs', 'size', 'latency')
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, RecipeError, UnknownNameError, near
from secateur.lab.state import State
from secateur.lab.steps import Base, Result, Work
from secateur.lab.training import evaluate
from secateur.measure import measure, names
from secateur.measure.latency import compare

__all__ = ["Measure"]


class Measure(Base):
    """Measure the model, on the test images and on the clock."""

    timed: ClassVar[bool] = True
    what: tuple[str, ...] = Field(
        ("accuracy", "params", "macs", "size", "latency"),
        description="measures: see `secateur list measures`",
    )
    against: str | None = Field(None, description="label of an earlier step to be timed in turns with")
    trials: int = Field(25, ge=1, description="timed repetitions")
    batch: int = Field(1, ge=1, description="images of one timed forward pass")
    split: str = Field(
        "test", pattern="^(test|validation|train)$", description="images that accuracy is measured on"
    )

    def check(self, model: nn.Module, before: list[str]) -> None:
        """The measures' names, and that the step to compare with comes first."""
        if not self.what:
            raise OptionError(f"step {self.label!r}: what: expected at least one measure, got none")
        for name in self.what:
            if name not in names():
                raise UnknownNameError(f"unknown measure {name!r}: {near(name, names())}")
        if self.against is not None and self.against not in before:
            raise RecipeError(
                f"step {self.label!r}: against {self.against!r} is no earlier step; "
                + (near(self.against, before) if before else "this is the first step")
            )
        if self.against is not None and "latency" not in self.what:
            raise RecipeError(f"step {self.label!r}: against times two models, so what must hold 'latency'")

    def run(self, state: State, work: Work) -> Result:
        """Measure; the state stays as it is."""
        split = getattr(work.data, self.split)
        example = work.data.example.to(work.device)
        model = state.model.to(work.device).eval()
        found: list[Measurement] = []
        for name in self.what:
            if name == "accuracy":
                for metric, value in evaluate(model, split, device=work.device, seed=work.seed).items():
                    text = f"{metric} on the {len(split):,} {self.split} images"
                    found.append(Measurement(metric, value, "", text))
            elif name == "latency":
                found += self._time(model, work)
            else:
                found += measure(model, example, what=[name])
        model.to("cpu")
        shown = {item.name: item.text() for item in found}
        keys = [key for key in ("accuracy", "nonzeros", "macs", "latency") if key in shown]
        line = ", ".join(f"{key} {shown[key]}" for key in keys) or ", ".join(shown)
        return Result(state, Measurements(found), {}, line)

    def _time(self, model: nn.Module, work: Work) -> Measurements:
        images = work.data.test.first(self.batch)[0].to(work.device)
        if self.against is None:
            return measure(model, images, what=["latency"], trials=self.trials)
        other = work.earlier(self.against).model.to(work.device).eval()
        rows = compare(other, model, images, trials=self.trials, names=(self.against, "this"))
        # The variant of this step is its label, which the store knows; a label is no part of an outcome.
        own = {"variant": "this"}
        return Measurements(replace(row, context={}) if row.context == own else row for row in rows)
