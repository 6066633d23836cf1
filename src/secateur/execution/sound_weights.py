"""`check_sound`: refuse a model with NaN in its weights, whose outputs compare as equal to anything that is as broken;
`check_loaded`: refuse tensors that have no values.

>>> import torch
>>> layer = nn.Linear(2, 1)
>>> check_sound(layer, "a proof compares outputs")
>>> layer.bias.data[0] = float("nan")
>>> check_sound(layer, "a proof compares outputs")
Traceback (most recent call last):
secateur.errors.NonFiniteError: 'bias': 1 of 1 are NaN, so the outputs are or may be, and a proof compares outputs; ...
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from secateur.core.fetching import fetched
from secateur.errors import NonFiniteError, OptionError

__all__ = ["check_loaded", "check_sound"]

_STATISTICS = ("running_mean", "running_var")


def check_sound(model: nn.Module, why: str) -> None:
    """Raise if a parameter of a model, or a running statistic of a norm, holds NaN or no values. Infinity may.

    Args:
        model: The model.
        why: What NaN would make worthless, for the error.

    Raises:
        NonFiniteError: One holds NaN; it is named.
        OptionError: One is on the meta device.
    """
    held: dict[str, torch.Tensor] = dict(model.named_parameters())
    held.update((name, buffer) for name, buffer in model.named_buffers() if name.endswith(_STATISTICS))
    check_loaded(held)
    floats = {
        name: tensor.detach()
        for name, tensor in held.items()
        if not is_lazy(tensor) and (tensor.is_floating_point() or tensor.is_complex())
        if "float4" not in str(tensor.dtype)  # which torch cannot even widen
    }
    # A sum is NaN where an element is, and elsewhere only where infinities of both signs are.
    if not any(fetched(_wide(tensor).sum().isnan() for tensor in floats.values())):
        return
    for name, tensor in floats.items():
        bad = int(_wide(tensor).isnan().sum())
        if bad:
            raise NonFiniteError(
                f"{name!r}: {bad:,} of {tensor.numel():,} are NaN, so the outputs are or may be, and {why}; load a "
                "sound checkpoint, or go back to before training failed"
            )


def check_loaded(tensors: Mapping[str, torch.Tensor], then: str = "load the model first") -> None:
    """Raise if a tensor has no values yet.

    Args:
        tensors: Tensors by name.
        then: What to do, for the error.

    Raises:
        OptionError: One is on the meta device; it is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise OptionError(f"{name}: expected real weights, got a tensor on the meta device; {then}")


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Floats of eight bits, which have no sum of their own, as float32."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor
