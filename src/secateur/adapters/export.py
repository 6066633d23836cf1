"""`export`: a model as ONNX (in floats or INT8) or as a `torch.export` archive, compared with PyTorch's outputs.

Dense, masked, shrunk and shared models are ordinary modules and are exported as such: `masks.apply(model)`,
`small.model`, `shared.model`. Both formats store every weight as a dense number. Zeros and repeated values make such a
file neither smaller nor faster (2:4 patterns included); only removed channels and INT8 do. The small file is that of
`sc.save`.

>>> import pathlib, tempfile, torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
>>> with tempfile.TemporaryDirectory() as folder:
...     done = export(model, pathlib.Path(folder) / "m.pt2", torch.randn(2, 4))
>>> done.format, done.error
('torch.export', 0.0)
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.adapters.int8 import Int8Options, Int8Report, write_int8
from secateur.adapters.int8_layers import as_products
from secateur.adapters.onnx_model import extra_module, runs_attention
from secateur.adapters.programs import (
    ATTENTION,
    OnnxNames,
    attends,
    has_length,
    load_program,
    program_error,
    record_program,
    write_program,
)
from secateur.adapters.runtimes import WRITERS, model_of_file
from secateur.core.atomic_files import atomic_path, atomic_write
from secateur.core.masks import Masks
from secateur.core.nested import tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import OptionError, ProofError
from secateur.execution.calling import moved
from secateur.execution.example import Example
from secateur.execution.sound_weights import check_sound
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = ["Exported", "export"]

_FORMATS = {".onnx": "onnx", ".pt2": "torch.export", ".xml": "openvino", ".pte": "executorch"}


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        path: The file.
        format: "onnx", "onnx int8", "torch.export", "openvino" or "executorch".
        size: Its bytes; of OpenVINO those of the .xml and the .bin file.
        error: The largest difference of its outputs from PyTorch's, over the largest output.
        notes: Remarks for the user, such as a fixed batch.
        int8: The effect of INT8, if it was asked for.
    """

    path: Path
    format: str
    size: int
    error: float
    notes: tuple[str, ...] = ()
    int8: Int8Report | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format}, {self.size:,} bytes, outputs within {self.error:.1e} of PyTorch's"
        ]
        if self.int8 is not None:
            lines += [f"  {line}" for line in str(self.int8).splitlines()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


@verb
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    *,
    masks: Masks | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
    int8: Iterable[object] | str | None = None,
    int8_options: Int8Options | None = None,
) -> Exported:
    """Write a model as `.onnx`, `.pt2` (a `torch.export` archive), `.xml` (OpenVINO, its weights beside it in a `.bin`
    file) or `.pte` (ExecuTorch), read it back, and compare outputs.

    Args:
        model: The model; it is not changed.
        path: The file; its ending chooses the format.
        example: What the model is called with.
        masks: Applied to a copy first.
        dynamic_batch: Whether the first axis of every input may have any length, and the second axis of tokens (whole
            numbers in rows), but in .pte files and with `own_operators`. What is fixed all the same, a note says.
        tolerance: How far the float file may be from PyTorch: the largest difference over the largest output.
        int8: Batches to calibrate INT8 with: inputs, or (inputs, targets). "dynamic" computes the ranges of activations
            in every call instead, as is usual for transformers. ONNX only.
        int8_options: How INT8 is calibrated, and how much accuracy it may cost.

    Returns:
        What was written, how far it is from PyTorch, and notes.

    Raises:
        OptionError: The path has another ending, or options do not fit.
        DataError: The model cannot be recorded, or not be written in this format.
        ProofError: The float file differs by more than `tolerance`. No file is left.
        BudgetNotMetError: INT8 costs more than `int8_options.lost`. No file is left.
        NonFiniteError: A weight is NaN.
        MissingExtraError: ONNX, OpenVINO or ExecuTorch is not installed.
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix)
    if kind is None:
        raise OptionError(
            f"{target}: expected a file that ends in .onnx or .pt2 (torch.export), .xml (OpenVINO) or .pte "
            f"(ExecuTorch), got {target.suffix or 'no ending'!r}"
        )
    _check_int8(target, int8, int8_options)
    if kind == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            extra_module(name)
    ready = copy.deepcopy(model).cpu()
    if masks is not None:
        masks.to("cpu").apply_(ready)
    given = moved(example, torch.device("cpu"))
    _without_cache(ready)
    check_sound(ready, "comparing them with the file's says nothing")
    report: Int8Report | None = None
    if kind in WRITERS:
        return _for_runtime(
            ready, target, given, _Wanted(target, ("batch",) if dynamic_batch else (), tolerance, None), kind
        )
    with undisturbed(ready, mode="eval"), torch.no_grad(), atomic_path(target) as scratch:
        long = not (int8_options is not None and int8_options.own_operators)
        axes = ("batch", "length") if long else ("batch",)
        wanted = _Wanted(target, axes if dynamic_batch else (), tolerance, None)
        if int8 is None:
            error, free = _recorded(ready, ready, scratch, given, wanted)
        else:
            free = _ready_for_int8(ready, scratch, given, wanted, patches=isinstance(int8, str))
            in_floats = scratch.stat().st_size
            report = write_int8(ready, scratch, given, int8, int8_options or Int8Options())
            kind, error = "onnx int8", report.error
    size, notes = target.stat().st_size, _notes(ready, given, free if dynamic_batch else None)
    if report is not None and size >= in_floats:
        notes += (_not_smaller(size, in_floats, report),)
    return Exported(target, kind, size, error, notes, report)


def _without_cache(model: nn.Module) -> None:
    """Let a model of transformers keep no keys and values of earlier tokens: their class is none that a runtime has."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        inner = [getattr(config, str(name), None) for name in getattr(config, "sub_configs", None) or ()]
        for each in (config, *inner):
            if getattr(each, "use_cache", False):
                each.use_cache = False


