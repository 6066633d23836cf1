"""`share`: give every tensor few distinct values, and every weight one of them; zeros of a mask stay zero.

>>> ShareStep(bits=4, start="optimal").bits
4
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from secateur.compensation.tuning import Tuning
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import RecipeError
from secateur.lab.calibration import CalibrationImages
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.steps.compensate import check_dense_label
from secateur.lab.steps.train import Augmentation, augmentation
from secateur.quantize.calibrated import Assignments
from secateur.quantize.share import ShareOptions, plan_sharing, share

__all__ = ["ShareStep"]

Patterns = str | tuple[str, ...] | None
_CALIBRATION = ("calibrate", "batch_size", "augment", "dense", "passes")
_TUNING = ("lr", "blocks", "precision", "assignments")


class ShareStep(Step):
    """Give the weights of every tensor few distinct values."""

    measures: ClassVar[tuple[str, ...] | None] = ("huffman_bits", "formula_ratio")
    bits: int | None = Field(None, description="a codebook has 2**bits values; the method's default is 5")
    start: str | None = Field(
        None, description="where K-means starts: optimal, linear, kmeans++, random, density"
    )
    method: str = Field("kmeans", description="kmeans, uniform or exact")
    per: str | tuple[str | tuple[str, ...], ...] = Field(
        "tensor", description="which tensors have one codebook together"
    )
    only: Patterns = Field(None, description="layers to share, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    parameters: Patterns = Field(None, description="bare parameters to share as well")
    rate: float = Field(0.0, ge=0, description="the cost of a bit, in mean squared weights of a tensor")
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the method")
    calibrate: int = Field(
        0, ge=0, description="training images, without labels, on which the error of outputs is kept small"
    )
    batch_size: int = Field(100, ge=1, description="with calibrate: images of one batch")
    augment: Augmentation = Field(None, description="with calibrate: as in training")
    dense: str | None = Field(
        None,
        description="with calibrate: label of the step whose outputs are reproduced; by default the step before",
    )
    passes: int = Field(0, ge=0, description="with calibrate: passes of gradient steps on the values")

    lr: float = Field(0.05, gt=0, description="with passes: largest step, as a share of a tensor's size")
    blocks: float = Field(
        1.0, ge=0, description="with passes: weight of the blocks' outputs beside the model's own"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="with passes: in which the steps compute")
    assignments: Assignments = Field(
        "fixed", description="with passes: 'learnt' also moves weights from one value to another"
    )

    def chosen(self) -> dict[str, Any]:
        """The options. Those of calibration only where it is used, so that addresses of older outcomes stay valid."""
        found = super().chosen()
        if not self.calibrate:
            for name in _CALIBRATION:
                del found[name]
        for name in _TUNING:
            if getattr(self, name) == type(self).model_fields[name].default:
                del found[name]
        return found

    def refers(self) -> tuple[str, ...]:
        """The step with the dense model."""
        return () if self.dense is None else (self.dense,)

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check names and options, and patterns against the model."""
        augmentation(self.augment)
        if not self.calibrate and (self.dense is not None or self.passes or self.augment is not None):
            raise RecipeError(
                f"step {self.label!r}: dense, passes and augment need calibrate, the number of images"
            )
        if not self.passes and any(
            getattr(self, name) != type(self).model_fields[name].default for name in _TUNING
        ):
            raise RecipeError(f"step {self.label!r}: {', '.join(_TUNING)} are for passes = (so many)")
        if self.dense is not None:
            check_dense_label(self.label, self.dense, before)
        plan_sharing(model, options=self._options(), **self._asked())

    def _asked(self) -> Table:
        return {
            "bits": self.bits,
            "method": self.method,
            "per": self.per,
            **({} if self.start is None else {"start": self.start}),
            **self.options,
        }

    def _options(self, seed: int = 0) -> ShareOptions:
        return ShareOptions(self.only, self.skip, self.parameters, seed=seed)

    def _images(self, work: Work) -> CalibrationImages | None:
        """The images to share on, where there are any."""
        if not self.calibrate:
            return None
        return CalibrationImages(
            work.data.train,
            self.calibrate,
            self.batch_size,
            augment=self.augment,
            seed=work.seed,
            device=work.device,
        )

    def run(self, state: State, work: Work) -> Result:
        """Share; afterwards the model's weights are values of the codebooks."""
        options, images = self._options(work.seed), self._images(work)
        if images is not None:
            state.model.to(work.device)
            dense = None if self.dense is None else work.earlier(self.dense).model.to(work.device)
            tune = Tuning(self.passes, self.lr, self.blocks, self.precision) if self.passes else None
            options = replace(options, dense=dense, tune=tune, assignments=self.assignments)
        shared = share(
            state.model,
            masks=state.masks if state.masks is not None else "zeros",
            rate=self.rate,
            data=images,
            options=options,
            **self._asked(),
        )
        shared.model.to("cpu")
        rows = shared.summary()
        measured = Measurements(
            [
                Measurement(
                    "huffman_bits",
                    shared.bits_per_weight,
                    "bit",
                    "bits per kept weight of Huffman codes, one per tensor; tables and positions not counted",
                    per_layer={row.name: row.huffman for row in rows},
                ),
                Measurement(
                    "formula_ratio",
                    shared.formula_ratio,
                    "x",
                    "a formula, not a file: 32 / (nonzero share x Huffman bits), of the shared tensors alone",
                ),
            ]
        )
        line = f"{len(rows)} tensors, at most {max(row.values for row in rows)} values in each"
        masks = Masks({**(state.masks or {}), **shared.masks}) if self.rate else state.masks
        books = {**state.codebooks, **shared.codebooks}  # an earlier step may have shared other tensors
        state = State(shared.model, masks=masks, codebooks=books, plan=state.plan)
        return Result(state, measured, {}, line)
