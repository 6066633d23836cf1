"""Companions of a shrunk model: its batch-norm statistics, its file.

>>> import tempfile
>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
>>> small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
>>> with tempfile.TemporaryDirectory() as folder:
...     save_shrunk(small.model, small.plan, f"{folder}/small.safetensors")
...     again = load_shrunk(f"{folder}/small.safetensors", into=model)
>>> again[0].weight.shape
torch.Size([4, 4])
"""

from __future__ import annotations

import copy
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.atomic_files import atomic_open
from secateur.core.cut_mark import warn_of_plan
from secateur.core.file_endings import check_ending
from secateur.core.missing_files import missing
from secateur.core.model_kinds import unwrapped
from secateur.core.safetensors_header import open_header
from secateur.errors import DataError, FormatError, NothingToDoError, OptionError, PlanError
from secateur.execution.sound_weights import check_loaded
from secateur.execution.verb import verb
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.depth.entries import check_entries

__all__ = ["load_shrunk", "reestimate_batch_norm", "save_shrunk"]


@verb
@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, data: Iterable[object], batches: int = 100, *, same_outputs: bool = False
) -> nn.Module:
    """Measure the running statistics of batch norm again on data, in place, as plain averages; weights stay the same.

    Args:
        model: The model; its training and evaluation modes are put back afterwards.
        data: Batches of inputs, or pairs whose first part is the input; a dict is passed as keywords.
        batches: The largest number of batches to use.
        same_outputs: Whether scales and shifts follow, so that in evaluation the model answers as before. A file that
            folds batch norm (`SaveOptions(batch_norm=...)`) keeps no statistics; in training such a model would
            normalise a second time. Measure it like this before it learns on.

    Returns:
        The same model.

    Raises:
        NothingToDoError: The model has no batch norm with running statistics.
        DataError: The data gave no batch.
        OptionError: `same_outputs`, and a batch norm has no scale and shift.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, affine=False))
    >>> _ = reestimate_batch_norm(model, [torch.tensor([[1.0], [3.0]])])
    >>> model[0].running_mean.item()
    2.0
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        raise NothingToDoError(f"{type(model).__name__} has no batch norm with running statistics")
    measure = _measure_beside if same_outputs else _measure_again
    measure(model, norms, islice(data, batches))
    return model


_Norms = list[nn.modules.batchnorm._BatchNorm]
_NO_BATCH = "re-estimating batch norm: the data gave no batch; pass at least one"


def _run(model: nn.Module, batch: object) -> None:
    """One forward pass."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    model(**inputs) if isinstance(inputs, dict) else model(inputs)


@contextmanager
def _watched(model: nn.Module, norms: _Norms, hook: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """The model in evaluation, with a hook before each batch norm; afterwards without it, in its modes of before."""
    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_pre_hook(hook) for module in norms]
    try:
        model.eval()
        yield
    finally:
        for each in hooks:
            each.remove()
        for module, training in modes.items():
            module.training = training


def _measure_again(model: nn.Module, norms: _Norms, data: Iterable[object]) -> None:
    """Measure what enters every batch norm while all of them are in training."""
    momenta = {module: module.momentum for module in norms}
    seen = 0
    calls: dict[nn.Module, int] = dict.fromkeys(norms, 0)

    def average(module: nn.Module, args: object) -> None:
        """The weight of this call in a cumulative average; torch's own reads a counter from the device for it."""
        calls[module] += 1
        module.momentum = 1 / calls[module]  # type: ignore[assignment]

    try:
        with _watched(model, norms, average):
            for module in norms:
                module.reset_running_stats()
                module.train()
            for batch in data:
                _run(model, batch)
                seen += 1
    finally:
        for module in norms:
            module.momentum = momenta[module]
    if not seen:
        raise DataError(_NO_BATCH)