def _recorded(
    model: nn.Module, written: nn.Module, scratch: Path, example: Example, wanted: _Wanted
) -> tuple[float, tuple[str, ...]]:
    """Record a model, write its file in floats and compare it with the model itself; the error, and what is free."""
    program, free = record_program(
        written, example, "batch" in wanted.free, dynamic_length="length" in wanted.free
    )
    wants = wanted.opset is not None and attends(program)
    kept = replace(wanted, free=free, opset=wanted.opset if wants else None)
    return _write_float(model, program, scratch, example, kept), free


def _ready_for_int8(
    model: nn.Module, scratch: Path, example: Example, wanted: _Wanted, patches: bool
) -> tuple[str, ...]:
    """Write the float file that INT8 is made of: in the form that is fastest in INT8, and where a model does not allow
    that, as it is; what is free.
    """
    opset = ATTENTION if runs_attention() else None
    tries = [(as_products(model, patches=patches), opset), (model, opset), (model, None)]
    for place, (written, version) in enumerate(tries):
        try:
            return _recorded(model, written, scratch, example, replace(wanted, opset=version))[1]
        except Exception as error:  # the runtime's errors have no class of their own
            raise_if_out_of_memory(error)
            if place == len(tries) - 1:
                raise
    raise AssertionError


def _not_smaller(size: int, in_floats: int, report: Int8Report) -> str:
    """The remark on an INT8 file that has no fewer bytes than the file in floats."""
    text = f"INT8 did not make the file smaller: {size:,} bytes, {in_floats:,} in floats"
    if not report.float_layers:
        return f"{text}; the model is so small that scales and operators take what the weights save"
    return (
        f"{text}, as {len(report.float_layers)} layers had to stay in float; allow more with "
        "Int8Options(lost=...), or have accuracy judged by labels: Int8Options(evaluate=...)"
    )


