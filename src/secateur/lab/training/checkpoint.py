"""A training's checkpoint: one safetensors file with the weights, the optimizer's state and the history so far.

No pickle. Writes are atomic: a temporary file, then a rename. The order of the images, the augmentation, dropout's
randomness and the learning rate are functions of (seed, epoch), so they are not stored.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     file = Path(folder) / "train.safetensors"
...     write(file, {"x": torch.ones(2)}, {"epoch": 3})
...     tensors, about = read(file)
>>> tensors["x"].tolist(), about
([1.0, 1.0], {'epoch': 3})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.atomic_files import atomic_write
from secateur.core.json_text import parse
from secateur.errors import OptionError, StoreError
from secateur.lab.outcomes import Table

__all__ = ["identity", "load_optimizer", "optimizer_tensors", "read", "tensors_digest", "under", "write"]

_FORMAT, _VERSION = "secateur-training", "1"


def write(file: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]) -> None:
    """Write a checkpoint atomically."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = save(own, metadata={"format": _FORMAT, "version": _VERSION, "about": json.dumps(about)})
    atomic_write(file, data)


def read(file: Path) -> tuple[dict[str, torch.Tensor], Table]:
    """Read what `write` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as stored:
            meta = stored.metadata() or {}
            if meta.get("format") != _FORMAT or meta.get("version") != _VERSION:
                raise StoreError(
                    f"checkpoint {file}: expected {_FORMAT} version {_VERSION}, got {meta.get('format')!r} "
                    f"version {meta.get('version')!r}; delete it to train from the start, or give another path"
                )
            about = parse(meta["about"], "what it says of itself", constants=True)
            if not isinstance(about, dict):
                raise ValueError(f"expected a table about it, got {type(about).__name__}")
            return {name: stored.get_tensor(name) for name in stored.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StoreError(
            f"checkpoint {file}: expected a file that training wrote, got something else ({error}); delete it to "
            "train from the start, or give another path"
        ) from error


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, by their names without it.

    >>> list(under("model/", {"model/w": torch.ones(1), "best/w": torch.ones(1)}))
    ['w']
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Table]:
    """An optimizer's state: its tensors by name, and its numbers by name."""
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    return tensors, numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, object]
) -> None:
    """Restore such a state. The options of the parameter groups stay those of the optimizer given.

    >>> weight = nn.Parameter(torch.ones(1)); weight.grad = torch.ones(1)
    >>> first, second = (torch.optim.SGD([weight], lr=0.1, momentum=0.9) for _ in range(2))
    >>> first.step(); load_optimizer(second, *optimizer_tensors(first))
    >>> second.state[weight]["momentum_buffer"]
    tensor([1.])
    """
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    entries: dict[str, Any] = {**under("optimizer/", tensors), **numbers}
    for name, value in entries.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def tensors_digest(module: nn.Module | None) -> str | None:
    """A hash of a model's parameters and buffers by name, shape and content."""
    if module is None:
        return None
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            plain = tensor.detach().cpu().contiguous()
            whole.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
            if plain.numel():
                whole.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def identity(found: Mapping[str, object], wanted: Mapping[str, object], file: Path) -> None:
    """Raise unless a checkpoint belongs to this training: the same start, options, data, seed and masks.

    >>> identity({"seed": 0}, {"seed": 1}, Path("c"))
    Traceback (most recent call last):
    secateur.errors.OptionError: checkpoint c belongs to another training: its seed is 0, not 1; delete it ...
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            raise OptionError(
                f"checkpoint {file} belongs to another training: its {key} is {found.get(key)}, not {value}; "
                "delete it to train from the start, or give another path"
            )
