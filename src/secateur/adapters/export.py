"""`export`: a model as ONNX or as a `torch.export` archive, checked against what PyTorch computes.

Dense, masked, shrunk and shared models are all plain modules, and are exported as such: `masks.apply(model)`,
`small.model`, `shared.model`. Both formats store every weight as a dense number. Zeros and repeated values make such a
file no smaller and no faster (2:4 patterns included): only channels that really left do. The small file is that of
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

import contextlib
import copy
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.core.atomic_files import atomic_path
from secateur.core.masks import Masks
from secateur.core.measurement import Measurements
from secateur.errors import DataError, MissingExtraError, OptionError, ProofError
from secateur.execution.calling import call, moved
from secateur.execution.devices import device_of
from secateur.execution.example import call_arguments
from secateur.execution.undisturbed import undisturbed
from secateur.metrics.latency import compare

__all__ = ["Exported", "OnnxModel", "export", "has_two_of_four", "two_of_four"]

_FORMATS = {".onnx": "onnx", ".pt2": "torch.export"}


@dataclass(frozen=True)
class Exported:
    """What was written, how far its outputs are from PyTorch's (largest difference over largest output), and notes."""

    path: Path
    format: str
    size: int
    error: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format}, {self.size:,} bytes, outputs within {self.error:.1e} of PyTorch's"
        ]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    masks: Masks | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    """Write the model as `.onnx` or `.pt2` (a `torch.export` archive), read it back, and compare outputs.

    `example` is what the model is called with. `masks` are applied to a copy first. With `dynamic_batch` the first
    axis of every input may have any length, where the model allows it; else a note says that it is fixed. The file is
    compared with PyTorch on the example and, if the batch is free, on another batch; a difference of more than
    `tolerance` of the largest output is a `ProofError`, and no file is left.
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix)
    if kind is None:
        raise OptionError(
            f"{target}: expected a file that ends in .onnx or .pt2 (torch.export), got {target.suffix or 'no ending'!r}"
        )
    if kind == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            _needed(name)
    ready = copy.deepcopy(model).cpu()
    if masks is not None:
        masks.to("cpu").apply_(ready)
    given = moved(example, torch.device("cpu"))
    args, kwargs = call_arguments(given)
    with undisturbed(ready, mode="eval"), torch.no_grad():
        program, free = _program(ready, args, kwargs, dynamic_batch)
        with atomic_path(target) as scratch:
            _write(program, scratch, kind)
            error = _error(ready, scratch, kind, given, free)
            if not error <= tolerance:
                raise ProofError(
                    f"{target}: outputs differ from PyTorch's by {error:.3g} of the largest, and at most {tolerance:g} "
                    "is allowed; the file was not kept. Allow more with tolerance=, or export in float32"
                )
    notes = []
    if dynamic_batch and not free:
        notes.append("the batch is fixed to that of the example: the model's code needs to know it")
    zeros = _zeros(ready)
    if zeros > 0.01:
        notes.append(
            f"{zeros:.0%} of the weights are zero; this format stores and multiplies them all the same. Only sc.shrink "
            "makes it smaller and faster"
        )
    return Exported(target, kind, target.stat().st_size, error, tuple(notes))


class OnnxModel(nn.Module):
    """An ONNX file behind the face of a module: called with tensors, answers with tensors; runs in ONNX Runtime.

    So `measure.latency.compare(model, OnnxModel(path, threads=1), example)` reads both in turns.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        super().__init__()
        runtime = _needed("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, one tensor or a tuple of them."""
        tensors = [item for item in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(item)]
        names = [item.name for item in self.session.get_inputs()]
        fed = {
            name: tensor.detach().cpu().contiguous().numpy()
            for name, tensor in zip(names, tensors, strict=True)
        }
        found = tuple(torch.from_numpy(value) for value in self.session.run(None, fed))
        return found[0] if len(found) == 1 else found


def times(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    trials: int = 25,
    threads: int | None = 1,
    compiled: bool = False,
) -> Measurements:
    """The exported file beside eager PyTorch (and `torch.compile`), each pair read in turns."""
    peers: list[tuple[str, nn.Module]] = [("onnx runtime", OnnxModel(path, threads))]
    if compiled:
        peers.append(("torch.compile", torch.compile(model)))  # type: ignore[arg-type]
    rows: list[Any] = []
    for name, peer in peers:
        found = compare(model, peer, example, trials=trials, threads=threads, names=("eager", name))
        rows += found if not rows else found[1:]
    return Measurements(rows)


def two_of_four(model: nn.Module, example: Any, *, trials: int = 25) -> str:
    """What a 2:4 pattern is worth on this machine, in one sentence: measured, or plainly that there is nothing.

    >>> print(two_of_four(nn.Linear(8, 8), torch.zeros(1, 8)))
    no speed-up from 2:4 sparsity: the CPU has no kernels for it, zeros are multiplied like any other weight
    """
    none = "no speed-up from 2:4 sparsity:"
    device = device_of(model)
    if device.type != "cuda":
        where = "the CPU" if device.type == "cpu" else device.type
        return f"{none} {where} has no kernels for it, zeros are multiplied like any other weight"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"{none} {torch.cuda.get_device_name(device)} is older than the first with kernels for it (8.0)"
        )
    sparse = copy.deepcopy(model)
    taken = 0
    for module in sparse.modules():
        if isinstance(module, nn.Linear) and _is_two_of_four(module.weight):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                module.weight = nn.Parameter(
                    torch.sparse.to_sparse_semi_structured(module.weight.detach()), requires_grad=False
                )
                taken += 1
    if not taken:
        return f"{none} no linear layer has 2:4 weights of a type and size the kernels take (half precision, 64 x 64)"
    found = compare(model, sparse, example, trials=trials, names=("dense", "2:4"))["speedup"]
    return f"2:4 sparsity in {taken} linear layers: {found.text()} on {torch.cuda.get_device_name(device)}"