def _for_runtime(model: nn.Module, target: Path, example: Example, wanted: _Wanted, kind: str) -> Exported:
    """Write the file of another runtime in a scratch folder, compare it, and only then put it in its place."""
    with undisturbed(model, mode="eval"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # ExecuTorch plans its memory for the largest input, so its batch is that of the example
        runtime = kind != "executorch"
        program, free = record_program(model, example, bool(wanted.free) and runtime)
        scratch = Path(folder) / target.name
        WRITERS[kind](program, scratch)
        error = _checked(model, model_of_file(scratch), example, replace(wanted, free=free))
        files = sorted(Path(folder).iterdir(), key=lambda path: path == scratch)  # the named file last
        size = sum(path.stat().st_size for path in files)
        for path in files:
            atomic_write(target.with_name(path.name), path.read_bytes())
    return Exported(target, kind, size, error, _notes(model, example, free if wanted.free else None))


def _check_int8(target: Path, int8: Iterable[object] | str | None, options: Int8Options | None) -> None:
    if int8 is None:
        if options is not None:
            raise OptionError(
                f"{target}: int8_options without int8=: give batches to calibrate with, or 'dynamic'"
            )
        return
    if target.suffix != ".onnx":
        raise OptionError(f"{target}: int8 is written as ONNX: expected a file that ends in .onnx")
    if (isinstance(int8, str) and int8 != "dynamic") or not isinstance(int8, Iterable):
        raise OptionError(
            f"int8: expected batches to calibrate with, or 'dynamic', got {int8!r}; give a list of inputs"
        )
    if options is not None and options.own_operators and not isinstance(int8, str):
        raise OptionError(
            "own_operators: only int8='dynamic' writes them, got calibration batches; pass int8='dynamic', or leave "
            "own_operators out"
        )


@dataclass(frozen=True)
class _Wanted:
    """What a float file has to be: its name, which axes are free, its tolerance, its version of operators."""

    target: Path
    free: tuple[str, ...]
    tolerance: float
    opset: int | None


def _write_float(
    model: nn.Module, program: torch.export.ExportedProgram, scratch: Path, example: Example, wanted: _Wanted
) -> float:
    """Write the program in floats and compare it; the error."""
    onnx = wanted.target.suffix == ".onnx"
    names = OnnxNames.of(model, example, wanted.free) if onnx else None
    write_program(program, scratch, onnx, wanted.opset, names)
    return _checked(model, load_program(scratch, onnx), example, wanted)


def _checked(model: nn.Module, program: Callable[..., object], example: Example, wanted: _Wanted) -> float:
    """The error of a file's program; raises where it is beyond the tolerance."""
    try:
        error = program_error(model, program, example, wanted.free)
    except ProofError as problem:
        raise ProofError(f"{wanted.target}: {problem}; the file was not kept") from problem
    if not error <= wanted.tolerance:
        raise ProofError(
            f"{wanted.target}: outputs differ from PyTorch's by {error:.3g} of the largest, and at most "
            f"{wanted.tolerance:g} is allowed; the file was not kept. Allow more with tolerance=, or export in float32"
        )
    return error


def _notes(model: nn.Module, example: Example, free: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to know of a file: the axes that stayed fixed (`free` is None where that was asked for), and zeros."""
    notes = []
    if free is not None and "batch" not in free:
        notes.append("the batch is fixed to that of the example: the model's code needs to know it")
    lengths = {tensor.shape[1] for tensor in tensors_in(example) if has_length(tensor)}
    if free is not None and lengths and "length" not in free:
        notes.append(
            f"the length of sequences is fixed to {', '.join(map(str, sorted(lengths)))}: pad them to it"
        )
    weights = [p for p in model.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in weights)
    zeros = sum(int((p == 0).sum()) for p in weights) / total if total else 0.0
    if zeros > 0.01:
        notes.append(
            f"{zeros:.0%} of the weights are zero; this format stores and multiplies them anyway. Only sc.shrink "
            "makes it smaller and faster"
        )
    return tuple(notes)
