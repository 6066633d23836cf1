"""`OnnxModel`: an ONNX file that is called like a module, in ONNX Runtime.

>>> import inspect
>>> list(inspect.signature(OnnxModel).parameters)
['path', 'threads']
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.core.nested import tensors_in
from secateur.errors import DataError, MissingExtraError

__all__ = ["OnnxModel", "extra_module", "runs_attention"]


def extra_module(name: str) -> ModuleType:
    """Import a module of the extra `onnx`.

    Args:
        name: The module.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f"ONNX needs {package!r}, which is not installed: pip install 'secateur[onnx]' (or write a .pt2 file)"
        ) from error


def runs_attention() -> bool:
    """Whether the runtime and the quantiser that are installed know ONNX's operator for attention (opset 23)."""
    return _release(extra_module("onnxruntime")) >= (1, 23) and _release(extra_module("onnx")) >= (1, 18)


def _release(package: ModuleType) -> tuple[int, ...]:
    """The first two numbers of a package's version."""
    return tuple(int(part) for part in str(package.__version__).split(".")[:2])


class OnnxModel(nn.Module):
    """An ONNX file that is called like a module: tensors in, tensors out; it runs in ONNX Runtime on the CPU.

    So `compare(model, OnnxModel(path, threads=1), example)` of `secateur.metrics.latency` reads both in turns.

    Args:
        path: The file.
        threads: Threads of the runtime; as many as it chooses unless given.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        super().__init__()
        runtime = extra_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; printed as well, it looks like a failed export
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def feed(self, *args: object, **kwargs: object) -> dict[str, npt.NDArray[np.generic]]:
        """The runtime's inputs for a call: keywords by their names where the file has them, tensors by position else.

        Args:
            *args: The arguments of the call.
            **kwargs: Its keywords.

        Raises:
            DataError: The call has another number of tensors than the file has inputs, or one of another shape.
        """
        inputs = self.session.get_inputs()
        names = [item.name for item in inputs]
        if not args and set(kwargs) >= set(names) and all(torch.is_tensor(kwargs[name]) for name in names):
            tensors = [value for name in names if isinstance(value := kwargs[name], torch.Tensor)]
        else:
            tensors = tensors_in((args, kwargs))
        if len(tensors) != len(names):
            raise DataError(
                f"the ONNX file has {len(names)} inputs ({', '.join(names)}), and {len(tensors)} tensors were given; "
                "call it as the model was called when it was exported"
            )
        for item, tensor in zip(inputs, tensors, strict=True):
            wanted, got = list(item.shape), list(tensor.shape)
            if len(wanted) != len(got) or any(
                isinstance(size, int) and size != had for size, had in zip(wanted, got, strict=True)
            ):
                raise DataError(
                    f"the ONNX file takes {item.name!r} in shape {wanted} (names are free), got {got}; pad or cut the "
                    "inputs to the fixed sizes, or export with an example of the size that is needed"
                )
        return {name: t.detach().cpu().contiguous().numpy() for name, t in zip(names, tensors, strict=True)}

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs: one tensor, or a tuple of them.

        Args:
            *args: The arguments of the call.
            **kwargs: Its keywords.
        """
        found = tuple(torch.from_numpy(value) for value in self.session.run(None, self.feed(*args, **kwargs)))
        return found[0] if len(found) == 1 else found
