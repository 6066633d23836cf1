"""`scan`: prune every layer alone at every level, and measure the loss; a later `prune` can use the table.

    [[step]]
    kind = "scan"
    granularity = "filter"

    [[step]]
    kind = "prune"
    granularity = "filter"
    budget = {name = "scanned", floor = 0.5}

The model does not change. The table is `scan.json` among the step's files. A stopped scan continues.

>>> ScanStep(granularity="kernel", subset=500).levels
(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import nn

from secateur import criteria, granularity
from secateur.core.targets import select
from secateur.data import Split
from secateur.errors import OptionError
from secateur.lab.state import State
from secateur.lab.steps import Plugin, Result, Step, Work, make
from secateur.lab.training import evaluate
from secateur.report.forms import scan_measurements
from secateur.sensitivity.scan import LEVELS, ScanOptions, check_levels, scan

if TYPE_CHECKING:
    from secateur.lab.training import TrainingProgress

__all__ = ["FILE", "ScanStep"]

FILE = "scan.json"
"""The name of the table among the step's files."""

Patterns = str | tuple[str, ...] | None
Batch = tuple[torch.Tensor, torch.Tensor]
Evaluation = list[Batch] | Callable[[nn.Module], float]


class ScanStep(Step):
    """Measure how sensitive each layer is to pruning, alone and without retraining."""

    measures: ClassVar[tuple[str, ...] | None] = ("scan_value",)
    criterion: Plugin = Field("magnitude", description="how weights are scored")
    granularity: Plugin = Field("element", description="what is cut as one unit")
    levels: tuple[float, ...] = Field(LEVELS, description="sparsities of each layer, rising")
    only: Patterns = Field(None, description="layers to scan, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    parameters: Patterns = Field(None, description="bare parameters to scan as well")
    split: str = Field(
        "validation",
        pattern="^(test|validation|train)$",
        description="images that the accuracy is measured on",
    )
    subset: int | None = Field(
        None,
        ge=1,
        description="at most this number of images, the first ones; each value then has a 95 % interval",
    )
    batch_size: int = Field(250, ge=1, description="images of one forward pass")
    images: int = Field(10, ge=1, description="images of each class for criteria that need data")
    memory: int = Field(1 << 30, ge=0, description="bytes for cached activations of the unchanged layers")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check names and levels, and patterns against the model."""
        make(criteria.registry, self.criterion).check_model(model)
        make(granularity.registry, self.granularity)
        check_levels(self.levels)
        select(model, self.only, self.skip, self.parameters)

    def run(self, state: State, work: Work) -> Result:
        """Scan; the table is a file of the state after the step."""
        split: Split = getattr(work.data, self.split)
        if self.subset is not None and self.subset > len(split):
            raise OptionError(
                f"step {self.label!r}: subset: asked for {self.subset:,} images, but the {self.split} split has "
                f"{len(split):,}; ask for fewer, or take another split"
            )
        model = state.model.to(work.device).eval()
        metric, better, measured, subset = self._evaluation(model, split, work)
        images, labels = work.data.train.per_class(self.images)
        display = _ScanDisplay(work.progress.training())
        try:
            found = scan(
                model,
                measured,
                make(granularity.registry, self.granularity),
                self.levels,
                criterion=make(criteria.registry, self.criterion),
                skip=self.skip,
                example=work.data.example.to(work.device),
                options=ScanOptions(
                    only=self.only,
                    parameters=self.parameters,
                    data=[(images.to(work.device), labels.to(work.device))],
                    loss=nn.functional.cross_entropy,
                    higher_is_better=better,
                    subset=subset,
                    memory=self.memory,
                    resume=work.checkpoint,
                    progress=display,
                    seed=work.seed,
                ),
            )
        finally:
            display.finish()
        model.to("cpu")
        count = self.subset or len(split)
        rows = scan_measurements(found, metric)
        line = (
            f"{len(found.names)} layers at {len(self.levels)} levels, {metric} {found.dense:.4g} dense, on "
            f"{count:,} {self.split} images"
        )
        state.files = {**state.files, FILE: found.to_json().encode()}
        return Result(state, rows, {"table": found.table}, line)

    def _evaluation(
        self, model: nn.Module, split: Split, work: Work
    ) -> tuple[str, bool, Evaluation, int | None]:
        """The metric, whether more is better, what `scan` evaluates with, and on how many images."""
        if not hasattr(model, "training_loss") and not hasattr(model, "evaluation_metrics"):
            batches = list(_first(split.batches(self.batch_size, device=work.device), self.subset))
            return "accuracy", True, batches, self.subset

        def loss(now: nn.Module) -> float:
            return evaluate(now, split, batch_size=self.batch_size, device=work.device, seed=work.seed)[
                "loss"
            ]

        if self.subset is not None:
            raise OptionError(
                f"step {self.label!r}: subset: {type(model).__name__} is measured by its own loss, over the whole "
                f"{self.split} split; leave subset out, or load fewer images with data.limit"
            )
        return "loss", False, loss, None


def _first(batches: Iterable[Batch], subset: int | None) -> Iterator[Batch]:
    """The batches that hold the first `subset` images."""
    seen = 0
    for images, labels in batches:
        if subset is not None and seen >= subset:
            return
        seen += len(labels)
        yield images, labels


class _ScanDisplay:
    """Shows a scan in the display of a training: one epoch, with a step for every value."""

    def __init__(self, shown: TrainingProgress | None):
        self.shown, self.begun = shown, False

    def __call__(self, done: int, total: int, left: float) -> None:
        if self.shown is None:
            return
        if not self.begun:
            self.shown.start(1, total, 0)
            self.begun = True
        self.shown.step(1, done, float("nan"))

    def finish(self) -> None:
        """Remove the display."""
        if self.shown is not None and self.begun:
            self.shown.finish()
