# ruff: noqa: SIM905 - lists of words read better as words
"""`Ranged`: run a network on numbers of any size, each tensor standing for itself times a power of two.

A product of a hundred layers leaves the range of float32, and of float64 not much later. While this mode is active
every tensor carries an exponent beside its values, and is scaled back to ordinary size when it leaves a range; scaling
by a power of two costs no digit. The scaling is part of the recorded computation, so gradients stay in range too.

>>> layer = torch.tensor([[1e200]], dtype=torch.float64, requires_grad=True)
>>> with Ranged() as ranged:
...     x = torch.ones(1, 1, dtype=torch.float64)
...     for _ in range(4): x = torch.nn.functional.linear(x, layer)
>>> mantissa, exponent = ranged.split(x)
>>> import math; round((math.log10(mantissa.item()) + exponent * math.log10(2)), 6)
800.0
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.torch_calls import Arguments, Function, Keywords

__all__ = ["Ranged"]

_STRAY = 32  # a tensor whose largest value leaves 2**-32 .. 2**32 is brought back

# Operators f with f(2x) = 2 f(x) in the one tensor that carries an exponent, whatever else they are given.
_HOMOGENEOUS = frozenset(
    """
    relu relu_ leaky_relu leaky_relu_ prelu dropout dropout_ dropout1d dropout2d dropout3d feature_dropout
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    lp_pool1d lp_pool2d flatten unflatten reshape reshape_as view view_as permute transpose t swapaxes
    swapdims movedim moveaxis squeeze unsqueeze contiguous clone expand expand_as repeat tile narrow select
    index_select chunk split tensor_split unbind __getitem__ roll flip gather mean sum amax amin abs neg
    detach to double float half pixel_shuffle pixel_unshuffle channel_shuffle interpolate upsample unfold
    fold diagonal tril triu repeat_interleave
    """.split()
)
# Operators that multiply: exponents add (for a division they subtract).
_PRODUCTS = frozenset(
    """
    mul mul_ multiply __mul__ __rmul__ __imul__ matmul __matmul__ __rmatmul__ mm bmm mv dot einsum
    """.split()
)
_QUOTIENTS = frozenset(
    """
    div div_ divide true_divide __truediv__ __itruediv__
    """.split()
)
# Operators that add or compare: everything is brought to one exponent first.
_SUMS = frozenset(
    """
    add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __isub__ __rsub__ cat concat concatenate
    stack hstack vstack maximum minimum
    """.split()
)
_AFFINE = frozenset(
    """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    """.split()
)
# Questions about a tensor, answered without its values.
_QUESTIONS = frozenset(
    """
    size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous get_device
    element_size __len__ type requires_grad_ storage_offset data_ptr register_hook
    """.split()
)


def exponent_of(tensor: object) -> int:
    """The exponent a tensor carries: it stands for itself times two to that power."""
    return getattr(tensor, "_secateur_exponent", 0) if isinstance(tensor, torch.Tensor) else 0


def times_power(tensor: torch.Tensor, power: int) -> torch.Tensor:
    """A tensor times two to a power, in steps that are numbers themselves.

    >>> times_power(torch.tensor([1.0]), -3)
    tensor([0.1250])
    """
    step = 100 if tensor.dtype in (torch.float32, torch.bfloat16) else 1000
    while power and tensor.dtype.is_floating_point:
        part = max(-step, min(step, power))
        tensor = tensor * math.ldexp(1.0, part)
        power -= part
        if part < 0 and power < -20 * step:  # far below the smallest number: zero
            return tensor * 0.0
    return tensor


class Ranged(TorchFunctionMode):
    """The mode. Operators it does not know are given plain numbers, as if the mode were not there."""

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Arguments = (),
        kwargs: Keywords | None = None,
    ) -> Any:
        """Run one operator and note its result's exponent."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _QUESTIONS:
            return func(*args, **kwargs)
        carrying = [t for t in tensors_in([*args, kwargs]) if exponent_of(t)]
        if name in _AFFINE and not (len(args) > 1 and exponent_of(args[1])):
            return self._affine(func, args, kwargs)
        if name == "batch_norm" and carrying:
            return self._batch_norm(func, args, kwargs)
        if not carrying:
            return self._note(func(*args, **kwargs), 0, args)
        if name == "__get__":  # .shape, .device; also .T and the like, which are tensors
            return self._note(func(*args, **kwargs), exponent_of(carrying[0]), args, rescale=False)
        if (name in _HOMOGENEOUS or (name == "pad" and _pads_zeros(args, kwargs))) and len(carrying) == 1:
            return self._note(func(*args, **kwargs), exponent_of(carrying[0]), args)
        if name in _PRODUCTS:
            return self._note(func(*args, **kwargs), sum(map(exponent_of, carrying)), args)
        if name in _QUOTIENTS and len(args) == 2:
            return self._note(func(*args, **kwargs), exponent_of(args[0]) - exponent_of(args[1]), args)
        if name in _SUMS:
            return self._sum(func, name, args, kwargs)
        return func(*map_tensors(plain, args), **map_tensors(plain, kwargs))

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(values, exponent): the tensor stands for values * 2**exponent."""
        return tensor, exponent_of(tensor)

    def _note(self, result: object, exponent: int, args: Arguments, rescale: bool = True) -> Any:
        """Give every tensor of a result its exponent, scaling those outside the range back to ordinary size."""

        def one(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            mine = exponent
            in_place = any(tensor is arg for arg in args)
            if rescale and not in_place and tensor.numel() and tensor.requires_grad:
                peak = float(tensor.detach().abs().amax())
                if peak > 0 and math.isfinite(peak):
                    power = math.frexp(peak)[1]
                    if abs(power) > _STRAY:
                        tensor, mine = times_power(tensor, -power), mine + power
            if mine or exponent_of(tensor):
                tensor._secateur_exponent = mine  # type: ignore[attr-defined]
            return tensor

        if isinstance(result, torch.Tensor):
            return one(result)
        return map_tensors(one, result) if isinstance(result, (tuple, list)) else result

    def _sum(self, func: Function, name: str, args: Arguments, kwargs: Keywords) -> Any:
        """An operator whose operands must share one exponent: the largest."""
        operands = list(tensors_in([*args, kwargs]))
        numbers = any(isinstance(a, (int, float)) for a in args) and name not in ("cat", "stack")
        # A zero operand has no magnitude, and must not raise the others to its exponent.
        sizes = [exponent_of(t) for t in operands if t.is_floating_point() and bool(t.detach().any())]
        common = max([*sizes, *([0] if numbers else [])], default=0)

        def level(value: object) -> Any:
            if isinstance(value, torch.Tensor):
                return times_power(value, exponent_of(value) - common)
            if isinstance(value, (tuple, list)):
                return type(value)(level(item) for item in value)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and numbers:
                return math.ldexp(float(value), -common)
            return value

        if name.endswith("_") and not name.endswith("__"):
            # in place: the first operand must stay the same object
            target, power = args[0], exponent_of(args[0]) - common
            while power:
                part = max(-100, min(100, power))
                target.mul_(math.ldexp(1.0, part))
                power -= part
            target._secateur_exponent = common
            return func(target, *map(level, args[1:]), **kwargs)
        result = func(*map(level, args), **kwargs)
        return self._note(result, common, ())

    def _affine(self, func: Function, args: Arguments, kwargs: Keywords) -> Any:
        """A linear layer or convolution: the product first, then its bias at the right exponent."""
        names = ("input", "weight", "bias")
        given = {**dict(zip(names, args[:3])), **{n: kwargs[n] for n in names if n in kwargs}}
        rest = {key: value for key, value in kwargs.items() if key not in names}
        bias = given.get("bias")
        out = func(given["input"], given["weight"], None, *args[3:], **rest)
        out = self._note(out, exponent_of(given["input"]), ())
        if bias is None or not bool(bias.detach().any()):
            return out
        if func.__name__ != "linear":
            spatial = given["weight"].dim() - 2
            bias = bias.reshape(-1, *[1] * spatial)
        return self._sum(torch.add, "add", (out, bias), {})

    def _batch_norm(self, func: Function, args: Arguments, kwargs: Keywords) -> Any:
        """Batch norm by its running statistics: a scale per channel, then its shift at the right exponent."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = {**dict(zip(names, args)), **kwargs}
        x, mean, var = given["input"], given.get("running_mean"), given.get("running_var")
        if given.get("training") or mean is None or var is None:
            return func(*map_tensors(plain, args), **map_tensors(plain, kwargs))
        scale = torch.rsqrt(var + given.get("eps", 1e-5))
        if given.get("weight") is not None:
            scale = scale * given["weight"]
        shift = -mean * scale
        if given.get("bias") is not None:
            shift = shift + given["bias"]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        out = self._note(x * scale.reshape(shape), exponent_of(x), ())
        if not bool(shift.detach().any()):
            return out
        return self._sum(torch.add, "add", (out, shift.reshape(shape)), {})


def _pads_zeros(args: Arguments, kwargs: Keywords) -> bool:
    """Whether a call of `pad` keeps zero at zero: any mode but a constant other than 0."""
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    value = kwargs.get("value", args[3] if len(args) > 3 else None)
    return mode != "constant" or not value


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers a tensor stands for, as far as its type can hold them."""
    exponent = exponent_of(tensor)
    return times_power(tensor, exponent) if exponent else tensor
