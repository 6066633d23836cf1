"""`train_yolo`: train a YOLO model by ultralytics' own trainer, with its losses; cut widths and masks are kept.

>>> TrainYoloStep(data="coco8.yaml", epochs=10).imgsz
640
"""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from secateur.adapters.ultralytics import save_yolo
from secateur.adapters.ultralytics_training import check_yolo_data, check_yolo_options, train_yolo
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import DataError, OptionError
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work

__all__ = ["TrainYoloStep"]

_OWN = ("data", "epochs", "imgsz", "batch", "device", "seed", "trainer", "model", "project", "name", "resume")
_WHAT = {"B": "boxes", "M": "masks", "P": "keypoints"}


class TrainYoloStep(Step):
    """Train by ultralytics' trainer; the step's file is a checkpoint that `YOLO(...)` loads."""

    measures: ClassVar[tuple[str, ...] | None] = ("map_*", "map50_*")
    data: str = Field(description="the yaml that describes the data set, as ultralytics reads it")
    epochs: int = Field(10, ge=1, description="epochs")
    imgsz: int = Field(640, ge=32, description="edge of the images in training and validation")
    batch: int = Field(16, ge=1, description="images in a batch")
    file: str = Field("yolo.pt", description="the checkpoint's name among the results")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of YOLO.train")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check that the data set is there, the file's name, and that no option is given twice."""
        if Path(self.file).name != self.file or Path(self.file).suffix != ".pt":
            raise OptionError(
                f"step {self.label!r}: file: expected a name that ends in .pt, got {self.file!r}"
            )
        twice = [name for name in self.options if name in _OWN]
        if twice:
            raise OptionError(
                f"step {self.label!r}: options: {twice[0]!r} is set by the step or the recipe; leave it out there"
            )
        check_yolo_options(self.options)
        check_yolo_data(self.data)

    def chosen(self) -> Table:
        """The options, and a digest of the data set's yaml, because its content decides the outcome."""
        path = Path(self.data)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return {**super().chosen(), "content": content}

    def run(self, state: State, work: Work) -> Result:
        """Train; the state gains the checkpoint, and the weights of the best epoch."""
        if not Path(self.data).is_file():
            raise DataError(
                f"step {self.label!r}: data: no file {self.data}; give the yaml that describes the data set (path, "
                "train, val, names)"
            )
        options = {"plots": False, "workers": 0, "verbose": False, **self.options}
        weights, measured = train_yolo(
            state.model,
            self.data,
            state.masks,
            epochs=self.epochs,
            imgsz=self.imgsz,
            batch=self.batch,
            device=work.device,
            seed=work.seed,
            **options,
        )
        model = copy.deepcopy(state.model)
        model.load_state_dict(weights)
        with tempfile.TemporaryDirectory() as folder:
            data = save_yolo(model, Path(folder) / self.file, masks=state.masks).read_bytes()
        after = State(model, masks=state.masks, plan=state.plan, files={**state.files, self.file: data})
        rows = _measured(measured)
        line = ", ".join(f"{row.name} {row.value:.3f}" for row in rows) or f"{self.epochs} epochs"
        return Result(after, Measurements(rows), {"metrics": measured}, line)


def _measured(found: dict[str, float]) -> list[Measurement]:
    """Mean average precision of boxes, masks or keypoints, as ultralytics measures it on the validation images."""
    rows = []
    for name, value in found.items():
        parts = re.fullmatch(r"metrics/mAP50(-95)?\((\w)\)", name)
        if parts is not None:
            what = _WHAT.get(parts[2], parts[2])
            levels = "overlaps of 0.50 to 0.95" if parts[1] else "an overlap of 0.50"
            text = f"mean average precision of {what} at {levels}, by ultralytics on the validation images"
            rows.append(Measurement(f"map{'' if parts[1] else '50'}_{what}", value, "", text))
    return rows
