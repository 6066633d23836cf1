"""`device_of` and `chosen_device`: the device of a model, or the one that was asked for.

>>> device_of(torch.nn.Linear(2, 2)), chosen_device("cpu")
(device(type='cpu'), device(type='cpu'))
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.errors import DataError, OptionError

__all__ = ["chosen_device", "device_of", "device_word", "sync"]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU where it has none.

    Args:
        model: The model.

    Returns:
        Its device.

    Raises:
        DataError: It is not a `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"expected a torch.nn.Module to measure, got {type(model).__name__}")
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def chosen_device(asked: str | torch.device) -> torch.device:
    """The device meant by a name.

    Args:
        asked: `auto` (CUDA, else Apple's MPS, else the CPU), or a device or its name: cpu, cuda, cuda:1, mps.

    Returns:
        The device. One of CUDA has its index.

    Raises:
        OptionError: The name is not that of a device, or this machine has no such device.
    """
    name = str(asked)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if there[kind]), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device: expected auto, cpu, cuda, cuda:1 or mps, got {name!r}") from error
    if not there.get(device.type, True):
        kind = "CUDA" if device.type == "cuda" else "Apple MPS"
        raise OptionError(
            f"device {name!r}: this machine, or this torch, has no {kind}; use --device cpu or auto"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_word(asked: str) -> str:
    """The name of the device meant, with `auto` resolved and no index added.

    Args:
        asked: `auto`, or a device's name.

    Returns:
        The name as it was given, or cuda, mps or cpu for `auto`.

    Raises:
        OptionError: As for `chosen_device`.

    >>> device_word("cpu")
    'cpu'
    """
    device = chosen_device(asked)
    return device.type if asked == "auto" else asked


def sync(device: torch.device) -> None:
    """Wait until a device has finished all its work: kernels run asynchronously.

    Args:
        device: The device; on the CPU there is nothing to wait for.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
