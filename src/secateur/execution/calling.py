"""Call a model on an example: in evaluation mode, without gradients, leaving it unchanged.

>>> import torch
>>> from torch import nn
>>> model = nn.Bilinear(2, 3, 4)
>>> call(model, (torch.ones(1, 2), torch.ones(1, 3))).shape
torch.Size([1, 4])
>>> describe((torch.ones(1, 2), torch.ones(1, 3)))
'(1, 2) and (1, 3)'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.devices import device_of
from secateur.execution.example import Example, call_arguments
from secateur.execution.undisturbed import undisturbed

__all__ = ["call", "describe", "evaluating", "fused_attention_off", "moved"]

T = TypeVar("T")


def moved(value: T, device: torch.device) -> T:
    """A nested value with every tensor on a device.

    Args:
        value: The nested value; it is not changed.
        device: Where its tensors go.
    """
    return map_tensors(lambda tensor: tensor.to(device), value)


def call(model: Callable[..., Any], example: Example) -> Any:
    """The model's output on an example.

    Args:
        model: The model.
        example: What it is called with: see `execution.example`.
    """
    args, kwargs = call_arguments(example)
    return model(*args, **kwargs)


def describe(example: Example) -> str:
    """The shapes of an example's tensors, for people.

    Args:
        example: The example.

    Returns:
        The shapes, or the name of its type where it holds no tensor.
    """
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(example)]
    return " and ".join(shapes) if shapes else type(example).__name__


@contextmanager
def evaluating(model: torch.nn.Module, example: Example = None) -> Iterator[Any]:
    """Evaluation mode and no gradients for a block; everything is restored on leaving.

    Args:
        model: The model.
        example: Nested tensors for the block.

    Yields:
        The example, on the model's device.
    """
    device = device_of(model)
    with undisturbed(model, mode="eval"), torch.no_grad():
        yield moved(example, device)


@contextmanager
def fused_attention_off() -> Iterator[None]:
    """Run the parts of torch's encoder layers one by one: a single operator for all of them hides their layers.

    >>> with fused_attention_off():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
