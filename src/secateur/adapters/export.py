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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.adapters.free_axes import (
    DynamicAxes,
    FreeAxis,
    axes_of,
    has_length,
    input_names,
    named_places,
)
from secateur.adapters.int8 import Int8Options, Int8Report, write_int8
from secateur.adapters.int8_layers import as_products
from secateur.adapters.onnx_model import extra_module, runs_attention
from secateur.adapters.padding import padding_mask
from secateur.adapters.programs import (
    ATTENTION,
    OnnxNames,
    attends,
    first_line,
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
from secateur.core.renamed import renamed
from secateur.core.rounding import FLOAT32, rounding_allowed
from secateur.errors import DataError, OptionError, ProofError, SecateurError
from secateur.execution.calling import call, moved
from secateur.execution.example import Example
from secateur.execution.sound_weights import check_sound
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = ["Exported", "export"]

_FORMATS = {".onnx": "onnx", ".pt2": "torch.export", ".xml": "openvino", ".pte": "executorch"}
_HARDLY = 0.9  # of the bytes in floats; an INT8 file of more is called hardly smaller


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


@renamed(dynamic_batch="dynamic_axes")
@verb
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    *,
    masks: Masks | None = None,
    dynamic_axes: bool | DynamicAxes = True,
    tolerance: float | None = None,
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
        dynamic_axes: Which axes of the inputs may have any size. True: the first of every input, and of inputs with two
            or three axes (tokens, audio, time series) every further one that the model takes in other sizes. A dict
            names others as well, which must then be free: `{"x": [2, 3]}`, or `{"x": {2: "rows"}}` with names for the
            file. False: none. .pte files have none, files with `own_operators` only the first of every input and those
            that are named. What is fixed although the model takes other sizes, a note says.
        tolerance: How far the float file may be from PyTorch: the largest difference over the largest output. None:
            1e-4, and where parameters or outputs are in half precision, eight steps of it (0.0078 in float16, 0.0625
            in bfloat16).
        int8: Batches to calibrate INT8 with: inputs, or (inputs, targets). "dynamic" computes the ranges of activations
            in every call instead, as is usual for transformers. ONNX only.
        int8_options: How INT8 is calibrated, and how much accuracy it may cost.

    Returns:
        What was written, how far it is from PyTorch, and notes.

    Raises:
        OptionError: The path has another ending, or options do not fit.
        DataError: The model cannot be recorded, or not be written in this format, or an axis cannot be free.
        UnknownNameError: `dynamic_axes` names an input that there is not.
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
    if kind in WRITERS:
        return _for_runtime(ready, _Wanted(target, given, tolerance, dynamic_axes, kind))
    report: Int8Report | None = None
    with undisturbed(ready, mode="eval"), torch.no_grad(), atomic_path(target) as scratch:
        long = not (int8_options is not None and int8_options.own_operators)
        axes = _axes(ready, given, dynamic_axes, long)
        wanted = _Wanted(target, given, tolerance, dynamic_axes, kind)
        if int8 is None:
            found, free = _recorded(ready, scratch, wanted, axes, [(ready, None)])
            error, more = found.error, found.notes
        else:
            forms = _int8_forms(ready, patches=isinstance(int8, str))
            found, free = _recorded(ready, scratch, wanted, axes, forms)
            in_floats = scratch.stat().st_size
            report = write_int8(ready, scratch, given, int8, int8_options or Int8Options())
            kind, error = "onnx int8", report.error
            more = (*(f"the file in floats was {note}" for note in found.notes), *report.notes)
    size, notes = target.stat().st_size, (*_notes(ready, given, axes, free), *more)
    if report is not None and size > _HARDLY * in_floats:
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


@dataclass(frozen=True)
class _Wanted:
    """What a float file has to be: its path, what the model is called with, its tolerance, its axes, its format."""

    target: Path
    example: Example
    tolerance: float | None
    dynamic: bool | DynamicAxes
    kind: str


@dataclass(frozen=True)
class _Axes:
    """The axes of the inputs: those to leave free, more that the model takes in other sizes, those that were asked for;
    whether any should be free.
    """

    wanted: tuple[FreeAxis, ...] = ()
    more: tuple[FreeAxis, ...] = ()
    asked: frozenset[tuple[int, int]] = frozenset()
    any: bool = False

    def tries(self, example: Example) -> list[tuple[FreeAxis, ...]]:
        """What to leave free, most first: all; those that were asked for, the batch and lengths of tokens."""
        tensors = tensors_in(example)
        fewer = tuple(
            each
            for each in self.wanted
            if each.name == "batch"
            or self.asked & set(each.places)
            or all(has_length(tensors[which]) for which, _ in each.places)
        )
        return [self.wanted] if fewer == self.wanted else [self.wanted, fewer]


def _axes(model: nn.Module, example: Example, dynamic: bool | DynamicAxes, long: bool = True) -> _Axes:
    """The axes of a model's inputs; with `long` also those that are not the first and were not asked for."""
    if isinstance(dynamic, bool) and not dynamic:
        return _Axes()
    asked = named_places(model, example, dynamic) if isinstance(dynamic, Mapping) else {}
    wanted, more = axes_of(model, example, asked)
    if not long:
        wanted = tuple(each for each in wanted if each.name == "batch" or set(asked) & set(each.places))
    return _Axes(wanted, more, frozenset(asked), True)


def _recorded(
    model: nn.Module,
    scratch: Path,
    wanted: _Wanted,
    axes: _Axes,
    forms: Sequence[tuple[nn.Module, int | None]],
) -> tuple[_Error, tuple[FreeAxis, ...]]:
    """Record a model in the first of some forms and with the most free axes that work, write its file in floats and
    compare it with the model itself; the error, and what is free.

    Args:
        model: The model.
        scratch: The file.
        wanted: What it has to be.
        axes: The axes of the inputs.
        forms: The model as it may be written, each with a version of ONNX's operators.
    """
    tries = [(free, *form) for free in axes.tries(wanted.example) for form in forms]
    for place, (asked, written, opset) in enumerate(tries):
        try:
            program, free = record_program(written, wanted.example, asked)
            _check_asked(model, wanted.example, axes, free)
            version = opset if opset is not None and attends(program) else None
            return _write_float(model, program, scratch, wanted, free, version), free
        except Exception as error:  # the runtime's errors have no class of their own
            raise_if_out_of_memory(error)
            if place == len(tries) - 1:
                raise
    raise AssertionError


def _check_asked(model: nn.Module, example: Example, axes: _Axes, free: Sequence[FreeAxis]) -> None:
    """Raise where an axis that was asked for is not free."""
    for which, axis in sorted(axes.asked - {place for each in free for place in each.places}):
        raise DataError(
            f"dynamic_axes: axis {axis} of {input_names(model, example)[which]!r} cannot be free: the code of "
            f"{type(model).__name__} needs to know its size, as an `if` on sizes or a loop over one does, or it "
            "depends on another one; leave it out, or write a forward that does the same for every size"
        )


def _int8_forms(model: nn.Module, patches: bool) -> list[tuple[nn.Module, int | None]]:
    """The forms of a model that INT8 is made of: the fastest first; where a model does not allow it, as it is."""
    opset = ATTENTION if runs_attention() else None
    return [(as_products(model, patches=patches), opset), (model, opset), (model, None)]


def _not_smaller(size: int, in_floats: int, report: Int8Report) -> str:
    """The remark on an INT8 file that has no fewer bytes than the file in floats, or hardly fewer."""
    text = f"INT8 did not make the file smaller: {size:,} bytes, {in_floats:,} in floats"
    if size < in_floats:
        text = f"INT8 made the file only {1 - size / in_floats:.0%} smaller: {size:,} bytes, {in_floats:,} in floats"
    if not report.float_layers:
        return f"{text}; the model is so small that scales and operators take what the weights save"
    count = len(report.float_layers)
    return (
        f"{text}, as {count} layer{'s' if count > 1 else ''} had to stay in float; allow more with "
        "Int8Options(lost=...), or have accuracy judged by labels: Int8Options(evaluate=...)"
    )


def _for_runtime(model: nn.Module, wanted: _Wanted) -> Exported:
    """Write the file of another runtime in a scratch folder, compare it, and only then put it in its place."""
    target, example, kind = wanted.target, wanted.example, wanted.kind
    if kind == "executorch" and isinstance(wanted.dynamic, Mapping):
        raise OptionError(f"{target}: a .pte file has the sizes of the example; leave dynamic_axes out")
    with undisturbed(model, mode="eval"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # ExecuTorch plans its memory for the largest input, so its sizes are those of the example
        fixed = kind == "executorch"
        axes = _Axes(any=bool(wanted.dynamic)) if fixed else _axes(model, example, wanted.dynamic)
        program, free = record_program(model, example, axes.wanted)
        _check_asked(model, example, axes, free)
        scratch = Path(folder) / target.name
        WRITERS[kind](program, scratch)
        found = _checked(model, model_of_file(scratch), wanted, free)
        files = sorted(Path(folder).iterdir(), key=lambda path: path == scratch)  # the named file last
        size = sum(path.stat().st_size for path in files)
        for path in files:
            atomic_write(target.with_name(path.name), path.read_bytes())
    notes = (*_notes(model, example, axes, free), *found.notes)
    return Exported(target, kind, size, found.error, notes)


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


def _write_float(
    model: nn.Module,
    program: torch.export.ExportedProgram,
    scratch: Path,
    wanted: _Wanted,
    free: Sequence[FreeAxis],
    opset: int | None,
) -> _Error:
    """Write the program in floats and compare it; the error."""
    onnx = wanted.kind == "onnx"
    names = OnnxNames.of(model, wanted.example, free) if onnx else None
    write_program(program, scratch, onnx, opset, names)
    try:
        peer = load_program(scratch, onnx)
    except Exception as error:  # the runtime's errors have no class of their own
        raise_if_out_of_memory(error)
        if isinstance(error, SecateurError):
            raise
        raise DataError(
            f"{wanted.target}: the runtime does not load the file ({first_line(error)}); it was not kept. "
            f"{_loadable(model, wanted)}"
        ) from error
    return _checked(model, peer, wanted, free)


@dataclass(frozen=True)
class _Error:
    """How far a file is from the model: at all outputs that count, and at padding where that is further."""

    error: float
    padding: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of padding."""
        if self.padding is None:
            return ()
        return (
            "compared from the first token of each row on: at padding before it, on which no token depends, outputs "
            f"differ by {self.padding:.2g} of the largest, as attention to nothing is undefined (PyTorch gives zeros, "
            "the runtime a mean); read none",
        )


def _checked(
    model: nn.Module, program: Callable[..., object], wanted: _Wanted, free: Sequence[FreeAxis]
) -> _Error:
    """The error of a file's program; raises where it is beyond the tolerance."""
    try:
        error = program_error(model, program, wanted.example, free)
        allowed = _allowed(model, wanted, error)
        further = wanted.kind == "onnx" and not error <= allowed
        mask = padding_mask(model, wanted.example) if further else None
        if mask is not None:
            of_tokens = program_error(model, program, wanted.example, free, mask)
            if of_tokens <= allowed:
                return _Error(of_tokens, error)
    except ProofError as problem:
        raise ProofError(f"{wanted.target}: {problem}; the file was not kept") from problem
    if not error <= allowed:
        raise ProofError(
            f"{wanted.target}: outputs differ from PyTorch's by {error:.3g} of the largest, and at most "
            f"{allowed:g} is allowed; the file was not kept. {_nearer(model, wanted)}"
        )
    return _Error(error)


def _allowed(model: nn.Module, wanted: _Wanted, error: float) -> float:
    """The tolerance: what was given, else by the precision of parameters and outputs where float32's is not enough."""
    if wanted.tolerance is not None:
        return wanted.tolerance
    if error <= FLOAT32:
        return FLOAT32
    return rounding_allowed(
        each.dtype for each in (*model.parameters(), *tensors_in(call(model, wanted.example)))
    )


def _all_float32(model: nn.Module, wanted: _Wanted) -> bool:
    """Whether all floats are of 32 bits: the model's and those that it is called with."""
    held = [*model.parameters(), *model.buffers(), *tensors_in(wanted.example)]
    return all(each.dtype == torch.float32 for each in held if each.is_floating_point())


def _loadable(model: nn.Module, wanted: _Wanted) -> str:
    """What to do about a file that its runtime does not load."""
    if not _all_float32(model, wanted):
        return "Export in float32, model.float(), or to .pt2: the runtime lacks operators for other floats"
    return "Rewrite the operator that it names, or export to .pt2"


def _nearer(model: nn.Module, wanted: _Wanted) -> str:
    """What to do about a file whose outputs are too far away."""
    if not _all_float32(model, wanted):
        return "Allow more with tolerance=, or export in float32"
    advice = "Allow more with tolerance=. More than about 0.001 is no rounding"
    if wanted.kind == "torch.export":
        return f"{advice}: the forward gives other outputs in every call; make it give the same"
    return f"{advice}: an operator is written wrongly; export parts of the model to find it, or write a .pt2 file"


def _notes(model: nn.Module, example: Example, axes: _Axes, free: Sequence[FreeAxis]) -> tuple[str, ...]:
    """What to know of a file: the axes that stayed fixed, unless that was asked for, and zeros."""
    notes = []
    places = {place for each in free for place in each.places}
    tensors = tensors_in(example)
    if axes.any and not any(each.name == "batch" for each in free):
        notes.append("the batch is fixed to that of the example: the model's code needs to know it")
    lengths = {
        tensor.shape[1]
        for which, tensor in enumerate(tensors)
        if has_length(tensor) and (which, 1) not in places
    }
    if axes.any and lengths:
        notes.append(
            f"the length of sequences is fixed to {', '.join(map(str, sorted(lengths)))}: pad them to it"
        )
    names = input_names(model, example)
    for fixed, why in (
        (axes.wanted, "the exporter or the model's code needs to know it"),
        (axes.more, "dynamic_axes={} frees them, unless the forward branches on a size"),
    ):
        left = [place for each in fixed for place in each.places if place not in places and place[1]]
        left = [place for place in left if not has_length(tensors[place[0]])]
        if left:
            named = {names[which]: [axis for one, axis in left if one == which] for which, _ in left}
            said = ", ".join(
                f"axis {axis} of {names[which]!r} to {tensors[which].shape[axis]}" for which, axis in left
            )
            notes.append(f"fixed, although the model takes other sizes: {said}; {why.format(named)}")
    return (*notes, *_zeros(model))


def _zeros(model: nn.Module) -> list[str]:
    """The remark on zeros that the file stores."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in weights)
    zeros = sum(int((p == 0).sum()) for p in weights) / total if total else 0.0
    if zeros <= 0.01:
        return []
    return [
        f"{zeros:.0%} of the weights are zero; this format stores and multiplies them anyway. Only sc.shrink "
        "makes it smaller and faster"
    ]
