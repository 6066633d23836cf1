"""The result of an operator when some of its inputs are 0: the rules by which a branch is known to vanish.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.trace.trace import trace
>>> found = trace(nn.Linear(2, 3), torch.zeros(1, 2))
>>> zeros = {found.parameters["weight"].id, found.parameters["bias"].id}
>>> for op in found.ops:
...     if gives_zero(op, lambda ref: ref.id in zeros):
...         zeros.update(ref.id for ref in op.results())
>>> found.outputs[0].id in zeros
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.groups.rules.elementwise import KEEPS_ZERO
from secateur.structure.trace.trace import Op, TensorRef

__all__ = ["divides_by_zero", "gives_zero", "plain_name"]

IsZero = Callable[[TensorRef], bool]

BATCH_NORMS = frozenset(
    {
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "_batch_norm_with_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "batch_norm",
    }
)
LAYER_NORMS = frozenset({"native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"})
GROUP_NORMS = frozenset({"native_group_norm", "group_norm"})
WEIGHT_NORMS = frozenset({"_weight_norm_interface", "_weight_norm"})
"""A weight as a direction, which is divided by its length, times a scale."""
VIEWS = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "squeeze",
        "unsqueeze",
        "flatten",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "lift_fresh",
        "_to_copy",
        "dropout",
        "native_dropout",
    }
)
"""Operators that keep all values in their order."""
_MOVES = VIEWS | {
    "permute",
    "transpose",
    "t",
    "select",
    "slice",
    "narrow",
    "unbind",
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "expand",
    "repeat",
    "roll",
    "flip",
    "index",
    "index_select",
    "gather",
    "im2col",
    "col2im",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unfold",
    "mean",
    "sum",
    "amax",
    "amin",
    "std",
    "var",
    "linalg_vector_norm",
    "cumsum",
    "max_pool1d",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "neg",
    "glu",
}
_PRODUCTS = frozenset({"mul", "mm", "bmm", "mv", "dot", "vdot", "logical_and"})
_GROUPED = frozenset({"_grouped_mm", "grouped_mm", "transformers::grouped_mm_fallback"})
"""Rows in runs, each times the matrix of its expert, and a bias."""
_ADDED_PRODUCTS = frozenset({"addmm", "addmv", "baddbmm", "_addmm_activation"})
_LAYERS = frozenset({"linear", "convolution", "_convolution", "mkldnn_convolution"})
_CLAMPS = frozenset({"hardtanh", "clamp", "clamp_min", "clamp_max"})
_KEEPS = frozenset(KEEPS_ZERO)
_ENDLESS_AT_ZERO = frozenset({"log", "log2", "log10", "reciprocal", "rsqrt"})


def plain_name(op: Op) -> str:
    """The operator's name; one that works in place has the name of the one that does not."""
    return op.name.partition(".")[0].rstrip("_") or op.name


def gives_zero(op: Op, zero: IsZero) -> bool:
    """Whether an operator's first output is 0 everywhere, for any values of the tensors that are not known to be 0.

    An operator without a rule gives no zero.

    Args:
        op: The operator.
        zero: Whether a tensor is 0 everywhere.
    """

    def is_zero(value: object) -> bool:
        return isinstance(value, TensorRef) and zero(value)

    def none_or_zero(value: object) -> bool:
        return value is None or is_zero(value)

    name, args = plain_name(op), op.args
    if name in _PRODUCTS:
        return any(is_zero(arg) for arg in args)
    if name in _ADDED_PRODUCTS:
        return is_zero(args[0]) and (is_zero(args[1]) or is_zero(args[2]))
    if name in _GROUPED:
        return (is_zero(args[0]) or is_zero(args[1])) and none_or_zero(op.arg(3, "bias"))
    if name in _LAYERS:
        return (is_zero(args[0]) or is_zero(args[1])) and none_or_zero(op.arg(2, "bias"))
    if name in FUSED or name in ("_scaled_dot_product_attention_math", "scaled_dot_product_attention"):
        return is_zero(args[2])
    if name in BATCH_NORMS or name in GROUP_NORMS:
        return is_zero(args[1]) and is_zero(args[2])
    if name in LAYER_NORMS:
        weight, bias = op.arg(2, "weight"), op.arg(3, "bias") if "rms" not in name else None
        return (is_zero(args[0]) or is_zero(weight)) and none_or_zero(bias)
    if name in WEIGHT_NORMS:
        return is_zero(args[1]) and not is_zero(args[0])
    return _elementwise_zero(op, name, is_zero)


def divides_by_zero(op: Op, zero: IsZero) -> bool:
    """Whether an operator makes something infinite, or no number at all, of a tensor that is 0 everywhere.

    Args:
        op: The operator.
        zero: Whether a tensor is 0 everywhere.
    """
    name, args = plain_name(op), op.args
    if name in ("div", "fmod", "remainder"):
        return isinstance(args[1], TensorRef) and zero(args[1])
    if name in WEIGHT_NORMS or name in _ENDLESS_AT_ZERO or _power(op, name) < 0:
        return isinstance(args[0], TensorRef) and zero(args[0])
    return False


def _power(op: Op, name: str) -> float:
    """The exponent of a power that is a number; 0 for every other operator."""
    exponent = op.arg(1, "exponent") if name == "pow" else 0
    return float(exponent) if isinstance(exponent, (int, float)) else 0.0


# The arguments that must all be 0, of operators whose result is then 0.
_ALL_ZERO = {name: slice(0, 2) for name in ("add", "sub", "rsub", "maximum", "minimum")} | {
    "where": slice(1, 3),
    "index_add": slice(0, 4, 3),
    "index_copy": slice(0, 4, 3),
    "scatter_add": slice(0, 4, 3),
    "index_put": slice(0, 3, 2),
}


def _elementwise_zero(op: Op, name: str, is_zero: Callable[[object], bool]) -> bool:
    """The rules of operators that work position by position, or only move or gather positions."""
    args = op.args
    if name in _ALL_ZERO:
        return all(is_zero(arg) or _is_nought(arg) for arg in args[_ALL_ZERO[name]])
    if name == "div":
        return is_zero(args[0]) and not is_zero(args[1])
    if name in ("cat", "stack"):
        return bool(args[0]) and all(is_zero(part) for part in args[0] if part.shape != (0,))
    if name == "copy":
        return is_zero(args[1])
    if name == "constant_pad_nd":
        return is_zero(args[0]) and not op.arg(2, "value", 0)
    if name in ("zeros", "zeros_like", "new_zeros"):
        return True
    if name in _CLAMPS:
        return is_zero(args[0]) and _clamps_around_zero(op, name)
    if name in _MOVES or name in _KEEPS or _power(op, name) > 0:
        return bool(args) and is_zero(args[0])
    return False


def _clamps_around_zero(op: Op, name: str) -> bool:
    """Whether a clamp leaves 0 as it is."""
    bounds = [arg for arg in (*op.args[1:], *op.kwargs.values()) if isinstance(arg, (int, float))]
    low, high = (bounds[0], bounds[-1]) if len(bounds) > 1 else (-1.0, 1.0)
    if len(bounds) == 1:
        low, high = (bounds[0], 1.0) if name != "clamp_max" else (-1.0, bounds[0])
    return low <= 0 <= high


def _is_nought(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0
