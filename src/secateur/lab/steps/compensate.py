"""`compensate`: refit the remaining weights to reproduce the dense model's outputs, on training images without labels.
`dense` names the earlier step whose model is reproduced; by default that is the model of the `[model]` table, with its
`weights`. `passes` adds gradient steps on the outputs of blocks and of the whole model.

>>> CompensateStep(calibrate=2000, dense="train").calibrate
2000
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from secateur.compensation.compensate import compensate
from secateur.compensation.solver import LeastSquares
from secateur.compensation.tuning import Tuning
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, RecipeError, near
from secateur.lab.calibration import CalibrationImages
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.steps.train import Augmentation, augmentation

__all__ = ["CompensateStep", "check_dense_label"]

Patterns = str | tuple[str, ...] | None


def check_dense_label(label: str, dense: str | None, before: list[str]) -> None:
    """Raise a `RecipeError` unless `dense` is an earlier step, or left out where no earlier step trained."""
    if dense is not None and dense not in before:
        raise RecipeError(
            f"step {label!r}: dense {dense!r} is no earlier step; "
            + (near(dense, before) if before else "this is the first step")
        )
    if dense is None and "train" in before:
        raise RecipeError(
            f"step {label!r}: without dense, the model to reproduce is the one before training; name the step after "
            "which it was dense: dense = 'train'"
        )


class CompensateStep(Step):
    """Refit the remaining weights by least squares, layer by layer, to reproduce the outputs of the dense model."""

    calibrate: int = Field(2000, ge=1, description="training images that are used, without their labels")
    batch_size: int = Field(100, ge=1, description="images of one batch")
    augment: Augmentation = Field(None, description="as in training; drawn again in each pass")
    dense: str | None = Field(
        None, description="label of the step with the dense model; by default the [model] table's"
    )
    skip: Patterns = Field(None, description="layers that keep their weights")
    damping: float = Field(0.01, ge=0, description="strength of the penalty on changes of the weights")
    reselect: bool = Field(
        False, description="choose again which single weights remain, the same number in each tensor"
    )
    passes: int = Field(0, ge=0, description="passes over the images with gradient steps on the outputs")
    lr: float = Field(0.05, gt=0, description="largest step of these, as a share of a tensor's size")
    blocks: float = Field(
        1.0, ge=0, description="weight of the blocks' outputs in the loss, relative to the model's own"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the gradient steps")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """The dense step, and the options."""
        check_dense_label(self.label, self.dense, before)
        augmentation(self.augment)
        self._tuning()
        LeastSquares(self.damping, self.reselect)

    def refers(self) -> tuple[str, ...]:
        """The step with the dense model."""
        return () if self.dense is None else (self.dense,)

    def _tuning(self) -> Tuning | None:
        return Tuning(self.passes, self.lr, self.blocks, self.precision) if self.passes else None

    def run(self, state: State, work: Work) -> Result:
        """Compensate. Codebooks of earlier steps are dropped, because the weights change."""
        if state.masks is None:
            raise NothingToDoError(
                f"step {self.label!r}: nothing was pruned before it; put a prune step first"
            )
        dense = work.earlier(self.dense).model if self.dense is not None else work.build()
        images = CalibrationImages(
            work.data.train,
            self.calibrate,
            self.batch_size,
            augment=self.augment,
            seed=work.seed,
            device=work.device,
        )
        found = compensate(
            state.model.to(work.device),
            state.masks.to(work.device),
            images,
            dense=dense.to(work.device),
            skip=self.skip,
            solver=LeastSquares(self.damping, self.reselect),
            tune=self._tuning(),
        )
        measured = []
        for name, when in (("before", "before"), ("after", "after")):
            layers: dict[str, Any] = {layer.name: getattr(layer, name) for layer in found.layers}
            text = f"squared error of a layer's outputs {when} compensating, over their variance; mean of the layers"
            mean = sum(layers.values()) / max(1, len(layers))
            measured.append(Measurement(f"layer_error_{when}", mean, "", text, per_layer=layers))
        kept = State(found.model.to("cpu"), masks=found.masks.to("cpu"), plan=state.plan)
        line = f"{len(found.layers)} layers solved on {min(self.calibrate, len(work.data.train)):,} images"
        return Result(kept, Measurements(measured), {"notes": list(found.notes)}, line)