def has_two_of_four(model: nn.Module) -> bool:
    """Whether a linear layer's weights have the 2:4 pattern: of every four neighbours at most two are not zero.

    >>> layer = nn.Linear(8, 8)
    >>> dense = has_two_of_four(layer)
    >>> layer.weight.data[:, ::2] = 0.0
    >>> dense, has_two_of_four(layer)
    (False, True)
    """
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    return any(_is_two_of_four(module.weight) and bool(module.weight.any()) for module in linear)


def _is_two_of_four(weight: torch.Tensor) -> bool:
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())


def _needed(name: str) -> Any:
    """A module of the extra, or how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX needs {name!r}, which is not installed: pip install 'secateur[onnx]' (or write a .pt2 file)"
        ) from error


def _doubled(value: Any) -> Any:
    """The same with every batch of one made two: a batch of one is taken for a constant."""
    return pytree.tree_map(
        lambda t: torch.cat([t, t]) if torch.is_tensor(t) and t.dim() and t.shape[0] == 1 else t, value
    )


def _tripled(value: Any) -> Any:
    return pytree.tree_map(lambda t: torch.cat([t, t, t]) if torch.is_tensor(t) else t, value)


def _program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool
) -> tuple[Any, bool]:
    """The recorded program, and whether its batch is free."""
    with _quiet():
        if dynamic and all(t.dim() for t in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)):
            shapes = pytree.tree_map(
                lambda t: {0: torch.export.Dim.AUTO} if torch.is_tensor(t) else None, (args, kwargs)
            )
            wanted = shapes[0] if args else shapes[1]
            try:
                more = _doubled((args, kwargs))
                found = torch.export.export(model, more[0], more[1], dynamic_shapes=wanted, strict=False)
                for tried in ((args, kwargs), _tripled((args, kwargs))):
                    found.module()(*tried[0], **tried[1])  # a batch that was specialised refuses another
                return found, True
            except Exception:  # whatever the model's code does not allow
                pass
        try:
            return torch.export.export(model, args, kwargs, strict=False), False
        except Exception as error:
            raise DataError(
                f"{type(model).__name__} cannot be recorded by torch.export: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}; its forward depends on values of the input"
            ) from error


def _write(program: Any, path: Path, kind: str) -> None:
    with _quiet():
        if kind == "onnx":
            found = torch.onnx.export(program, dynamo=True, verbose=False)
            assert found is not None
            found.save(str(path), external_data=False)
        else:
            torch.export.save(program, path)


def _error(model: nn.Module, path: Path, kind: str, example: Any, free: bool) -> float:
    """The largest difference over the largest output, on the example and, if the batch is free, on another."""
    peer: Any
    if kind == "onnx":
        peer = OnnxModel(path)
    else:
        peer = torch.export.load(path).module()
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Any) -> Any:
        if not torch.is_tensor(tensor) or not tensor.dim():
            return tensor
        more = torch.cat([tensor, tensor.flip(0), tensor])
        if torch.is_floating_point(more):
            more = more + 0.1 * torch.randn(more.shape, generator=generator, dtype=more.dtype)
        return more

    worst = 0.0
    for inputs in [example, pytree.tree_map(other, example)] if free else [example]:
        wanted = [t for t in pytree.tree_leaves(call(model, inputs)) if torch.is_tensor(t)]
        found = [t for t in pytree.tree_leaves(call(peer, inputs)) if torch.is_tensor(t)]
        if [tuple(t.shape) for t in wanted] != [tuple(t.shape) for t in found]:
            raise ProofError(
                f"{path.name}: expected outputs of shapes {[tuple(t.shape) for t in wanted]}, got "
                f"{[tuple(t.shape) for t in found]}"
            )
        for a, b in zip(wanted, found):
            scale = max(float(a.abs().max()), 1e-30) if a.numel() else 1.0
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale if a.numel() else 0.0)
    return worst


def _zeros(model: nn.Module) -> float:
    weights = [p for p in model.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in weights)
    return sum(int((p == 0).sum()) for p in weights) / total if total else 0.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters print and warn about on their way is not ours to say."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
