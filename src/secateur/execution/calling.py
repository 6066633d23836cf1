"""How a measure runs a model: on the example, in evaluation mode, without gradients, leaving it as found.

An example is what the model is called with: a tensor (or any one value), a tuple of arguments, or a dict of
keywords.

>>> import torch
>>> from torch import nn
>>> model = nn.Bilinear(2, 3, 4)
>>> call(model, (torch.ones(1, 2), torch.ones(1, 3))).shape
torch.Size([1, 4])
>>> describe((torch.ones(1, 2), torch.ones(1, 3)))
'(1, 2) and (1, 3)'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError
from secateur.execution.undisturbed import undisturbed

__all__ = ["call", "describe", "device_of", "evaluating", "moved", "sync"]


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives: the device of its first parameter or buffer."""
    if not isinstance(model, nn.Module):
        raise DataError(f"expected a torch.nn.Module to measure, got {type(model).__name__}")
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on the device."""
    return pytree.tree_map(lambda item: item.to(device) if torch.is_tensor(item) else item, value)


def call(model: nn.Module, example: Any) -> Any:
    """The model's output on an example."""
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        return model(*example)
    if isinstance(example, dict):
        return model(**example)
    return model(example)


def describe(example: Any) -> str:
    """The shapes of an example, as a person reads them."""
    shapes = [str(tuple(item.shape)) for item in pytree.tree_leaves(example) if torch.is_tensor(item)]
    return " and ".join(shapes) if shapes else type(example).__name__


def sync(device: torch.device) -> None:
    """Wait until the device has done all it was given: a launch is not a result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def evaluating(model: nn.Module, example: Any = None) -> Iterator[Any]:
    """Evaluation mode, no gradients; yields the example on the model's device; all is put back on leaving."""
    device = device_of(model)
    with undisturbed(model, mode="eval"), torch.no_grad():
        yield moved(example, device)
