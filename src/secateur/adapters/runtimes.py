"""OpenVINO and ExecuTorch: a recorded program as their files, and these files called like a module.

OpenVINO's file is a pair, `m.xml` (the operators) and `m.bin` (the weights). ExecuTorch's is one, `m.pte`; XNNPACK
runs those operators that it has. Both come from the program that `torch.export` records.

>>> sorted(WRITERS)
['executorch', 'openvino']
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from secateur.adapters.onnx_model import OnnxModel
from secateur.adapters.programs import quiet
from secateur.core.measurement import Measurement, Measurements
from secateur.core.nested import tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.core.renamed import renamed
from secateur.errors import DataError, MissingExtraError
from secateur.execution.example import Example
from secateur.metrics.latency import compare

__all__ = ["WRITERS", "ExecuTorchModel", "OpenVinoModel", "model_of_file", "times"]


def _module(name: str) -> ModuleType:
    """Import a module of the package that bears a runtime's name."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{package} cannot be imported ({error}): pip install 'secateur[{package}]' (or write a .pt2 file)"
        ) from error


class OpenVinoModel(nn.Module):
    """An OpenVINO file that is called like a module, in float32 on the CPU.

    Args:
        path: The .xml file; the .bin file lies beside it.
        threads: Threads of the runtime; as many as it chooses unless given.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        super().__init__()
        options: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            options |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        core = _module("openvino").Core()
        self.compiled: Any = core.compile_model(core.read_model(str(path)), "CPU", options)

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs: one tensor, or a tuple of them.

        Args:
            *args: The arguments of the call.
            **kwargs: Its keywords.
        """
        given = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors_in((args, kwargs))]
        wanted = len(self.compiled.inputs)
        if len(given) != wanted:
            raise DataError(
                f"the OpenVINO file has {wanted} inputs, and {len(given)} tensors were given; call it as the model "
                "was called when it was exported"
            )
        results = self.compiled(given)
        found = tuple(torch.from_numpy(results[output].copy()) for output in self.compiled.outputs)
        return found[0] if len(found) == 1 else found


class ExecuTorchModel(nn.Module):
    """An ExecuTorch file that is called like a module. Its threads are those of the process.

    Args:
        path: The .pte file.
        threads: Not used: ExecuTorch's Python runtime has no such setting.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        super().__init__()
        self.program: Any = _module("executorch.runtime").Runtime.get().load_program(str(path))
        self.method: Any = self.program.load_method("forward")

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs: one tensor, or a tuple of them.

        Args:
            *args: The arguments of the call.
            **kwargs: Its keywords.
        """
        results = self.method.execute([tensor.contiguous() for tensor in tensors_in((args, kwargs))])
        found = tuple(tensor.clone() for tensor in tensors_in(results))
        return found[0] if len(found) == 1 else found


def model_of_file(path: str | os.PathLike[str], threads: int | None = None) -> nn.Module:
    """The file of a runtime, called like a module.

    Args:
        path: A .onnx, .xml or .pte file.
        threads: Threads of the runtime.
    """
    kinds: dict[str, Callable[..., nn.Module]] = {".xml": OpenVinoModel, ".pte": ExecuTorchModel}
    return kinds.get(Path(path).suffix, OnnxModel)(path, threads)


def _openvino(program: torch.export.ExportedProgram, path: Path) -> None:
    tools = _module("openvino")
    tools.save_model(tools.convert_model(program), str(path), compress_to_fp16=False)


def _executorch(program: torch.export.ExportedProgram, path: Path) -> None:
    tools = _module("executorch.exir")
    partitioner = _module("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    lowered = tools.to_edge_transform_and_lower(program, partitioner=[partitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _written(write: Callable[[torch.export.ExportedProgram, Path], None]) -> Callable[..., None]:
    """The writer, whose own errors are told as data that it cannot take."""

    def written(program: torch.export.ExportedProgram, path: Path) -> None:
        try:
            with quiet():
                write(program, path)
        except MissingExtraError:
            raise
        except Exception as error:  # the package's own errors
            raise_if_out_of_memory(error)
            first = (str(error).strip().splitlines() or [""])[0]
            raise DataError(
                f"{path.name}: the recorded program cannot be converted: {type(error).__name__}: {first}; write a "
                ".onnx or a .pt2 file instead"
            ) from error

    return written


WRITERS = {"openvino": _written(_openvino), "executorch": _written(_executorch)}
"""By format, the function that writes a program as a file."""


@renamed(trials="repetitions")
def times(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    *,
    repetitions: int = 25,
    threads: int | None = 1,
    compiled: bool = False,
) -> Measurements:
    """Time an exported file against eager PyTorch (and `torch.compile`), each pair read in turns.

    Args:
        model: The model that was exported.
        path: The .onnx, .xml or .pte file.
        example: What both are called with.
        repetitions: How many pairs of readings.
        threads: Threads of both.
        compiled: Whether to time `torch.compile` as well.

    Returns:
        The latencies, and the speed-up of each over eager PyTorch.
    """
    name = {".xml": "openvino", ".pte": "executorch"}.get(Path(path).suffix, "onnx runtime")
    peers: list[tuple[str, nn.Module]] = [(name, model_of_file(path, threads))]
    if compiled:
        peers.append(("torch.compile", torch.compile(model)))  # type: ignore[arg-type]
    rows: list[Measurement] = []
    for name, peer in peers:
        found = compare(model, peer, example, repetitions=repetitions, threads=threads, names=("eager", name))
        rows += found if not rows else found[1:]
    return Measurements(rows)
