"""Element by element, with broadcasting: activations, sums, products, comparisons, constants."""

from __future__ import annotations

from secateur.structure.groups.labels import Layout
from secateur.structure.groups.layout import merge, weakly
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op, TensorRef


def together(f: Follower, op: Op, refs: list[TensorRef], zero: str) -> list[Layout]:
    """Tie the operands over the broadcast shape; every output has that layout."""
    results = op.results()
    shape = results[0].shape
    rank = len(shape)
    operands = [(f.of(ref), range(rank - len(ref.shape), rank)) for ref in refs]
    merged = merge(f.labels, shape, operands, zero)
    return [merged if ref.shape == shape else Layout(ref.shape) for ref in results]


def _tensors(op: Op) -> list[TensorRef]:
    return list(op.refs())


KEEPS_ZERO = [
    "relu",
    "relu6",
    "gelu",
    "silu",
    "tanh",
    "neg",
    "abs",
    "sqrt",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "mish",
    "sign",
    "floor",
    "ceil",
    "round",
    "trunc",
    "erf",
    "sin",
    "asin",
    "asinh",
    "sinh",
    "atan",
    "atanh",
    "tan",
    "expm1",
    "log1p",
    "square",
    "dropout",
    "clone",
    "contiguous",
    "_to_copy",
    "detach",
    "alias",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "positive",
    "rrelu",
    "hardshrink",
    "softshrink",
    "nan_to_num",
    "real",
    "imag",
    "conj",
    "_conj",
    "angle",
    "resolve_conj",
    "resolve_neg",
    "_reshape_copy",
    "frac",
    "sgn",
    "alpha_dropout",
    "feature_dropout",
    "view_as",
    "_conj_physical",
    "fill_diagonal",
    "prims::device_put",
    "prims::convert_element_type",
    "rsqrt_keep",
]


@rule(*KEEPS_ZERO, *(name + "_" for name in KEEPS_ZERO))
def keeps_zero(f: Follower, op: Op) -> list[Layout]:
    """An element-wise function with f(0) = 0: removed positions stay 0."""
    return together(f, op, _tensors(op), "all")


LOSES_ZERO = [
    "sigmoid",
    "hardsigmoid",
    "exp",
    "exp2",
    "cos",
    "acos",
    "cosh",
    "log",
    "log2",
    "log10",
    "rsqrt",
    "reciprocal",
    "logit",
    "softplus",
    "log_sigmoid",
    "log_sigmoid_forward",
    "logical_not",
    "bitwise_not",
    "isnan",
    "isinf",
    "isfinite",
    "threshold",
    "erfc",
    "lgamma",
    "digamma",
    "erfinv",
    "rand_like",
    "randn_like",
    "randint_like",
    "bernoulli",
    "normal",
    "normal_functional",
    "uniform",
    "exponential",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_or",
    "logical_xor",
    "bitwise_or",
    "bitwise_xor",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
    "polar",
    "complex",
    "atan2",
]


@rule("_pointwise", *LOSES_ZERO, *(name + "_" for name in LOSES_ZERO))
def loses_zero(f: Follower, op: Op) -> list[Layout]:
    """An element-wise function that may turn 0 into something else: removed positions are a constant afterwards."""
    return together(f, op, _tensors(op), "none")


@rule("hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_")
def clamp(f: Follower, op: Op) -> list[Layout]:
    """Clamping keeps 0 where 0 lies between the bounds."""
    if any(isinstance(arg, TensorRef) for arg in op.args[1:]):
        return together(f, op, _tensors(op), "none")
    bounds = [arg for arg in (*op.args[1:3], *op.kwargs.values()) if isinstance(arg, (int, float))]
    if op.name.startswith("clamp_min"):
        keeps = all(bound <= 0 for bound in bounds)
    elif op.name.startswith("clamp_max"):
        keeps = all(bound >= 0 for bound in bounds)
    else:
        low, high = (
            op.arg(1, "min", op.kwargs.get("min_val", -1)),
            op.arg(2, "max", op.kwargs.get("max_val", 1)),
        )
        keeps = (low is None or low <= 0) and (high is None or high >= 0)
    return together(f, op, _tensors(op), "all" if keeps else "none")