def _measure_beside(model: nn.Module, norms: _Norms, data: Iterable[object]) -> None:
    """Measure what enters every batch norm in evaluation; then change its statistics, scale and shift together.

    What it gives for x is slope * x + offset. With a mean m and a variance v, the scale slope * sqrt(v + eps) and the
    shift offset + slope * m give the same.
    """
    names = {module: name for name, module in model.named_modules()}
    for module in norms:
        if module.weight is None or module.bias is None:
            raise OptionError(
                f"re-estimating batch norm: {names[module]} has no scale and shift to keep its outputs with; leave "
                f"same_outputs out"
            )
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Count, sum and sum of squares of every channel."""
        wide = torch.float32 if args[0].device.type == "mps" else torch.float64
        lines = args[0].detach().to(wide).transpose(0, 1).flatten(1)
        found = torch.stack([torch.ones_like(lines).sum(1), lines.sum(1), lines.square().sum(1)])
        sums[module] = sums[module] + found if module in sums else found

    with _watched(model, norms, add):
        for batch in data:
            _run(model, batch)
    if not sums:
        raise DataError(_NO_BATCH)
    for module in (norm for norm in norms if norm in sums):
        count, total, squares = sums[module].cpu().double()
        mean = total / count
        _set_statistics(module, mean, (squares / count - mean.square()).clamp_min(0))


def _set_statistics(
    module: nn.modules.batchnorm._BatchNorm, mean: torch.Tensor, variance: torch.Tensor
) -> None:
    """Give a batch norm other statistics and the scale and shift with which it answers as before."""
    assert module.running_mean is not None  # they are tracked
    assert module.running_var is not None
    before, spread = module.running_mean.cpu().double(), module.running_var.cpu().double()
    slope = module.weight.cpu().double() / (spread + module.eps).sqrt()
    module.bias.add_((slope * (mean - before)).to(module.bias))
    module.weight.copy_(slope * (variance + module.eps).sqrt())
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)


def save_shrunk(model: nn.Module, plan: ShrinkPlan, path: str | os.PathLike[str]) -> None:
    """Write weights and plan as one safetensors file; the write is atomic.

    Args:
        model: The shrunk model.
        plan: The plan that made it.
        path: The file to write.
    """
    from safetensors.torch import save

    seen: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights are written once
            seen[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    check_ending(
        path,
        "small.save writes a safetensors file",
        ".safetensors",
        ", or write a .sct file with sc.save(small, path)",
    )
    warn_of_plan(model, plan.shapes, path, plan.layers)
    data = save(tensors, metadata={"format": "secateur-shrunk", "version": "1", "plan": plan.to_json()})
    with atomic_open(path) as file:
        for part in _with_checksum(data):
            file.write(part)


def _with_checksum(data: bytes) -> tuple[bytes, memoryview]:
    """A safetensors file whose metadata holds the CRC-32 of all its tensors, as two parts."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8:end]), memoryview(data)[end:]
    header["__metadata__"]["crc32"] = str(zlib.crc32(tensors))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text, tensors


@verb
def load_shrunk(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Cut a freshly built model of the original widths by the plan of a file, in place, and load the weights.

    Args:
        path: A file written by `Shrunk.save`.
        into: A model built as the original was, at its original widths.

    Returns:
        The same model, cut and loaded.

    Raises:
        FormatError: The file is not one that `Shrunk.save` wrote.
        PlanError: The model is not the one that the plan was made for.
        OptionError: The model is on the meta device, where nothing can be loaded.
    """
    if not Path(path).is_file():
        raise FormatError(f"{missing(path)}; write one with small.save(path)").as_usage()
    plan, tensors = _read(path)
    given, into = into, unwrapped(into)
    check_entries(into, plan.layers)
    after = {name: plan.name_after(name) for name in into.state_dict()}
    wanted = {
        new: tensor
        for name, tensor in into.state_dict(keep_vars=True).items()
        if (new := after[name]) is not None
    }
    first: dict[int, str] = {}
    for name, tensor in wanted.items():
        first.setdefault(id(tensor), name)
    lacking = [name for name, tensor in wanted.items() if first[id(tensor)] not in tensors]
    extra = [name for name in tensors if name not in wanted]
    if lacking or extra:
        raise PlanError(
            f"{path} does not fit {type(into).__name__}: missing {lacking[:3]}, unexpected "
            f"{extra[:3]}; build the model it was "
            "made from, at its original widths"
        )
    check_loaded(wanted, "build the model that is given as into= on a real device")
    full = {name: tensors[first[id(tensor)]] for name, tensor in wanted.items()}
    # The plan is tried on a copy: the model is changed only when nothing can fail any more.
    for name, tensor in plan.apply_(copy.deepcopy(into)).state_dict().items():
        if name not in full or full[name].shape != tensor.shape:
            got = list(full[name].shape) if name in full else "nothing"
            raise PlanError(f"{path}: tensor {name!r}: expected shape {list(tensor.shape)} as cut, got {got}")
    plan.apply_(into)
    into.load_state_dict(full)
    return given


def _read(path: str | os.PathLike[str]) -> tuple[ShrinkPlan, dict[str, torch.Tensor]]:
    """The plan and the tensors of a file; its header is checked before anything else reads it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open(path, "rb") as file:
            _, meta, _ = open_header(path, file, FormatError)
    except FormatError as error:
        if Path(path).suffix != ".sct":
            raise
        raise FormatError(f"{error}; a .sct file is read with sc.load(path, into=model)") from error
    if meta.get("format") != "secateur-shrunk" or meta.get("version") != "1":
        raise FormatError(
            f"{path}: expected a file written by small.save, got metadata {str(sorted(meta))[:200]}"
        )
    plan, data = ShrinkPlan.from_json(meta.get("plan", "")), Path(path).read_bytes()
    tensors = memoryview(data)[8 + int.from_bytes(data[:8], "little") :]
    if "crc32" in meta and meta["crc32"] != str(zlib.crc32(tensors)):
        raise FormatError(
            f"{path}: its tensors are damaged: expected the checksum {meta['crc32'][:20]}, got {zlib.crc32(tensors)}; "
            "copy the file again, or write it again with small.save(path)"
        )
    try:
        return plan, load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise FormatError(f"{path}: expected a safetensors file, got something else ({error})") from error
