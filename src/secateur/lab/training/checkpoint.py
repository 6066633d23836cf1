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
from secateur.core.optimizers import like
from secateur.errors import OptionError, StoreError
from secateur.lab.outcomes import Table

__all__ = [
    "check_weights",
    "identity",
    "load_optimizer",
    "optimizer_tensors",
    "read",
    "tensors_digest",
    "under",
    "write",
]

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
        if not file.is_file():
            raise ValueError("no plain file")
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

    Raises:
        ValueError: The state is not one of this optimizer's parameters; the optimizer is as it was.

    >>> weight = nn.Parameter(torch.ones(1)); weight.grad = torch.ones(1)
    >>> first, second = (torch.optim.SGD([weight], lr=0.1, momentum=0.9) for _ in range(2))
    >>> first.step(); load_optimizer(second, *optimizer_tensors(first))
    >>> second.state[weight]["momentum_buffer"]
    tensor([1.])
    """
    whole = optimizer.state_dict()
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    entries: dict[str, Any] = {**under("optimizer/", tensors), **numbers}
    for name, value in entries.items():
        index, _, key = name.partition("/")
        number = int(index)
        if not 0 <= number < len(parameters):
            raise ValueError(
                f"the optimizer's state has {name!r}, and there are {len(parameters)} parameters"
            )
        if isinstance(value, torch.Tensor) and value.shape not in ((), parameters[number].shape):
            raise ValueError(
                f"the optimizer's {name!r} has shape {tuple(value.shape)}, which no parameter has"
            )
        state.setdefault(number, {})[key] = value
    kinds = _state_of_one(optimizer)
    for number, entry in state.items():
        if {key: isinstance(value, torch.Tensor) for key, value in entry.items()} != kinds:
            raise ValueError(
                f"the optimizer's state of parameter {number} has {sorted(entry)}, not {sorted(kinds)}"
            )
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _state_of_one(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What such an optimizer keeps of a parameter after a step: whether it is a tensor, by name."""
    one = nn.Parameter(torch.ones(1))
    one.grad = torch.ones(1)
    probe = like(optimizer, [one], optimizer.param_groups[0])
    probe.step()
    return {key: isinstance(value, torch.Tensor) for key, value in probe.state[one].items()}


def check_weights(weights: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Raise a `ValueError` unless the weights have the names and shapes of the model's.

    >>> check_weights({"bias": torch.ones(1)}, nn.Linear(1, 1))
    Traceback (most recent call last):
    ValueError: its weights are not those of Linear: 'weight' is missing or has another shape
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*own, *found}):
        if own.get(name) != found.get(name):
            raise ValueError(
                f"its weights are not those of {type(model).__name__}: {name!r} is missing or has another shape"
            )


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