@rule("add", "add_", "sub", "sub_", "rsub", "maximum", "minimum", "fmax", "fmin", "lerp", "lerp_", "hypot")
def sums(f: Follower, op: Op) -> list[Layout]:
    """A sum is 0 where all its terms are; a plain number added makes it something else."""
    numbers = [arg for arg in op.args[:2] if isinstance(arg, (int, float)) and arg != 0]
    return together(f, op, _tensors(op), "none" if numbers else "all")


@rule("mul", "mul_", "logical_and", "logical_and_", "bitwise_and", "bitwise_and_")
def products(f: Follower, op: Op) -> list[Layout]:
    """A product is 0 where any factor is."""
    return together(f, op, _tensors(op), "any")


@rule("div", "div_", "fmod", "fmod_", "remainder", "remainder_", "floor_divide", "true_divide", "ldexp")
def quotients(f: Follower, op: Op) -> list[Layout]:
    """0 divided is 0, as long as the divisor is not 0 as well."""
    refs = _tensors(op)
    if not isinstance(op.args[0], TensorRef):
        return together(f, op, refs, "none")
    zero = [field.zero for field in f.of(op.args[0]).fields]
    divisor = [f.of(ref).fields for ref in refs[1:]]
    return together(f, op, refs, "any" if zero and all(zero) and not any(divisor) else "none")


@rule("pow", "pow_", "float_power")
def power(f: Follower, op: Op) -> list[Layout]:
    """A positive power keeps 0."""
    exponent = op.args[1]
    keeps = isinstance(exponent, (int, float)) and exponent > 0
    return together(f, op, _tensors(op), "all" if keeps else "none")


@rule("addcmul", "addcmul_", "addcdiv", "addcdiv_")
def add_product(f: Follower, op: Op) -> list[Layout]:
    """self + tensor1 * tensor2."""
    return together(f, op, _tensors(op), "all")


@rule("where", "masked_fill", "masked_fill_", "_prelu_kernel", "prelu", "copysign")
def choice(f: Follower, op: Op) -> list[Layout]:
    """A choice between tensors, or between a tensor and a number."""
    refs = _tensors(op)
    if op.name in ("_prelu_kernel", "prelu"):
        return together(f, op, refs, "any")
    return together(f, op, refs, "none")


@rule("copy_", "copy", "set_data", "_foreach_copy_")
def copies(f: Follower, op: Op) -> list[Layout]:
    """Writing into a tensor: both sides hold the same positions."""
    return together(f, op, _tensors(op), "all")


@rule("fill_", "zero_", "fill", "zero")
def fills(f: Follower, op: Op) -> list[Layout]:
    """Filling with one value keeps the layout."""
    return [f.of(op.args[0])]


@rule("native_dropout", "_fused_dropout")
def dropouts(f: Follower, op: Op) -> list[Layout]:
    """Dropout and its mask."""
    layout = f.of(op.args[0])
    return [layout for _ in op.results()]


LIKE = ["zeros_like", "ones_like", "full_like", "empty_like"]


@rule(*LIKE)
def like(f: Follower, op: Op) -> list[Layout]:
    """A constant of the same shape follows the tensor it was made after."""
    return together(f, op, [op.args[0]], "none")


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "empty_strided",
      "new_empty_strided", "empty_permuted")  # fmt: skip
def constant(f: Follower, op: Op) -> list[Layout]:
    """A tensor of one value: every axis may shrink with what it meets."""
    zero = op.name.endswith(("zeros",))
    return [weakly(f.labels, ref.shape, zero=zero) for ref in op.results()]


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "rand", "randn", "randint", "randperm", "tril_indices",
      "triu_indices", "hann_window", "_assert_async", "_local_scalar_dense", "is_same_size", "sym_size",
      "sym_numel", "_assert_tensor_metadata", "equal", "sym_stride", "normal.float_float")  # fmt: skip
def no_labels(f: Follower, op: Op) -> list[Layout]:
    """Tensors whose values depend on the position: fixed."""
    return [Layout(ref.shape) for ref in op.results()]
