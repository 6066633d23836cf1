"""Costs of operators in multiply-accumulates, by a rule for each, and the operators that cost none.

A rule reads the arguments and the result of a call and yields `Cost`s. Where one operand is a weight, every element of
it is used equally often, which makes the count for a pruned weight exact.

The names of products, convolutions and fused attention, and their formulas over shapes, are here once: the measure
`macs` counts calls with them, and `structure` counts a recorded forward whose shapes have been cut.

>>> import torch
>>> x, w = torch.ones(5, 3), torch.ones(3, 2)
>>> [cost] = RULES["mm"]((x, w), {}, torch.mm(x, w))
>>> cost.macs, cost.weights[0] is w
(30, True)
>>> convolution_macs(outer=(1, 8, 2, 2), weight=(8, 3, 3, 3)), attention_macs((1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4))
(864, 400)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

__all__ = [
    "CONVOLUTIONS",
    "CONVOLUTION_KERNELS",
    "FREE",
    "FUSED_ATTENTION",
    "LEFT_OPERAND",
    "RULES",
    "Cost",
    "Shape",
    "attention_macs",
    "convolution_macs",
    "is_free",
    "operator_name",
    "product_macs",
]

Shape = Sequence[int]

# (input, weight, bias, stride, padding, dilation, transposed, ...)
CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable")
# (input, weight, ...), never transposed
CONVOLUTION_KERNELS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "_conv_depthwise2d",
    "conv_depthwise3d",
    "slow_conv3d",
    "mkldnn_convolution",
    "cudnn_convolution",
    "miopen_convolution",
)
FUSED_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
"""Kernels that compute softmax(q k^T) v in one call, on [batch, heads, length, width]."""

_PLAIN_PRODUCTS = ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm")
_ADDED_PRODUCTS = ("addmm", "addmv", "_addmm_activation")
_LINEAR = ("linear", "mkldnn_linear", "_mkl_linear", "_linear_pointwise")
LEFT_OPERAND = {
    **dict.fromkeys((*_PLAIN_PRODUCTS, *_LINEAR), 0),
    **dict.fromkeys((*_ADDED_PRODUCTS, "baddbmm"), 1),
}
"""Matrix products: operator -> which argument is the left operand. `product_macs` gives their cost."""


def product_macs(left: Shape, outputs: Shape) -> int:
    """Multiply-accumulates of a matrix product: every output sums over the last axis of the left operand."""
    return prod(outputs) * left[-1]


def convolution_macs(outer: Shape, weight: Shape) -> int:
    """Multiply-accumulates of a convolution.

    Every element of `outer` meets all weights of one slice. Groups need no care: the weight is that much smaller.

    Args:
        outer: The shape of the output; of the input where the convolution is transposed.
        weight: The shape of the weight.
    """
    return prod(outer) * prod(weight[1:])


def attention_macs(query: Shape, key: Shape, value: Shape) -> int:
    """Multiply-accumulates of softmax(q k^T) v on [batch, heads, length, width]. A causal mask saves nothing."""
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@dataclass(frozen=True, eq=False)
class Cost:
    """Multiply-accumulates of one product. `weights`: operands that may be weights, the likeliest first."""

    macs: int
    weights: tuple[torch.Tensor, ...] = ()
    bias: torch.Tensor | None = None
    bias_outputs: int = 0


Args = tuple[Any, ...]  # of an operator: tensors, numbers, flags
Kwargs = dict[str, Any]
Rule = Callable[[Args, Kwargs, torch.Tensor], Iterator[Cost]]


def _convolution(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    transposed = bool(args[6]) if len(args) > 6 else bool(kwargs.get("transposed", False))
    macs = convolution_macs((x if transposed else out).shape, weight.shape)
    yield Cost(macs, (weight,), bias, out.numel() if bias is not None else 0)


def _conv_like(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # conv1d/2d/3d and their depthwise kernels: (input, weight, [kernel size,] bias, ...)
    bias = next((a for a in args[2:] if torch.is_tensor(a)), kwargs.get("bias"))
    macs = convolution_macs(out.shape, args[1].shape)
    yield Cost(macs, (args[1],), bias, out.numel() if bias is not None else 0)


def _product(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    yield Cost(product_macs(args[0].shape, out.shape), (args[1], args[0]))


def _added_product(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # addmm and its like: (bias, left, right)
    bias = args[0] if kwargs.get("beta", 1) != 0 else None
    macs = product_macs(args[1].shape, out.shape)
    yield Cost(macs, (args[2], args[1]), bias, out.numel() if bias is not None else 0)


def _added_batches(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # baddbmm adds to every product of the batch, addbmm to their sum: what is added is no bias of a layer
    yield Cost(args[1].numel() * args[2].shape[-1], (args[2], args[1]))


def _linear(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    macs = product_macs(args[0].shape, out.shape)
    yield Cost(macs, (args[1],), bias, out.numel() if bias is not None else 0)


def _attention(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    yield Cost(attention_macs(*(operand.shape for operand in args[:3])))


def _packed_attention(
    x: torch.Tensor,
    keys: int,
    qkv: torch.Tensor,
    qkv_bias: torch.Tensor | None,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor | None,
) -> Iterator[Cost]:
    rows = x.numel() // x.shape[-1]
    yield Cost(rows * qkv.numel(), (qkv,), qkv_bias, rows * qkv.shape[0])
    yield Cost(2 * rows * keys * out_weight.shape[-1])
    yield Cost(rows * out_weight.numel(), (out_weight,), out_bias, rows * out_weight.shape[0])


def _native_attention(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # _native_multi_head_attention(query, key, value, width, heads, qkv weight, qkv bias, out weight, out
    # bias, ...)
    yield from _packed_attention(args[0], args[1].shape[1], *args[5:9])


def _encoder_layer(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # _transformer_encoder_layer_fwd(src, width, heads, qkv w, qkv b, out w, out b, gelu, norm first, eps,
    # norms (4), feed-forward w1, b1, w2, b2, ...)
    x = args[0]
    rows = x.numel() // x.shape[-1]
    yield from _packed_attention(x, x.shape[1], *args[3:7])
    for weight, bias in (args[14:16], args[16:18]):
        yield Cost(rows * weight.numel(), (weight,), bias, rows * weight.shape[0])


def _mkldnn_rnn(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    rows = args[0].numel() // args[0].shape[-1]
    for weight, bias in ((args[1], args[3]), (args[2], args[4])):
        yield Cost(rows * weight.numel(), (weight,), bias, rows * weight.shape[0])


def _fused_rnn(args: Args, kwargs: Kwargs, out: torch.Tensor) -> Iterator[Cost]:
    # _cudnn_rnn, miopen_rnn (input, weights, ...) and _lstm_mps, lstm, gru (input, hidden, weights, ...)
    x = args[0]
    found = [arg for arg in args[1:4] if isinstance(arg, (list, tuple)) and len(arg) >= 2]
    weights = max(found, key=len)
    rows = x.numel() // x.shape[-1]
    for weight in weights:
        if weight.dim() == 2:
            yield Cost(rows * weight.numel(), (weight,))
        else:
            yield Cost(0, (), weight, rows * weight.numel())


RULES: dict[str, Rule] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(CONVOLUTION_KERNELS, _conv_like),
    **dict.fromkeys(_PLAIN_PRODUCTS, _product),
    **dict.fromkeys(_ADDED_PRODUCTS, _added_product),
    **dict.fromkeys(("baddbmm", "addbmm"), _added_batches),
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(FUSED_ATTENTION, _attention),
    "_native_multi_head_attention": _native_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer": _mkldnn_rnn,
    **dict.fromkeys(("_cudnn_rnn", "miopen_rnn", "_lstm_mps"), _fused_rnn),
}

# Look-ups, copies and layout: no product is summed.
_LAYOUT = """
    _embedding_bag _embedding_bag_forward_only _nested_tensor_from_mask _nested_view_from_buffer
    _pack_padded_sequence _pad_packed_sequence _reshape_alias _to_copy _unique2 _unsafe_index
    _unsafe_index_put _unsafe_view alias alias_copy as_strided as_strided_copy bincount block_diag
    broadcast_tensors bucketize cat channel_shuffle chunk clone col2im constant_pad_nd contiguous copy
    detach detach_copy diag diag_embed diagonal_copy diagonal_scatter dropout embedding embedding_bag
    embedding_renorm empty_like empty_strided expand expand_as expand_copy fill flatten flip full_like
    gather im2col index index_add index_copy index_fill index_put index_select lift lift_fresh
    lift_fresh_copy masked_fill masked_scatter masked_select meshgrid movedim narrow
    native_channel_shuffle native_dropout new_empty new_empty_strided new_full new_ones new_tensor
    new_zeros nonzero one_hot ones_like pad permute permute_copy pixel_shuffle pixel_unshuffle put
    rand_like randint_like randn_like reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resize result_type
    roll rot90 scalar_tensor scatter scatter_add scatter_reduce searchsorted select select_copy
    select_scatter set slice slice_copy slice_scatter split split_with_sizes_copy squeeze squeeze_copy
    stack swapaxes t t_copy take take_along_dim tensor_split to transpose transpose_copy tril tril_indices
    triu triu_indices type_as unbind_copy unflatten unfold unfold_copy unique unique_consecutive
    unique_dim unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy view_as
    view_copy where zero zeros_like
