"""`factorise`: linear layers and convolutions as two smaller ones each, at a budget over all layers, or at given ranks.

`keep` is the share of the whole model's multiply-accumulates (`of = "params"`: of its parameters) that remains; the
ranks of least error are chosen. With `calibrate` the error is that of the layers' outputs on this number of training
images.

>>> FactoriseStep(keep=0.5).of
'macs'
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from secateur.budget.macs import Macs
from secateur.budget.params import Params
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, RecipeError
from secateur.lab.calibration import CalibrationImages
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.pruning.low_rank import RanksLike, factorise
from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["FactoriseStep"]


class FactoriseStep(Step):
    """Replace layers by two smaller ones each, by truncated singular value decomposition."""

    measures: ClassVar[tuple[str, ...] | None] = ("truncation_error", "proof_error")
    keep: float | None = Field(None, description="share of the whole model's cost that remains")
    of: str = Field("macs", description="the cost that `keep` is a share of: macs or params")
    ranks: dict[str, int] | None = Field(
        None, description="in place of keep: the rank of each layer, by name"
    )
    spatial: bool = Field(
        False, description="convolutions become one along the height and one along the width"
    )
    calibrate: int = Field(
        0,
        ge=0,
        description="training images on which the error of layer outputs is measured; 0: the error of the "
        "weights",
    )
    batch_size: int = Field(100, ge=1, description="images of one batch")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check that keep or ranks are given, and their values."""
        self.asked()
        if self.spatial and self.calibrate:
            raise RecipeError(
                f"step {self.label!r}: expected spatial or calibrate, got both; the spatial form cannot be weighted by "
                "images"
            )

    def chosen(self) -> Table:
        """The options; without `spatial` where it is not used, so that addresses of older outcomes stay valid."""
        found = super().chosen()
        if not self.spatial:
            del found["spatial"]
        return found

    def asked(self) -> RanksLike:
        """The ranks, or the budget that chooses them."""
        if (self.keep is None) == (self.ranks is None):
            raise RecipeError(f"step {self.label!r}: expected either keep or ranks, got both or neither")
        if self.ranks is not None:
            return self.ranks
        if self.of not in ("macs", "params"):
            raise RecipeError(f"step {self.label!r}: of: expected 'macs' or 'params', got {self.of!r}")
        assert self.keep is not None
        return Macs(self.keep) if self.of == "macs" else Params(self.keep)

    def run(self, state: State, work: Work) -> Result:
        """Factorise; the model is dense again afterwards, with other layers."""
        if state.masks is not None or state.codebooks:
            what = "pruned" if state.masks is not None else "shared"
            raise OptionError(
                f"step {self.label!r}: the weights are {what}, and their factors would not be; factorise first"
            )
        images = CalibrationImages(
            work.data.train, self.calibrate or 1, self.batch_size, seed=work.seed, device=work.device
        )
        model = state.model.to(work.device)
        example = work.data.example.to(work.device)
        data = images if self.calibrate else None
        found = factorise(model, self.asked(), example, data=data, spatial=self.spatial)
        earlier = None if state.plan is None else ShrinkPlan.from_json(state.plan)
        plan = found.plan if earlier is None else earlier.then(found.plan)
        text = "share of a layer's squared outputs, or weights, that the truncation loses; mean of the layers"
        mean = sum(found.errors.values()) / len(found.errors)
        proof = "largest difference from the truncated dense weights over the largest output, both in float64"
        measured = [
            Measurement("truncation_error", mean, "", text, per_layer=dict(found.errors)),
            Measurement("proof_error", found.proof_error, "", proof),
        ]
        line = f"{found.parameters_before:,} parameters to {found.parameters_after:,} in {len(found.ranks)} layers"
        return Result(
            State(found.model.to("cpu"), plan=plan.to_json()),
            Measurements(measured),
            {"ranks": found.ranks},
            line,
        )
