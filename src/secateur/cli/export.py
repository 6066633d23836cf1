"""`export`: the measurements or the steps of a run as a table, or a model as ONNX or as a `torch.export` archive.

>>> VERBS[0].__name__
'export'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.calibrating import calibration_inputs
from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags, ModelOptions, Weights
from secateur.cli.options import (
    STORE,
    AllowCode,
    Example,
    OutputFlags,
    Seed,
    StoreFolder,
    Trials,
    repetitions_of,
)
from secateur.cli.output import print_json, show_table
from secateur.cli.small_files import is_folder, write_folder
from secateur.core.terminal import say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from secateur.adapters.export import Exported
    from secateur.core.measurement import Measurement

__all__ = ["VERBS"]

_INT8_IMAGES = 1000
_WHAT = ("measurements", "steps")
_TABLES, _MODELS = (".csv", ".parquet", ".json"), (".onnx", ".pt2", ".xml", ".pte")


@dataclass(frozen=True)
class ExportedFlags:
    """What is exported: a run, or a model by name."""

    which: Annotated[
        str,
        typer.Argument(help="A run's number, `last`, or (for .onnx, .pt2, .xml, .pte) the name of a model."),
    ] = "last"
    weights: Weights = None
    option: ModelOptions = None
    input_: Example = None
    seed: Seed = None
    allow_code: AllowCode = False
    what: Annotated[
        str,
        typer.Option(
            "--what",
            help="Of a run: measurements, or steps (how each step of a trial was obtained, its seconds and error).",
        ),
    ] = "measurements"
    all_runs: Annotated[bool, typer.Option("--all", help="Export every run of the store.")] = False

    def is_run(self) -> bool:
        """True if a run is meant, not a model by name."""
        return self.which == "last" or self.which.isdigit()

    def model(self) -> InputFlags:
        """The model by name."""
        return InputFlags(self.which, self.weights, self.option, self.seed, self.input_)

    def folder(self) -> Path | None:
        """The Hugging Face folder that is exported; None for anything else."""
        return None if self.is_run() else self.model().folder()


@dataclass(frozen=True)
class TimingFlags:
    """How an exported model is timed."""

    time: Annotated[bool, typer.Option("--time", help="Also time eager, the file, and torch.compile.")] = (
        False
    )
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Timed repetitions.")] = 25
    trials: Trials = None
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the timing.")] = 1


@with_flags
def export(
    source: ExportedFlags,
    timing: TimingFlags,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file: .csv, .parquet, .json; .onnx, .pt2, .xml (OpenVINO), .pte (ExecuTorch); or a new folder "
            "for a Hugging Face model. By default measurements.csv, or steps.csv.",
        ),
    ] = None,
    promise: Annotated[
        bool, typer.Option("--promise", help="Write beside an .onnx what `serve-check` compares it with.")
    ] = False,
    int8: Annotated[
        str | None,
        typer.Option(
            "--int8",
            metavar="DATA",
            help="Write an .onnx of INT8: calibrated on training images of this dataset, by name or folder; or "
            "`dynamic`, as is usual for transformers.",
        ),
    ] = None,
    store: StoreFolder = STORE,
    *,
    output: OutputFlags,
) -> None:
    """Write the measurements or the steps of a run as CSV, Parquet or JSON, or a model (a run's last, or one by name)
    as .onnx or .pt2, checked against PyTorch's outputs."""
    out = out or Path(f"{source.what}.csv")
    _check_ending(out, promise, int8)
    _check_table(source, out)
    if out.suffix in _TABLES:
        _table(source, out, store)
        return
    from secateur.adapters.export import export as write
    from secateur.adapters.promises import promise_onnx
    from secateur.adapters.runtimes import times

    net, example = _named(source, store)
    if is_folder(out):
        _folder(net, out, example, source.folder(), output.json)
        return
    done = write(net, out, example, int8=None if int8 is None else _int8(net, int8, source.folder()))
    if promise:
        promise_onnx(net, out, example, max(done.error, 1e-6))
    found: Any = []
    if timing.time and out.suffix != ".pt2":
        found = times(
            net,
            out,
            example,
            repetitions=repetitions_of(timing.repetitions, timing.trials),
            threads=timing.threads,
            compiled=True,
        )
    _print(done, found, output.json)


def _named(source: ExportedFlags, store: Path) -> tuple[nn.Module, Any]:
    """The model that was named, of a run or by its own name, and what it is called with."""
    if source.is_run():
        return _of_run(source.which, store, source.allow_code)
    model = source.model()
    net = model.build()
    return net, model.example(net)


def _check_ending(out: Path, promise: bool, int8: str | None) -> None:
    """Refuse a name of no known format, and options that do not go with its format."""
    if out.suffix not in ("", *_MODELS, *_TABLES):
        raise OptionError(
            f"{out}: expected a name that ends in {', '.join(_TABLES)} for measurements, or in "
            f"{', '.join(_MODELS)} for a model, or a folder for a Hugging Face model"
        )
    if promise and out.suffix != ".onnx":
        raise OptionError(
            f"{out}: --promise goes with an .onnx file; a Hugging Face folder always has its own; leave --promise out"
        )
    if int8 is not None and out.suffix != ".onnx":
        raise OptionError(f"{out}: --int8 goes with an .onnx file; name one, or leave --int8 out")


def _print(done: Exported, found: Sequence[Measurement], as_json: bool) -> None:
    """Print what was written, and how fast it is."""
    if as_json:
        print_json(
            {
                "file": str(done.path),
                "format": done.format,
                "file_bytes": done.size,
                "error": done.error,
                "notes": list(done.notes),
                "measurements": [item.to_dict() for item in found],
            }
        )
        return
    say(done)
    if found:
        rows = [[str(m.context.get("variant", "")), m.name, m.text(), m.definition] for m in found]
        show_table(["", "measure", "value", "definition"], rows, right=(2,))


def _check_table(source: ExportedFlags, out: Path) -> None:
    """Refuse a word that no table has, and options of tables for a model."""
    if source.what not in _WHAT:
        raise OptionError(f"--what: expected {' or '.join(_WHAT)}, got {source.what!r}")
    if out.suffix not in _TABLES and (source.all_runs or source.what != _WHAT[0]):
        raise OptionError(f"{out}: --all and --what go with {', '.join(_TABLES)}; leave them out for a model")
    if source.all_runs and source.which != "last":
        raise OptionError(f"--all exports every run, and run {source.which} was named; give one of the two")


def _table(source: ExportedFlags, out: Path, store: Path) -> None:
    """Write the measurements or the steps of a run, or of all runs, as CSV, Parquet or JSON."""
    from secateur.core.measurement import Measurements
    from secateur.lab import table_files, tables
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    last = opened.run(source.which)
    runs = opened.runs() if source.all_runs else [last]
    if source.what == "steps":
        count = table_files.write_steps(opened, runs, out)
    else:
        found = Measurements(item for run in runs for item in opened.measurements(run.id))
        count = tables.write_measurements(found, out)
    say(f"{count} {source.what} written to {out}")


def _folder(net: nn.Module, out: Path, example: Any, source: Path | None, as_json: bool) -> None:
    """Write a Hugging Face model as a folder that transformers loads."""
    done = write_folder(net, out, example, source)
    if as_json:
        print_json({"folder": str(out), "form": done.form, "folder_bytes": done.size, "error": done.error})
    else:
        say(done)


def _int8(net: nn.Module, data: str, folder: Path | None) -> Any:
    """What INT8 is calibrated with: batches of a dataset, or the word `dynamic`."""
    if data == "dynamic":
        return data
    if folder is not None and Path(data).suffix == ".txt":
        raise OptionError(
            f"--int8 {data}: a file of INT8 is calibrated on images; give --int8 dynamic for a model of text, which "
            "finds the ranges in every call"
        )
    return calibration_inputs(net, data, _INT8_IMAGES, folder)


def _of_run(which: str, store: Path, allow_code: bool) -> tuple[nn.Module, Any]:
    """The model that a run's first trial ended with, and one image."""
    from secateur.lab.engine import final_state
    from secateur.lab.planning import data_of, plan
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    trial = plan(Recipe.of(opened.run(which).recipe, allow_code=allow_code)).trials[0]
    state = final_state(trial, opened)
    return state.model.eval(), data_of(trial.recipe).example


VERBS = (export,)
