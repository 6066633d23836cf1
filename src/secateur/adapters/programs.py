"""Programs: a model recorded by `torch.export`, written as a file, and compared with the model.

>>> program, free = record_program(nn.Linear(3, 2).eval(), torch.zeros(1, 3), dynamic_batch=True)
>>> free
('batch',)
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from secateur.adapters.onnx_model import OnnxModel, extra_module
from secateur.adapters.onnx_names import name_axes, name_outputs, output_names
from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import DataError, ProofError
from secateur.execution.calling import call
from secateur.execution.example import Example, call_arguments

__all__ = [
    "OnnxNames",
    "attends",
    "has_length",
    "largest_difference",
    "load_program",
    "program_error",
    "quiet",
    "record_program",
    "write_program",
]

_GRAPH_WORDS = frozenset(["code", "graph", "meta"])  # attributes of torch's own graphs
ATTENTION = 23
"""The first opset of ONNX with an operator for attention."""


@dataclass(frozen=True)
class OnnxNames:
    """What outputs and free axes are called in an ONNX file.

    Attributes:
        outputs: A name for each output.
        axes: For each input the names of its axes.
    """

    outputs: list[str]
    axes: list[dict[int, str]]

    @classmethod
    def of(cls, model: nn.Module, example: Example, free: Sequence[str]) -> OnnxNames:
        """The names for a model.

        Args:
            model: The model, in evaluation mode.
            example: What it is called with.
            free: What is free of "batch" and "length".
        """
        axes = []
        for tensor in tensors_in(example):
            named = {0: "batch"} if "batch" in free and tensor.dim() else {}
            if "length" in free and has_length(tensor):
                named[1] = "length"
            axes.append(named)
        return cls(output_names(call(model, example)), axes)


def record_program(
    model: nn.Module, example: Example, dynamic_batch: bool, dynamic_length: bool = True
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Record a model as a program.

    Args:
        model: The model, on the CPU and in evaluation mode.
        example: What it is called with.
        dynamic_batch: Whether the first axis of every input should be free.
        dynamic_length: Whether the second axis of whole numbers in rows, as of tokens, should be free as well.

    Returns:
        (the program, what is free of "batch" and "length").

    Raises:
        DataError: The model cannot be recorded.
    """
    args, kwargs = call_arguments(example)
    with quiet():
        if dynamic_batch and all(tensor.dim() for tensor in tensors_in(example)):
            for free in _tries(example, dynamic_length):
                program = _with_free_axes(model, args, kwargs, free)
                if program is not None:
                    return program, free
        try:
            return torch.export.export(model, args, kwargs, strict=False), ()
        except Exception as error:
            raise_if_out_of_memory(error)
            raise DataError(
                f"{type(model).__name__} cannot be recorded by torch.export: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}; its forward depends on values of the input"
            ) from error


def has_length(tensor: torch.Tensor) -> bool:
    """Whether an input's second axis may be a length: it is of whole numbers in rows, as tokens are.

    Args:
        tensor: The input.
    """
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return whole and tensor.dim() == 2 and tensor.shape[1] > 1


def _tries(example: Example, dynamic_length: bool) -> list[tuple[str, ...]]:
    """What may be free, most first."""
    long = dynamic_length and any(has_length(tensor) for tensor in tensors_in(example))
    return [("batch", "length"), ("batch",)] if long else [("batch",)]


def _with_free_axes(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], free: tuple[str, ...]
) -> torch.export.ExportedProgram | None:
    """The program with a free batch, and a free length; None where the model's code does not allow it."""

    def axes(item: object) -> dict[int, Any] | None:
        if not torch.is_tensor(item):
            return None
        return dict.fromkeys(range(1 + ("length" in free and has_length(item))), torch.export.Dim.AUTO)

    dimensions = pytree.tree_map(axes, (args, kwargs))
    given = (args, kwargs)
    others = [given, map_tensors(_tripled, given)]
    if "length" in free:
        others.append(map_tensors(_other_length, given))
    try:
        more_args, more_kwargs = map_tensors(_doubled, given)
        program = torch.export.export(
            model,
            more_args,
            more_kwargs,
            dynamic_shapes=dimensions[0] if args else dimensions[1],
            strict=False,
        )
        made = program.module()
        for own_args, own_kwargs in others:
            made(*own_args, **own_kwargs)  # an axis that was specialised refuses another size
        if not _holds_far_away(model, made, given, free):
            return None
    except Exception as error:  # the model's code may raise anything
        raise_if_out_of_memory(error)
        return None
    return program


