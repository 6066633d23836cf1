"""Programs: a model recorded by `torch.export`, written as a file, and compared with the model.

>>> program, free = record_program(nn.Linear(3, 2).eval(), torch.zeros(1, 3))
>>> [each.name for each in free]
['batch']
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from secateur.adapters.free_axes import FreeAxis, axes_of, has_length, larger, resized, runs
from secateur.adapters.onnx_model import OnnxModel, extra_module
from secateur.adapters.onnx_names import name_axes, name_outputs, output_names
from secateur.adapters.padding import at_tokens, tokens_of, with_tokens
from secateur.adapters.recurrent import whole_recurrent
from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import DataError, ProofError, SecateurError
from secateur.execution.calling import call, describe
from secateur.execution.example import Example, call_arguments
from secateur.execution.undisturbed import undisturbed

if TYPE_CHECKING:
    import onnx_ir

__all__ = [
    "OnnxNames",
    "attends",
    "first_line",
    "largest_difference",
    "load_program",
    "program_error",
    "quiet",
    "record_program",
    "write_program",
]

_GRAPH_WORDS = frozenset(["code", "graph", "meta"])  # attributes of torch's own graphs
_NOTES = (
    "pkg.torch.onnx.stack_trace",  # empty by then
    "pkg.torch.onnx.fx_node",
    "pkg.torch.export.ExportedProgram.graph_signature",
)
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
    def of(cls, model: nn.Module, example: Example, free: Sequence[FreeAxis]) -> OnnxNames:
        """The names for a model.

        Args:
            model: The model, in evaluation mode.
            example: What it is called with.
            free: The axes that are free.
        """
        axes: list[dict[int, str]] = [{} for _ in tensors_in(example)]
        for each in free:
            for which, axis in each.places:
                axes[which][axis] = each.name
        return cls(output_names(call(model, example)), axes)


def record_program(
    model: nn.Module, example: Example, dynamic: bool | Sequence[FreeAxis] = True
) -> tuple[torch.export.ExportedProgram, tuple[FreeAxis, ...]]:
    """Record a model as a program.

    Args:
        model: The model, on the CPU and in evaluation mode.
        example: What it is called with.
        dynamic: The axes that should be free; True for those that the model takes in other sizes, but for images.

    Returns:
        (the program, the axes that are free).

    Raises:
        DataError: The model cannot be recorded.
    """
    args, kwargs = call_arguments(example)
    with quiet(), whole_recurrent():
        if isinstance(dynamic, bool):
            wanted = axes_of(model, example)[0] if dynamic else ()
        else:
            wanted = tuple(dynamic)
        while wanted:
            found = _with_free_axes(model, example, wanted)
            if found is not None and _places(found[1]) == _places(wanted):
                return found
            wanted = _fewer(example, wanted) if found is None else found[1]
        try:
            return torch.export.export(model, args, kwargs, strict=False), ()
        except Exception as error:
            raise_if_out_of_memory(error)
            raise DataError(
                f"{type(model).__name__} cannot be recorded by torch.export: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}; its forward depends on values of the input"
            ) from error


def _places(axes: Sequence[FreeAxis]) -> set[tuple[int, int]]:
    return {place for each in axes for place in each.places}


def _fewer(example: Example, wanted: tuple[FreeAxis, ...]) -> tuple[FreeAxis, ...]:
    """Fewer free axes: the batch and lengths of tokens, then the batch, then none."""
    tensors = tensors_in(example)
    batch = [each for each in wanted if each.name == "batch"]
    tokens = [each for each in wanted if all(has_length(tensors[which]) for which, _ in each.places)]
    for fewer in ([each for each in wanted if each in batch or each in tokens], batch):
        if len(fewer) < len(wanted):
            return tuple(fewer)
    return ()


def _with_free_axes(
    model: nn.Module, example: Example, wanted: tuple[FreeAxis, ...]
) -> tuple[torch.export.ExportedProgram, tuple[FreeAxis, ...]] | None:
    """The program with free axes, and those that it leaves free, joined where their sizes depend on each other; None
    where the model's code does not allow them.
    """
    tensors = tensors_in(example)
    dimensions: dict[int, dict[int, Any]] = {}
    for which, axis in sorted(_places(wanted)):
        dimensions.setdefault(id(tensors[which]), {})[axis] = torch.export.Dim.AUTO
    free = pytree.tree_map(
        lambda item: dimensions.get(id(item), {}) if torch.is_tensor(item) else None, call_arguments(example)
    )
    # torch.export takes a size of one for a constant
    ones = {(which, axis): 2 for which, axis in _places(wanted) if tensors[which].shape[axis] == 1}
    args, kwargs = call_arguments(resized(example, ones))
    try:
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes=free[0] if args else free[1], strict=False
        )
        made = program.module()
        call(made, example)
    except Exception as error:  # the model's code may raise anything
        raise_if_out_of_memory(error)
        return None
    return program, tuple(
        each for each in _joined(program, wanted, len(tensors)) if _holds(model, made, example, each)
    )


def _joined(
    program: torch.export.ExportedProgram, wanted: tuple[FreeAxis, ...], count: int
) -> tuple[FreeAxis, ...]:
    """The axes that have no fixed size in a program, as one where their sizes depend on each other."""
    held = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [held.get(str(name)) for name in program.graph_signature.user_inputs]
    shapes = [each.shape for each in inputs if isinstance(each, torch.Tensor)]
    if len(shapes) != count:
        return wanted
    found: list[tuple[set[str], FreeAxis]] = []
    tried: dict[str, int] = {}
    for each in wanted:
        sizes: list[Any] = [shapes[which][axis] for which, axis in each.places]
        if any(isinstance(size, int) for size in sizes):
            continue  # the model's code needs it
        # A mask that is true everywhere may have another length in PyTorch, which leaves it out; in the program not.
        same = tuple(tried.setdefault(str(size.node.expr), other) for size, other in zip(sizes, each.sizes))
        each = replace(each, sizes=same)
        symbols = {str(symbol) for size in sizes for symbol in size.node.expr.free_symbols}
        first = next(
            (place for place, (known, one) in enumerate(found) if known & symbols and one.name != "batch"),
            None,
        )
        if first is None or each.name == "batch":
            found.append((symbols, each))
            continue
        known, one = found[first]
        joined = FreeAxis(one.name, (*one.places, *each.places), (*one.sizes, *each.sizes))
        found[first] = (known | symbols, joined)
    return tuple(each for _, each in found)


def _holds(model: nn.Module, made: Callable[..., object], example: Example, axis: FreeAxis) -> bool:
    """Whether a program's module takes the other sizes of an axis that the model takes, much larger ones as well: a
    forward that branches on a size has one of its branches in the program, which a file would compute for every size.
    For the far sizes nothing is computed.
    """
    with torch.no_grad():
        other = axis.other(example)
        if not runs(made, other):  # an axis that was specialised refuses another size
            return False
    sizes: list[Callable[[int], int]] = [lambda size: 17 * size]
    if axis.name != "batch":
        sizes = [lambda size: 5 * size, lambda size: max(2, size // 3), lambda size: max(2, size - 1)]
    with undisturbed(model):
        for size in sizes:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
                far = map_tensors(fake.from_tensor, axis.changed(example, size))
                if runs(model, far) and not runs(made, far):
                    return False
    return True


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
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            # lines of the code that it came from, with the folders of this machine
            node.meta.pop("stack_trace", None)
    if not onnx:
        with quiet(), path.open("wb") as file:  # a path would give its name to the archive's own folder
            torch.export.save(program, file)
        return
    with quiet(), whole_recurrent() if _writes_recurrent() else contextlib.nullcontext():
        try:
            found = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
        except Exception as error:  # the exporter raises what its passes lead to
            raise_if_out_of_memory(error)
            raise DataError(_unwritten(program, error)) from error
        assert found is not None
        _strip(found.model)
        found.save(str(path), external_data=False)
        if names is not None:
            _name(path, names)


def _writes_recurrent() -> bool:
    """Whether the exporter that is installed writes recurrent layers as operators of ONNX; older ones unroll them."""
    operators = extra_module("onnxscript.function_libs.torch_lib.ops.core")
    return all(hasattr(operators, f"aten_{name}") for name in ("lstm", "gru"))


def _strip(model: onnx_ir.Model) -> None:
    """Take out of a model what its exporter noted of the program, a tenth of a small file."""
    graphs = (model.graph, *(each.graph for each in model.functions.values()))
    notes = [model.metadata_props, *(graph.metadata_props for graph in graphs)]
    for held in (*notes, *(node.metadata_props for graph in graphs for node in graph.all_nodes())):
        for key in _NOTES:
            held.pop(key, None)


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
    model: nn.Module,
    program: Callable[..., object],
    example: Example,
    free: Sequence[FreeAxis],
    mask: int | None = None,
) -> float:
    """The largest difference from the model's outputs, over the largest output.

    Args:
        model: The model.
        program: The file's program.
        example: What both are called with.
        free: The axes that are free: a larger batch, other sizes are then compared as well.
        mask: The input that says where rows begin, by its position: outputs before are then left out.

    Raises:
        ProofError: The outputs have other shapes, or the file does not run.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [example]
    for axis in free:
        inputs.append(larger(example, generator) if axis.name == "batch" else axis.other(example))
    worst = 0.0
    for one in inputs if mask is None else [with_tokens(each, mask) for each in inputs]:
        expected = tensors_in(call(model, one))
        try:
            found = call(program, one)
        except SecateurError:
            raise
        except Exception as error:  # the runtime's errors have no class of their own
            raise_if_out_of_memory(error)
            raise ProofError(
                f"the file does not run on inputs of the shapes {describe(one)} ({first_line(error)})"
            ) from error
        given = tensors_in(found)
        if mask is not None and [each.shape for each in expected] == [each.shape for each in given]:
            held = tokens_of(tensors_in(one)[mask])
            expected, given = ([at_tokens(each, held) for each in side] for side in (expected, given))
        worst = max(worst, largest_difference(expected, given))
    return worst


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something.

    Args:
        error: The error.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
