"""`export`: the model as an ONNX file or a `torch.export` archive among the results, in floats or INT8.

INT8 is calibrated on training images and judged by the accuracy on the validation images. The model itself does not
change.

>>> ExportStep(file="small.onnx", int8="static").calibrate
128
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from secateur.adapters.export import Exported, export
from secateur.adapters.int8 import Int8Options
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError
from secateur.lab.calibration import CalibrationImages
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.training.evaluation import evaluate

__all__ = ["ExportStep"]


class ExportStep(Step):
    """Write the model for other runtimes, and compare what the file computes with PyTorch."""

    measures: ClassVar[tuple[str, ...] | None] = (
        "onnx_bytes",
        "pt2_bytes",
        "export_error",
        "int8_*",
        "float_layers",
    )
    version: ClassVar[int] = 2
    file: str = Field(
        "model.onnx", description="the file's name among the results: .onnx, or .pt2 (torch.export)"
    )
    int8: Literal["static", "dynamic"] | None = Field(
        None, description="8-bit integers: static (calibrated; convolutions) or dynamic (transformers)"
    )
    calibrate: int = Field(128, ge=1, description="training images that static INT8 is calibrated on")
    batch_size: int = Field(32, ge=1, description="images of one calibration batch")
    calibration: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how ranges of activations are found"
    )
    percentile: float = Field(99.99, description="share of values that 'percentile' keeps, in percent")
    lost: float = Field(0.01, ge=0, lt=1, description="accuracy that INT8 may lose on the validation images")
    keep_float: str | tuple[str, ...] = Field((), description="layers that stay in float, by name or pattern")
    reduce_range: bool = Field(
        True,
        description="INT8 weights of 7 bits, the same outputs on every processor; false: 8 bits, for VNNI or ARM",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="largest difference of the float file's outputs from PyTorch's; by default 1e-4, or what half "
        "precision needs",
    )

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the options; the file's name must stay inside the results' folder."""
        if Path(self.file).name != self.file or self.file.startswith("."):
            raise OptionError(f"step {self.label!r}: file: expected a plain file name, got {self.file!r}")
        endings = (".onnx",) if self.int8 else (".onnx", ".pt2")
        if Path(self.file).suffix not in endings:
            raise OptionError(
                f"step {self.label!r}: file: expected a name that ends in {' or '.join(endings)}"
                f"{' for INT8' if self.int8 else ''}, got {self.file!r}"
            )
        Int8Options(self.calibration, self.percentile, lost=self.lost)

    def run(self, state: State, work: Work) -> Result:
        """Write the file, read it back, and measure it; the state gains the file."""
        model = state.model.to("cpu").eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            batches: Iterable[object] | str | None = self.int8
            if self.int8 == "static":
                batches = CalibrationImages(work.data.train, self.calibrate, self.batch_size, seed=work.seed)
            done = export(
                model,
                path,
                work.data.example,
                masks=state.masks,
                tolerance=self.tolerance,
                int8=batches,
                int8_options=self._options(model, work) if self.int8 else None,
            )
            data = path.read_bytes()
        after = State(
            model,
            masks=state.masks,
            codebooks=state.codebooks,
            plan=state.plan,
            files={**state.files, self.file: data},
        )
        line = f"{len(data):,} bytes, {done.format}, outputs within {done.error:.1e} of PyTorch's"
        return Result(after, _measured(done), {"notes": list(done.notes)}, line)

    def _options(self, model: nn.Module, work: Work) -> Int8Options:
        """How INT8 is made: judged by accuracy on the validation images where the data has it."""

        def accuracy(net: nn.Module) -> float:
            return evaluate(net, work.data.validation, device="cpu", seed=work.seed)["accuracy"]

        some = work.data.validation.leading(self.calibrate)
        judged = "accuracy" in evaluate(model, some, device="cpu", seed=work.seed)
        return Int8Options(
            self.calibration,
            self.percentile,
            evaluate=(lambda net: {"accuracy": accuracy(net)}) if judged else None,
            lost=self.lost,
            compare=CalibrationImages(work.data.validation, self.calibrate, self.batch_size, seed=work.seed),
            keep_float=self.keep_float,
            reduce_range=self.reduce_range,
            batches=-(-self.calibrate // self.batch_size),
        )


def _measured(done: Exported) -> Measurements:
    rows = [
        Measurement(
            "onnx_bytes" if done.format != "torch.export" else "pt2_bytes", done.size, "bytes", "of the file"
        ),
        Measurement(
            "export_error",
            done.error,
            "",
            "largest difference of the file's outputs from PyTorch's, over the largest",
        ),
    ]
    if done.int8 is not None:
        report = done.int8
        meaning = f"{report.judged_by} of the INT8 file in ONNX Runtime, on the validation images"
        layers = {layer.name: layer.noise for layer in report.layers}
        rows += [
            Measurement(f"int8_{report.judged_by}", report.after, "", meaning),
            Measurement("int8_layers", report.quantised, "", "layers in INT8"),
            Measurement(
                "float_layers",
                len(report.float_layers),
                "",
                "layers left in float; per layer: the noise on the outputs with it alone in INT8",
                per_layer=layers,
                notes=report.float_layers,
            ),
        ]
    return Measurements(rows)