def _holds_far_away(model: nn.Module, made: Callable[..., object], given: Any, free: tuple[str, ...]) -> bool:
    """Whether a program's module takes much larger sizes that the model takes: a forward that branches on a size has
    one of its branches in the program, which a file would compute for every size. Nothing is computed for it.
    """
    sizes: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda tensor: _repeated(tensor, 0, 17)]
    if "length" in free:
        sizes += [
            lambda tensor: _repeated(tensor, 1, 5) if has_length(tensor) else tensor,
            lambda tensor: tensor[:, : max(2, tensor.shape[1] // 3)] if has_length(tensor) else tensor,
        ]
    for size in sizes:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            args, kwargs = map_tensors(functools.partial(_faked, fake, size), given)
            if _runs(model, args, kwargs) and not _runs(made, args, kwargs):
                return False
    return True


def _faked(
    fake: FakeTensorMode, size: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor
) -> torch.Tensor:
    return fake.from_tensor(size(tensor))


def _runs(model: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    try:
        model(*args, **kwargs)
    except Exception as error:  # the model's code may raise anything
        raise_if_out_of_memory(error)
        return False
    return True


def _repeated(tensor: torch.Tensor, axis: int, times: int) -> torch.Tensor:
    return torch.cat([tensor] * times, axis) if tensor.dim() > axis else tensor


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    """A batch of one as two: torch.export takes a size of one for a constant."""
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


def _other_length(tensor: torch.Tensor) -> torch.Tensor:
    """Tokens cut to another length: shorter, as a model may have a longest one.

    Args:
        tensor: An input; one that has no length is given back.
    """
    if not has_length(tensor):
        return tensor
    length = tensor.shape[1]
    return tensor[:, : length - 1] if length > 2 else torch.cat([tensor, tensor[:, :1]], 1)


def _tripled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor, tensor])


def attends(program: torch.export.ExportedProgram) -> bool:
    """Whether a program calls attention as one operator.

    Args:
        program: The program.
    """
    return any("scaled_dot_product" in str(node.target) for node in program.graph.nodes)


def write_program(
    program: torch.export.ExportedProgram,
    path: Path,
    onnx: bool,
    opset: int | None = None,
    names: OnnxNames | None = None,
) -> None:
    """Write a program as an ONNX file or as a `torch.export` archive.

    Args:
        program: The program.
        path: The file.
        onnx: Whether to write ONNX.
        opset: The version of ONNX's operators; None takes the exporter's own.
        names: What outputs and axes are called in an ONNX file; None leaves it to the exporter.

    Raises:
        DataError: The exporter cannot write the model.
    """
    if not onnx:
        with quiet():
            torch.export.save(program, path)
        return
    with quiet():
        try:
            found = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
        except Exception as error:  # the exporter raises what its passes lead to
            raise_if_out_of_memory(error)
            raise DataError(_unwritten(program, error)) from error
        assert found is not None
        found.save(str(path), external_data=False)
        if names is not None:
            _name(path, names)


def _name(path: Path, names: OnnxNames) -> None:
    """Name the outputs and the free axes in a file."""
    onnx = extra_module("onnx")
    model = onnx.load(str(path))
    if len(names.axes) == len(model.graph.input):
        name_axes(model, names.axes)
    if len(names.outputs) == len(model.graph.output):
        name_outputs(model, names.outputs)
    onnx.save(model, str(path))


def _unwritten(program: torch.export.ExportedProgram, error: Exception) -> str:
    """Why the exporter of torch cannot write a program."""
    clash = sorted({name.partition(".")[0] for name in program.state_dict} & _GRAPH_WORDS)
    if clash:
        return (
            f"torch's exporter to ONNX cannot write a model with a module named {clash[0]!r}, a name of its own; "
            "rename the module, or export to .pt2"
        )
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return (
        f"torch's exporter to ONNX cannot write the model: {type(error).__name__}: {lines[0][:200] if lines else ''}; "
        "export to .pt2, or rewrite the operator that it names"
    )


def load_program(path: Path, onnx: bool) -> Callable[..., object]:
    """Read a program's file back, to be called like the model.

    Args:
        path: The file.
        onnx: Whether it is ONNX.
    """
    return OnnxModel(path) if onnx else torch.export.load(path).module()


def program_error(
    model: nn.Module, program: Callable[..., object], example: Example, free: Sequence[str]
) -> float:
    """The largest difference from the model's outputs, over the largest output.

    Args:
        model: The model.
        program: The file's program.
        example: What both are called with.
        free: What is free of "batch" and "length": a larger batch, another length are then compared as well.

    Raises:
        ProofError: The outputs have other shapes.
    """
    generator = torch.Generator().manual_seed(0)

    def larger(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return tensor
        more = torch.cat([tensor, tensor.flip(0), tensor])
        if torch.is_floating_point(more):
            more = more + 0.1 * torch.randn(more.shape, generator=generator, dtype=more.dtype)
        return more

    inputs = [example]
    if "batch" in free:
        inputs.append(map_tensors(larger, example))
    if "length" in free:
        inputs.append(map_tensors(_other_length, example))
    return max(
        largest_difference(tensors_in(call(model, one)), tensors_in(call(program, one))) for one in inputs
    )


def largest_difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """The largest difference of two lists of outputs, over the largest output of each tensor.

    Args:
        expected: The model's outputs.
        found: The outputs to compare.

    Raises:
        ProofError: The shapes differ.
    """
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        raise ProofError(
            f"expected outputs of shapes {[tuple(t.shape) for t in expected]}, got {[tuple(t.shape) for t in found]}"
        )
    worst = 0.0
    for a, b in zip(expected, found):
        if a.numel():
            away = (a.double() - b.double()).abs()
            away = away.masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0).nan_to_num(float("inf"))
            worst = max(worst, float(away.max()) / max(float(a.abs().nan_to_num(0.0, 0.0).max()), 1e-30))
    return worst


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters and quantisers print, log and warn about while they work."""
    # That of fake tensors prints what a size that is only tried does not allow, as an error.
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "root", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(name if name != "root" else None) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL if logger.name.endswith("fake_tensor") else logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