"""
# Reductions, orderings and scans.
_REDUCTIONS = """
    _assert_async _assert_tensor_metadata _is_all_true _is_any_true _local_scalar_dense all allclose amax
    amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum equal histc
    is_nonzero item kthvalue linalg_vector_norm logcumsumexp logsumexp max mean median min mode nanmean
    nanmedian nansum norm numel prod sort std std_mean sum sym_numel sym_size sym_storage_offset
    sym_stride topk var var_mean
"""
# Activations that torch does not tag as element-wise, normalisation, soft maxima, pooling, interpolation, gates of
# recurrent cells (their products count apart).
_LAYERS = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_impl_index _batch_norm_no_update
    _batch_norm_with_update _fused_rms_norm _log_softmax _masked_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _prelu_kernel _safe_softmax _softmax _thnn_fused_gru_cell
    _thnn_fused_lstm_cell _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
    adaptive_max_pool3d affine_grid_generator avg_pool1d avg_pool2d avg_pool3d batch_norm batch_norm_elemt
    bernoulli binary_cross_entropy celu complex cross_entropy_loss cudnn_batch_norm fractional_max_pool2d
    gelu glu grid_sampler_2d grid_sampler_3d group_norm hardswish hardtanh imag instance_norm isin layer_norm
    log_sigmoid_forward log_softmax max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d miopen_batch_norm mish mkldnn_max_pool2d mse_loss multinomial native_batch_norm
    native_group_norm native_layer_norm nll_loss2d_forward nll_loss_forward polar prelu real relu6 rms_norm
    rrelu_with_noise smooth_l1_loss softmax threshold upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d view_as_complex
    view_as_real
"""
FREE: frozenset[str] = frozenset((_LAYOUT + _REDUCTIONS + _LAYERS).split())


def operator_name(function: torch._ops.OpOverload) -> str:
    """`aten.add_.Tensor` -> `add`: the operator, whatever its overload, in place or not.

    >>> operator_name(torch.ops.aten.add_.Tensor), operator_name(torch.ops.aten._softmax.default)
    ('add', '_softmax')
    """
    name = function._schema.name.split("::")[-1]
    return name.rstrip("_") or name


def is_free(function: torch._ops.OpOverload, tensors: list[torch.Tensor]) -> bool:
    """Whether an operator is free by definition: element-wise, a view, a factory, or listed in `FREE`."""
    if function._schema.name.split("::")[0] not in ("aten", "prims", "prim"):
        return False
    if torch.Tag.pointwise in function.tags or function.is_view or operator_name(function) in FREE:
        return True
    return not tensors  # a factory
