"""`gradual`: train and prune at once; sparsity rises with the optimizer's steps along a cubic and is then held.

Every option of `TrainingOptions` and of `GradualPruning` in `secateur.lab.training` is an option of the step.

>>> GradualStep(sparsity=0.9, epochs=20, until=0.6).pruning().level(0, 100)
0.0
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pydantic import create_model
from torch import nn

from secateur.core.measurement import Measurement
from secateur.core.targets import select
from secateur.errors import NothingToDoError
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Work, leaving_one
from secateur.lab.steps.train import EPOCH_ROWS, TrainBase, training_fields
from secateur.lab.training import GradualPruning

__all__ = ["GradualStep"]

_KINDS: dict[str, Any] = {
    "criterion": str,
    "granularity": str,
    "budget": str,
    "every": int,
    "only": str | tuple[str, ...] | None,
    "skip": str | tuple[str, ...] | None,
    "at_least": int | None,
    "at_most": float | None,
}


def pruning_fields() -> dict[str, Any]:
    """The options of `GradualPruning` as pydantic fields, as `pydantic.create_model` takes them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(GradualPruning):
        default = ... if field.default is dataclasses.MISSING else field.default
        found[field.name] = (_KINDS.get(field.name, float), default)
    return found


class _Gradual(TrainBase):
    """Training that prunes as it goes."""

    measures: ClassVar[tuple[str, ...] | None] = (*EPOCH_ROWS, "mask_sparsity")
    version: ClassVar[int] = 1

    def pruning(self) -> GradualPruning:
        """The options as `GradualPruning`, which checks their values."""
        return GradualPruning(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(GradualPruning)}
        )

    def chosen(self) -> Table:
        """The options; units larger than one weight have an address of their own since their share is counted exactly,
        channels and heads another one since one of each list stays, and outcomes of single weights keep theirs.
        """
        found = leaving_one(super().chosen())
        return found if found["granularity"] == "element" else {**found, "share_of": "units"}

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the values, the teacher and the patterns."""
        super().check(model, before)
        self.pruning()
        select(model, self.only, self.skip)  # type: ignore[attr-defined]

    def run(self, state: State, work: Work) -> Result:
        """Train and prune; weights that earlier steps removed stay removed."""
        result = self.trained(state, work, self.pruning())
        masks = result.state.masks
        if masks is None:
            raise NothingToDoError(
                f"step {self.label!r}: expected weights to leave while training runs, but it ended before the first "
                "pruning; train for more epochs, or in smaller batches"
            )
        layers = {row.name: row.sparsity for row in masks.summary()}
        text = "share of the pruned tensors' weights that the masks remove"
        measured = Measurement("mask_sparsity", masks.sparsity, "", text, per_layer=layers)
        kept = f"{masks.numel - masks.kept:,} of {masks.numel:,} weights removed ({masks.sparsity:.1%})"
        return dataclasses.replace(
            result, measurements=result.measurements + [measured], line=f"{result.line}, {kept}"
        )


GradualStep: Any = create_model(
    "GradualStep", __base__=_Gradual, __module__=__name__, **training_fields(), **pruning_fields()
)
GradualStep.__doc__ = "Train the model and prune it at once."
