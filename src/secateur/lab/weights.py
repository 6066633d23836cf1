"""Weights from a file into a model: safetensors, a torch checkpoint (read without running code), or a .sct file.

>>> import tempfile, torch
>>> from safetensors.torch import save_file
>>> path = tempfile.mkdtemp() + "/w.safetensors"
>>> save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, path)
>>> model = torch.nn.Linear(2, 1); load_weights(model, path); model.weight
Parameter containing:
tensor([[1., 1.]], requires_grad=True)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.container.checkpoint import read_pt
from secateur.core.missing_files import missing
from secateur.errors import FormatError, MaskMismatchError, near

__all__ = ["find_weights", "load_weights", "read_weights"]

_WRAPPERS = ("module.", "_orig_mod.")


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The file of that name; the error lists similar names in the folder."""
    where = Path(path).expanduser()
    if not where.is_file():
        raise FormatError(missing(where, "file of weights")).as_usage()
    return where


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pt, .pth, .bin or .sct file, by name."""
    where = find_weights(path)
    if where.suffix == ".sct":
        from secateur.container.loading import load

        found: Any = load(where)
    elif where.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(where)
        except SafetensorError as error:
            raise FormatError(f"{path}: expected a safetensors file, got something else ({error})") from error
    else:
        found = read_pt(where)
        for key in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise FormatError(f"{path}: expected a mapping from names to tensors, got {_said(found)}")
    return found


def _said(found: object) -> str:
    """What a file holds in place of tensors by name, and what to do with it.

    >>> _said({"model": 3, "epoch": 1})
    "a dict whose 'model' is an int; give the weights alone: torch.save(model.state_dict(), ...)"
    """
    if not isinstance(found, dict):
        return type(found).__name__
    name, value = next((key, value) for key, value in found.items() if not isinstance(value, torch.Tensor))
    kind = type(value).__name__
    text = f"a dict whose {name!r} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if type(value).__module__.startswith("ultralytics."):
        return f"{text}, a whole model of ultralytics; name the file as the model alone, as in ultralytics/best.pt"
    return f"{text}; give the weights alone: torch.save(model.state_dict(), ...)"


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put a file's weights into a model; names and shapes must be the model's own, except for the prefixes that
    DataParallel and `torch.compile` add.
    """
    if Path(path).suffix == ".sct":
        from secateur.container.loading import load

        load(find_weights(path), into=model)
        return
    own = model.state_dict()
    tensors = _unwrapped(read_weights(path), own)
    for name, tensor in tensors.items():
        if name not in own:
            raise MaskMismatchError(
                f"{path}: {type(model).__name__} has no tensor {name!r}; {near(name, own)}"
            )
        if own[name].shape != tensor.shape:
            raise MaskMismatchError(
                f"{path}: {name!r}: expected shape {tuple(own[name].shape)} as in {type(model).__name__}, "
                "got "
                f"{tuple(tensor.shape)}; are these the weights of another model?"
            )
    missing = [name for name in own if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MaskMismatchError(
            f"{path}: {missing[0]!r}{more} of {type(model).__name__} missing; are these the weights of "
            "another model?"
        )
    model.load_state_dict(tensors)


def _unwrapped(tensors: dict[str, torch.Tensor], own: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by their names in the model itself.

    >>> list(_unwrapped({"module._orig_mod.fc.weight": torch.zeros(1)}, {"fc.weight": None}))
    ['fc.weight']
    """
    for prefix in _WRAPPERS * 2:  # either may have been around the other
        if all(name.startswith(prefix) and name not in own for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
