"""The speed-up of a 2:4 pattern on this machine, measured if the device has kernels for it.

>>> print(two_of_four(nn.Linear(8, 8), torch.zeros(1, 8)))
no speed-up from 2:4 sparsity: the CPU has no kernels for it, zeros are multiplied like any other weight
"""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn

from secateur.core.renamed import renamed
from secateur.execution.devices import device_of
from secateur.execution.example import Example
from secateur.execution.verb import verb
from secateur.metrics.latency import compare

__all__ = ["has_two_of_four", "two_of_four"]


@renamed(trials="repetitions")
@verb
def two_of_four(model: nn.Module, example: Example, *, repetitions: int = 25) -> str:
    """Measure the speed-up of a 2:4 pattern on this machine, or say why there is none.

    Args:
        model: The model, with 2:4 patterns in its linear layers.
        example: What it is called with.
        repetitions: How many pairs of readings.

    Returns:
        One sentence.

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
    converted = 0
    for module in sparse.modules():
        if isinstance(module, nn.Linear) and _is_two_of_four(module.weight):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                module.weight = nn.Parameter(
                    torch.sparse.to_sparse_semi_structured(module.weight.detach()), requires_grad=False
                )
                converted += 1
    if not converted:
        return f"{none} no linear layer has 2:4 weights of a type and size the kernels take (half precision, 64 x 64)"
    found = compare(model, sparse, example, repetitions=repetitions, names=("dense", "2:4"))["speedup"]
    return (
        f"2:4 sparsity in {converted} linear layers: {found.text()} on {torch.cuda.get_device_name(device)}"
    )


def has_two_of_four(model: nn.Module) -> bool:
    """Whether a linear layer's weights have the 2:4 pattern: of every four neighbours at most two are not zero.

    Args:
        model: The model.

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
