"""Whether a cut model's forward must be run again to check that it works with its new widths.

A forward made of torch's own layers, and of operators that take their sizes from their tensors, works as soon as the
layers' attributes are set. The check concerns operators that were *given* a size on an axis that shrinks, such as
`reshape(b, heads, size)`; such calls were recorded with the forward.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.groups.couplings import analyse
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))
>>> found = analyse(model, torch.zeros(1, 3, 4, 4))
>>> half = found.alive({0: [True, False] * 4})
>>> runs_unchanged(found, model, half)
True
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur.structure.groups.couplings import KeptShapes, Structure
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.trace import Op, TensorRef

__all__ = ["moved_sizes", "runs_unchanged"]

_SIZED = frozenset(
    {
        "view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "unsqueeze", "squeeze", "slice", "split",
        "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "constant_pad_nd",
    }
)  # fmt: skip
"""Operators that take sizes: free where torch itself gave them, as `flatten` and `linear` do."""

_FREE = frozenset(
    {
        "convolution", "native_batch_norm", "_native_batch_norm_legit", "native_layer_norm", "mm", "addmm", "bmm",
        "baddbmm", "t", "transpose", "permute", "cat", "mean", "sum", "amax", "_softmax", "_safe_softmax",
        "embedding", "native_dropout", "clone", "_to_copy", "detach", "alias", "copy_", "max_pool2d_with_indices",
        "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool3d_with_indices",
        "avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
        "relu_", "relu", "gelu", "silu", "silu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid",
        "hardsigmoid_", "sigmoid", "sigmoid_", "tanh", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
        "leaky_relu", "leaky_relu_", "elu", "elu_", "_prelu_kernel", *FUSED,
    }
)  # fmt: skip
"""Operators whose result has the width of their input."""


def runs_unchanged(
    structure: Structure, model: nn.Module, alive: np.ndarray, skipped: tuple[str, ...] = ()
) -> bool:
    """Whether every operator that shrinks takes its sizes from its tensors; modules in `skipped` are not checked."""
    sizes = moved_sizes(structure, alive)
    if sizes is None:
        return False
    if any(not alive[labels].all() for labels in structure.follower.sizes):
        return False  # the scale of attention follows the size of its heads
    counted = {each.op.index for each in structure.follower.counted}
    calls = iter(structure.trace.calls)
    call = next(calls, None)
    for op in structure.trace.ops:
        while call is not None and call.last <= op.index:
            call = next(calls, None)
        refs = [*op.refs(), *op.results()]
        if not any(ref.id in sizes for ref in refs) or _inside(op.path, skipped):
            continue
        if op.name in _FREE:
            if not _free(model, op, sizes, op.index in counted):
                return False
        elif op.name not in _SIZED or not (
            call is None or op.index < call.first or _adapts(structure, call, sizes)
        ):
            return False
    return True


def _free(model: nn.Module, op: Op, sizes: dict[int, tuple[int, ...]], counted: bool) -> bool:
    """Whether an operator of `_FREE` really takes all its sizes from its tensors."""
    if op.name == "convolution" and op.args[8] > 1:
        return _keeps_groups(model, op)
    return counted or op.name != "native_layer_norm" or not _over_moved(op, sizes)


def moved_sizes(structure: Structure, alive: np.ndarray) -> dict[int, tuple[int, ...]] | None:
    """The new shape of every tensor that shrinks; None if one would not be rectangular, or only one wide.

    An axis of one position is broadcast and squeezed away, which one of two positions is not.
    """
    found: dict[int, tuple[int, ...]] = {}
    seen: set[int] = set()
    kept = KeptShapes(structure, alive)
    for op in structure.trace.ops:
        for ref in (*op.refs(), *op.results()):
            if ref.id in seen:
                continue
            seen.add(ref.id)
            shape = kept.of(ref)
            if shape is ref.shape:
                continue
            if shape is None or (1 in shape and any(new == 1 != old for new, old in zip(shape, ref.shape))):
                return None
            found[ref.id] = shape
    return found


def _inside(path: str, parents: tuple[str, ...]) -> bool:
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def _keeps_groups(model: nn.Module, op: Op) -> bool:
    """Whether a grouped convolution reads its groups off torch's own layer, where the plan sets them."""
    module: Any = model.get_submodule(op.path)
    weight = op.args[1]
    return (
        isinstance(module, _ConvNd) and bool(weight.name) and weight.name == f"{op.path}.weight".lstrip(".")
    )


def _over_moved(op: Op, sizes: dict[int, tuple[int, ...]]) -> bool:
    """Whether a layer norm is taken over an axis that shrinks."""
    x, count = op.args[0], len(op.args[1])
    new = sizes.get(x.id, x.shape)
    return tuple(new[-count:]) != tuple(x.shape[-count:])


def _adapts(structure: Structure, call: FunctionCall, sizes: dict[int, tuple[int, ...]]) -> bool:
    """Whether the sizes given to a call are still right once its tensor has shrunk."""
    ops = structure.trace.ops[call.first : call.last]
    if not ops or not ops[0].args or not isinstance(ops[0].args[0], TensorRef):
        return False
    x, results = ops[0].args[0], ops[-1].results()
    before = sizes.get(x.id, x.shape)
    wanted = [sizes.get(ref.id, ref.shape) for ref in results]
    if call.function in ("view", "reshape") and call.sizes is not None and len(results) == 1:
        return _shaped(call.sizes, int(np.prod(before))) == wanted[0]
    if call.function == "chunk" and call.sizes:
        axis = ops[0].arg(2, "dim", 0)
        return [
            tuple(t.shape) for t in torch.empty(before, device="meta").chunk(call.sizes[0], axis)
        ] == wanted
    if call.function == "expand" and call.sizes is not None and len(results) == 1:
        asked = call.sizes
        return len(asked) == len(wanted[0]) and all(a in (-1, b) for a, b in zip(asked, wanted[0]))
    return False


def _shaped(asked: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """The shape that a `view` gives to this number of elements."""
    known = int(np.prod([size for size in asked if size != -1]))
    if asked.count(-1) > 1 or not known or (count % known if -1 in asked else count != known):
        return None
    return tuple(count // known if size == -1 else size for size in asked)
