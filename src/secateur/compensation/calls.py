"""`Call`: one use of a weight in a forward pass, read as a linear map from features to outputs.

A linear layer, a convolution of any rank (grouped and depthwise too), a transposed convolution and GPT-2's `Conv1D` all
compute `features @ matrix + bias`, group by group; the features of a convolution are its unfolded input. Calls are
recognised at the function (`F.linear`, `F.conv2d`), by the identity of the parameter, so any module class works.

>>> import torch
>>> from torch import nn
>>> layer = nn.Conv2d(2, 4, 3, padding=1, groups=2)
>>> call = Names(layer).read(torch.conv2d, (torch.ones(1, 2, 5, 5), layer.weight, layer.bias, 1, 1, 1, 2), {})
>>> call.name, call.geometry.matrix(layer.weight).shape
('weight', torch.Size([2, 9, 2]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Call", "Convolution", "Geometry", "Linear", "Names", "NormCall"]


class Geometry:
    """How a weight, its inputs and its outputs read as matrices, one per group."""

    groups: int = 1

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (or its mask) as [groups, features, outputs]."""
        raise NotImplementedError

    def weight(self, matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The inverse of `matrix`: a tensor of the weight's shape."""
        raise NotImplementedError

    def positions(self, outputs: torch.Tensor) -> int:
        """How many rows a call gives: one per token, or per output position of a convolution."""
        raise NotImplementedError

    def features(self, inputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The chosen rows (all for None) of the features, [groups, rows, features]."""
        raise NotImplementedError

    def targets(self, outputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The same rows of the outputs, [groups, rows, outputs]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Geometry):
    """A matrix product over the last axis; `transposed` where the weight is [in, out] as in `addmm`."""

    transposed: bool = False

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [1, in, out]."""
        return (weight if self.transposed else weight.T)[None]

    def weight(self, matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """[1, in, out] as the layer holds it."""
        return (matrix[0] if self.transposed else matrix[0].T).reshape(shape).contiguous()

    def positions(self, outputs: torch.Tensor) -> int:
        """The number of vectors."""
        return outputs.numel() // outputs.shape[-1] if outputs.shape[-1] else 0

    def features(self, inputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The input vectors."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        return (flat if rows is None else flat[rows])[None]

    def targets(self, outputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The output vectors."""
        return self.features(outputs, rows)


@dataclass(frozen=True)
class Convolution(Geometry):
    """A convolution as its unfolded input times its filters; `before` says how a transposed one first spreads its
    input.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    spread: tuple[int, ...] | None = (
        None  # strides of a transposed convolution: zeros are put between its inputs
    )

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The filters as [groups, features, outputs]."""
        groups, rest = self.groups, tuple(range(3, 3 + len(self.size)))
        if self.spread is not None:  # [in, out / groups, ...]: flipped, with the first two axes exchanged
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *self.size)
            filters = split.flip(rest).transpose(1, 2)
        else:
            filters = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *self.size)
        return filters.reshape(groups, filters.shape[1], -1).transpose(1, 2)

    def weight(self, matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """[groups, features, outputs] as the layer holds it."""
        rest = tuple(range(3, 3 + len(self.size)))
        outputs = matrix.shape[2]
        filters = matrix.transpose(1, 2).reshape(self.groups, outputs, -1, *self.size)
        if self.spread is not None:
            filters = filters.transpose(1, 2).flip(rest)
        return filters.reshape(shape).contiguous()

    def positions(self, outputs: torch.Tensor) -> int:
        """Batch times output positions."""
        return outputs.numel() // outputs.shape[-1 - len(self.size)]

    def features(self, inputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The window under each output position."""
        rank = len(self.size)
        x = inputs if inputs.dim() == rank + 2 else inputs[None]
        if self.spread is not None:
            x = _spread(x, self.spread)
        x = functional.pad(x, [side for pair in reversed(self.padding) for side in pair])
        for axis in range(rank):
            span = self.dilation[axis] * (self.size[axis] - 1) + 1
            x = x.unfold(2 + axis, span, self.stride[axis])[..., :: self.dilation[axis]]
        return self._grouped(x.movedim(1, 1 + rank), rows, rank)

    def targets(self, outputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The outputs at each position."""
        rank = len(self.size)
        y = outputs if outputs.dim() == rank + 2 else outputs[None]
        return self._grouped(y.movedim(1, 1 + rank), rows, rank)

    def _grouped(self, windows: torch.Tensor, rows: torch.Tensor | None, rank: int) -> torch.Tensor:
        """[batch, positions..., channels, ...] -> [groups, chosen rows, channels / groups * ...]."""
        places = windows.shape[: 1 + rank]
        count = math.prod(places)
        if rows is None:
            picked = windows.reshape(count, *windows.shape[1 + rank :])
        else:
            picked = windows[torch.unravel_index(rows, places)]
        split = picked.reshape(picked.shape[0], self.groups, -1)
        return split.movedim(1, 0)


def _spread(x: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """Zeros put between neighbours, `stride - 1` of them along each spatial axis."""
    if all(step == 1 for step in stride):
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return wide


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer with a weight: names of the parameters, geometry, and the input tensor."""

    name: str
    bias: str | None
    geometry: Geometry
    inputs: torch.Tensor


@dataclass(frozen=True, eq=False)
class NormCall:
    """A call of batch norm with running statistics: the names of the buffers and of the affine bias."""

    name: str  # of the running mean
    variance: str
    bias: str | None
    inputs: torch.Tensor


class Names:
    """The names of a model's parameters and buffers by identity, and what reads a function call as a `Call`."""

    def __init__(self, model: nn.Module):
        self._names = {id(tensor): name for name, tensor in reversed(list(model.named_parameters()))}
        self._buffers = {id(tensor): name for name, tensor in model.named_buffers()}

    def read(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call | NormCall | None:
        """The call, where it is one of the functions known, on a parameter or buffer of this model."""
        known = _READERS.get(function)
        return None if known is None else known(self, args, kwargs)

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter, None for anything else."""
        return self._names.get(id(tensor)) if isinstance(tensor, nn.Parameter) else None

    def buffer(self, tensor: Any) -> str | None:
        """The name of a buffer, None for anything else."""
        return self._buffers.get(id(tensor)) if torch.is_tensor(tensor) else None


def _arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args)), **kwargs}


def _linear(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = _arguments(("input", "weight", "bias"), args, kwargs)
    name = names.parameter(given.get("weight"))
    if name is None:
        return None
    return Call(name, names.parameter(given.get("bias")), Linear(), given["input"])


def _addmm(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    given = _arguments(("input", "mat1", "mat2"), args, kwargs)
    name = names.parameter(given.get("mat2"))
    if name is None or given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
        return None
    return Call(name, names.parameter(given["input"]), Linear(transposed=True), given["mat1"])


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    found = tuple(value)
    return found * rank if len(found) == 1 else found


def _conv(rank: int) -> Callable[..., Call | None]:
    def read(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = _arguments(order, args, kwargs)
        weight = given.get("weight")
        name = names.parameter(weight)
        if name is None or weight is None:
            return None
        size = tuple(weight.shape[2:])
        stride, dilation = _tuple(given.get("stride", 1), rank), _tuple(given.get("dilation", 1), rank)
        asked = given.get("padding", 0)
        if asked == "same":
            total = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
            padding = tuple((part // 2, part - part // 2) for part in total)
        else:
            one = _tuple(0 if asked == "valid" else asked, rank)
            padding = tuple((side, side) for side in one)
        geometry = Convolution(size, stride, padding, dilation, given.get("groups", 1))
        return Call(name, names.parameter(given.get("bias")), geometry, given["input"])

    return read


def _conv_transpose(rank: int) -> Callable[..., Call | None]:
    def read(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        order = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = _arguments(order, args, kwargs)
        weight = given.get("weight")
        name = names.parameter(weight)
        if name is None or weight is None:
            return None
        size = tuple(weight.shape[2:])
        dilation, sides = _tuple(given.get("dilation", 1), rank), _tuple(given.get("padding", 0), rank)
        more = _tuple(given.get("output_padding", 0), rank)
        padding = tuple(
            (d * (k - 1) - side, d * (k - 1) - side + extra)
            for d, k, side, extra in zip(dilation, size, sides, more, strict=True)
        )
        spread = _tuple(given.get("stride", 1), rank)
        groups = given.get("groups", 1)
        geometry = Convolution(size, (1,) * rank, padding, dilation, groups, spread)
        return Call(name, names.parameter(given.get("bias")), geometry, given["input"])

    return read


def _batch_norm(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NormCall | None:
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = _arguments(order, args, kwargs)
    mean, variance = names.buffer(given.get("running_mean")), names.buffer(given.get("running_var"))
    if mean is None or variance is None or given.get("training", False):
        return None
    return NormCall(mean, variance, names.parameter(given.get("bias")), given["input"])


_READERS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.conv1d: _conv(1),
    torch.conv2d: _conv(2),
    torch.conv3d: _conv(3),
    torch.conv_transpose1d: _conv_transpose(1),
    torch.conv_transpose2d: _conv_transpose(2),
    torch.conv_transpose3d: _conv_transpose(3),
    functional.batch_norm: _batch_norm,
}
