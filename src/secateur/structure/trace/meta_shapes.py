"""`META_SHAPES`: the output shapes of the most frequent operators on meta tensors, computed here instead of by torch.

Torch computes a shape through decompositions written in Python, which take ten times as long as everything else that
a trace records about the operator. This file covers the plain case only (contiguous tensors, one type, sizes that fit).
Everything else is left to torch, which also reports errors.

>>> import torch
>>> add = torch.ops.aten.add.Tensor
>>> META_SHAPES[add](torch.empty(2, 3, device="meta"), torch.empty(3, device="meta")).shape
torch.Size([2, 3])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["META_SHAPES"]

_ATEN = torch.ops.aten
_META = torch.device("meta")
_empty = torch.empty


def _made(x: torch.Tensor, shape: Any) -> torch.Tensor:
    return _empty(shape, dtype=x.dtype, device=_META)


def _batch_norm(
    x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> tuple[torch.Tensor, ...]:
    statistics = _made(x, (x.shape[1] if training else 0,))
    return _like(x), statistics, _made(x, statistics.shape)


def _like(x: torch.Tensor) -> torch.Tensor:
    return _made(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _same(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    return _like(x)


def _same_in_place(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    return x


def _layer_norm(x: torch.Tensor, shape: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    fits = tuple(x.shape[-len(shape) :]) == tuple(shape) and all(
        tuple(t.shape) == tuple(shape) for t in rest if isinstance(t, torch.Tensor)
    )
    if not fits:
        return _ATEN.native_layer_norm.default(x, shape, *rest)
    line = (*x.shape[: -len(shape)], *(1,) * len(shape))
    return _made(x, x.shape), _made(x, line), _made(x, line)  # the kernels return a contiguous result


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and tuple(bias.shape) == (b.shape[1],)
    if options or not fits or not (bias.dtype == a.dtype == b.dtype):
        return _ATEN.addmm.default(bias, a, b, **options)
    return _made(a, (a.shape[0], b.shape[1]))


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
        return _ATEN.mm.default(a, b)
    return _made(a, (a.shape[0], b.shape[1]))


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y = a.shape, b.shape
    if len(x) != 3 or len(y) != 3 or x[0] != y[0] or x[2] != y[1] or a.dtype != b.dtype:
        return _ATEN.bmm.default(a, b)
    return _made(a, (x[0], x[1], y[2]))


def _convolution(  # noqa: PLR0913 - the arguments of aten.convolution
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> torch.Tensor:
    rank, kernel, size = x.dim(), weight.shape, x.shape
    plain = (
        not transposed
        and rank == len(kernel) > 2
        and len(stride) == len(padding) == len(dilation) == rank - 2
        and x.dtype == weight.dtype
        and kernel[1] * groups == size[1]
        and kernel[0] % groups == 0
        and (bias is None or (bias.dtype == x.dtype and tuple(bias.shape) == (kernel[0],)))
        and x.is_contiguous()
        and weight.is_contiguous()
    )
    if plain:
        space = [
            (size[i + 2] + 2 * padding[i] - dilation[i] * (kernel[i + 2] - 1) - 1) // stride[i] + 1
            for i in range(rank - 2)
        ]
        if min(space) > 0:
            return _made(x, (size[0], kernel[0], *space))
    return _ATEN.convolution.default(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


def _binary(operator: Any) -> Callable[..., torch.Tensor]:
    """Two tensors of one type, or a tensor of fractions and a number."""

    def quick(x: Any, y: Any, **options: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor) and x.is_contiguous() and x.is_floating_point():
            if isinstance(y, (int, float)):
                return _made(x, x.shape)
            if isinstance(y, torch.Tensor) and y.dtype == x.dtype and y.is_contiguous():
                a, b = tuple(x.shape), tuple(y.shape)
                if a == b:
                    return _made(x, a)
                short = min(len(a), len(b))
                if all(p == q or p == 1 or q == 1 for p, q in zip(a[::-1], b[::-1])):
                    longer = a[: len(a) - short] or b[: len(b) - short]
                    return _made(
                        x,
                        (
                            *longer,
                            *(q if p == 1 else p for p, q in zip(a[len(a) - short :], b[len(b) - short :])),
                        ),
                    )
        return operator(x, y, **options)

    return quick


def _binary_in_place(operator: Any) -> Callable[..., torch.Tensor]:
    def quick(x: torch.Tensor, y: Any, **options: Any) -> torch.Tensor:
        if isinstance(y, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype:
            return x
        return operator(x, y, **options)

    return quick


def _mean(x: torch.Tensor, dim: Any, keepdim: bool = False, **options: Any) -> torch.Tensor:
    if options or not dim or not x.is_floating_point() or not x.is_contiguous():
        return _ATEN.mean.dim(x, dim, keepdim, **options)
    rank = x.dim()
    gone = {axis % rank for axis in dim if -rank <= axis < rank}
    if len(gone) != len(dim):
        return _ATEN.mean.dim(x, dim, keepdim)
    if keepdim:
        return _made(x, [1 if axis in gone else size for axis, size in enumerate(x.shape)])
    return _made(x, [size for axis, size in enumerate(x.shape) if axis not in gone])


def _cat(tensors: Any, dim: int = 0) -> torch.Tensor:
    first = tensors[0]
    shape, rank = list(first.shape), first.dim()
    if rank and -rank <= dim < rank:
        axis, total = dim % rank, 0
        for tensor in tensors:
            other = list(tensor.shape)
            if len(other) != rank or tensor.dtype != first.dtype or not tensor.is_contiguous():
                break
            total += other[axis]
            other[axis] = shape[axis]
            if other != shape:
                break
        else:
            shape[axis] = total
            return _made(first, shape)
    return _ATEN.cat.default(tensors, dim)


def _safe_softmax(x: torch.Tensor, dim: int, dtype: Any = None) -> torch.Tensor:
    if dtype is not None or not x.is_contiguous() or not -x.dim() <= dim < x.dim():
        return _ATEN._safe_softmax.default(x, dim, dtype)
    return _made(x, x.shape)


def _grid_sampler(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> torch.Tensor:
    fits = (
        x.dim() == grid.dim() == 4
        and (grid.shape[0], grid.shape[3]) == (x.shape[0], 2)
        and x.dtype == grid.dtype
        and x.is_contiguous()
        and min(x.shape[2:]) > 0
    )
    if not fits:
        return _ATEN.grid_sampler_2d.default(x, grid, mode, padding, align)
    return _made(x, (*x.shape[:2], *grid.shape[1:3]))


META_SHAPES: dict[Any, Callable[..., Any]] = {
    _ATEN.native_batch_norm.default: _batch_norm,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.addmm.default: _addmm,
    _ATEN.mm.default: _mm,
    _ATEN.bmm.default: _bmm,
    _ATEN.convolution.default: _convolution,
    _ATEN.mean.dim: _mean,
    _ATEN.cat.default: _cat,
    _ATEN._safe_softmax.default: _safe_softmax,
    _ATEN.grid_sampler_2d.default: _grid_sampler,
    **{op: _binary(op) for op in (_ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.sub.Tensor)},
    **{op: _binary_in_place(op) for op in (_ATEN.add_.Tensor, _ATEN.mul_.Tensor)},
    **dict.fromkeys(
        (_ATEN.relu.default, _ATEN.silu.default, _ATEN.gelu.default, _ATEN.hardswish.default, _ATEN.hardtanh.default,
         _ATEN.leaky_relu.default, _ATEN.elu.default),
        _same,
    ),
    **dict.fromkeys(
        (_ATEN.relu_.default, _ATEN.silu_.default, _ATEN.hardswish_.default, _ATEN.hardtanh_.default,
         _ATEN.leaky_relu_.default),
        _same_in_place,
    ),
}  # fmt: skip
"""The function that gives the result's shape for an operator overload; called with the operator's own arguments."""
