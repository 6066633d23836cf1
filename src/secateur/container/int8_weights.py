"""INT8 weights in a .sct file: integers with a scale and a zero point for each channel; back to floats or to torch.

An INT8 file holds a weight `NAME` as 8-bit integers, beside it `NAME.scale` and `NAME.zero_point`, and a text that
lists these weights. A weight is (integer - zero point) * scale, along one axis. `SaveOptions(int8=True)` rounds the
weights of linear layers and convolutions so; a model that torch quantised already (`torch.ao.nn.quantized.dynamic`) is
written with the integers, scales and zero points that it has.

`load` gives floats, or fills a model whose layers are torch's quantised ones. `load_int8` puts torch's dynamic INT8
layers in the place of a float model's.

>>> layer = nn.Linear(2, 3)
>>> _ = layer.weight.data.copy_(torch.tensor([[1.27, 0.0], [0.0, -2.54], [0.0, 0.0]]))
>>> rounded = quantised(layer.weight.detach(), 0)
>>> rounded.values.tolist(), [round(float(scale), 4) for scale in rounded.scale]
([[127, 0], [0, -127], [0, 0]], [0.01, 0.02, 1.0])
>>> rounded.floats().tolist() == layer.weight.tolist()
True
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.container.format import Entry
from secateur.core.json_text import parse
from secateur.errors import DataError, FormatError, NothingToDoError, OptionError

__all__ = [
    "TEXT",
    "Int8Weight",
    "described",
    "fill_quantised",
    "from_file",
    "has_torch_layers",
    "integers_of",
    "listed",
    "parts_of",
    "plain_state",
    "quantised",
    "with_integers",
    "with_torch_layers",
]

TEXT = "int8"
SCALE, ZERO_POINT = ".scale", ".zero_point"
_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PACKED = "_packed_params"
_RANGE = {"I8": (-128, 127), "U8": (0, 255)}
_SHOWN = 80

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight as integers.

    Attributes:
        values: The integers, int8 or uint8.
        scale: One number for each position of the axis, or one for all.
        zero_point: The integer that stands for 0, likewise.
        axis: The axis with a scale for each position; None for one scale.
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None

    def floats(self) -> torch.Tensor:
        """The weight in float32: (integer - zero point) * scale."""
        shape = [1] * self.values.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        zero, scale = self.zero_point.reshape(shape).float(), self.scale.reshape(shape).float()
        return (self.values.float() - zero) * scale

    def packed(self) -> torch.Tensor:
        """The weight as a quantised tensor of torch."""
        with _silent():
            if self.axis is None:
                scale, zero = float(self.scale), int(self.zero_point)
                return torch._make_per_tensor_quantized_tensor(self.values, scale, zero)
            return torch._make_per_channel_quantized_tensor(
                self.values, self.scale.double(), self.zero_point.long(), self.axis
            )


class _silent(warnings.catch_warnings):
    """Silence torch's notes that its quantised tensors will be replaced in a later release."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def quantised(weight: torch.Tensor, axis: int) -> Int8Weight:
    """A float weight rounded to 8 bits, symmetric around 0, with a scale for each position of an axis.

    Args:
        weight: The weight; every number must be finite.
        axis: The axis of the output channels.
    """
    others = [k for k in range(weight.dim()) if k != axis]
    largest = weight.float().abs().amax(others) if others else weight.float().abs()
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    scale = torch.where(scale > 0, scale, torch.full_like(scale, torch.finfo(torch.float32).tiny))
    shape = [1] * weight.dim()
    shape[axis] = -1
    values = (weight.float() / scale.reshape(shape)).round().clamp(-127, 127).to(torch.int8)
    return Int8Weight(values, scale, torch.zeros(scale.shape, dtype=torch.int32), axis)


def integers_of(model: nn.Module, state: State, rounding: bool) -> dict[str, Int8Weight]:
    """The weights that are written as integers, by name.

    Args:
        model: The model.
        state: Its tensors.
        rounding: Whether weights of linear layers and convolutions are rounded. Weights that torch holds as integers
            are found in any case.

    Raises:
        OptionError: A weight holds a number that is not finite.
        NothingToDoError: `rounding` is asked for, and no layer is of a kind that is rounded.
    """
    found = {}
    for path, module in model.named_modules():
        own = _of_torch(module)
        name = f"{path}.weight" if path else "weight"
        if own is not None:
            found[name] = _taken(own)
        elif rounding and type(module) in _ROUNDED and name in state and _alone(state, name):
            weight = state[name].detach().cpu()
            if weight.dtype != torch.float32 or not weight.numel():
                continue
            if not bool(weight.isfinite().all()):
                raise OptionError(f"int8: weight {name!r} holds numbers that are not finite; repair it first")
            found[name] = quantised(weight, 0)
    if rounding and not found:
        raise NothingToDoError(
            f"int8: {type(model).__name__} has no nn.Linear or nn.Conv1d, 2d, 3d with a float32 weight of its own"
            + _subclass(model)
        )
    return found


def _subclass(model: nn.Module) -> str:
    """The first layer that is left out because it is of a subclass, as the end of an error's sentence."""
    for path, module in model.named_modules():
        base = next((kind for kind in _ROUNDED if isinstance(module, kind)), None)
        if base is not None and type(module) is not base:
            return (
                f"; subclasses are left out, as {path or 'the model itself'!r} of {type(module).__name__}, a subclass "
                f"of nn.{base.__name__}, since their forward may use the weight in another way: put an "
                f"nn.{base.__name__} in its place, or share its weights with sc.share(model, bits=8)"
            )
    return ""


def _alone(state: State, name: str) -> bool:
    """Whether no other name has the same memory: a tied weight stays what it is."""
    at = state[name].data_ptr()
    return not any(other != name and value.data_ptr() == at for other, value in state.items() if at)


def _of_torch(module: nn.Module) -> torch.Tensor | None:
    """The weight of a layer that torch quantised."""
    if not type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        return None
    weight = getattr(module, "weight", None)
    found = weight() if callable(weight) else None
    return found if isinstance(found, torch.Tensor) and found.is_quantized else None


def _taken(weight: torch.Tensor) -> Int8Weight:
    """The integers of a quantised tensor of torch."""
    if weight.qscheme() == torch.per_channel_affine:
        zero = weight.q_per_channel_zero_points().to(torch.int32)
        return Int8Weight(weight.int_repr(), weight.q_per_channel_scales(), zero, weight.q_per_channel_axis())
    scale = torch.tensor(weight.q_scale(), dtype=torch.float64)
    return Int8Weight(weight.int_repr(), scale, torch.tensor(weight.q_zero_point(), dtype=torch.int32), None)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model by name; of a layer that torch quantised its weight (as floats) and bias.

    Args:
        model: The model.
    """
    held = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    for path, module in model.named_modules():
        weight = _of_torch(module)
        if weight is None:
            continue
        start = f"{path}." if path else ""
        dynamic = ".dynamic" in type(module).__module__
        gone = ("weight", "bias", *(("scale", "zero_point") if dynamic else ()))
        held = {
            k: v
            for k, v in held.items()
            if k not in [start + part for part in gone] and not k.startswith(start + _PACKED)
        }
        held[start + "weight"] = weight.dequantize()
        bias: Any = getattr(module, "bias", None)
        found = bias() if callable(bias) else None
        if isinstance(found, torch.Tensor):
            held[start + "bias"] = found.detach()
    return held


def parts_of(names: Collection[str]) -> set[str]:
    """The names of the scales and zero points of INT8 weights.

    Args:
        names: The names of the weights.
    """
    return {name + suffix for name in names for suffix in (SCALE, ZERO_POINT)}


def with_integers(state: State, found: Mapping[str, Int8Weight]) -> dict[str, torch.Tensor]:
    """The tensors of the file: integers, scales and zero points in the place of the weights.

    Args:
        state: The tensors of the model.
        found: The weights that are written as integers.

    Raises:
        OptionError: A name that the file needs is taken.
    """
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        weight = found.get(name)
        out[name] = value if weight is None else weight.values
        if weight is not None:
            out |= {name + SCALE: weight.scale, name + ZERO_POINT: weight.zero_point}
    taken = parts_of(found) & set(state)
    if taken:
        name = min(taken)
        raise OptionError(f"int8: the model has a tensor {name!r}, a name that the file needs; rename it")
    return out


def described(found: Mapping[str, Int8Weight]) -> str:
    """The text of the file that lists its INT8 weights."""
    return json.dumps({"version": 1, "weights": {name: weight.axis for name, weight in found.items()}})


def listed(text: bytes, entries: Mapping[str, Entry]) -> dict[str, int | None]:
    """The INT8 weights that a file lists, with their axis, checked against its tensors.

    Args:
        text: The text of the file.
        entries: Its tensors by name.

    Raises:
        FormatError: The text is not valid, or the tensors are not those of INT8 weights.
    """
    what = "the list of INT8 weights"
    found = parse(text, what)
    if not isinstance(found, dict) or set(found) != {"version", "weights"} or found["version"] != 1:
        raise FormatError(f"{what}: expected an object with version 1 and weights")
    weights = found["weights"]
    if not isinstance(weights, dict) or not weights:
        raise FormatError(f"{what}: expected at least one weight by name")
    return {name: _checked(name, axis, entries) for name, axis in weights.items()}


def _checked(name: str, axis: object, entries: Mapping[str, Entry]) -> int | None:
    """The axis of a weight; raise unless it, its scale and its zero point have the types and shapes they must have."""
    shown = f"INT8 weight {name[:_SHOWN]!r}"
    entry = entries.get(name)
    if entry is None or entry.dtype not in _RANGE:
        raise FormatError(
            f"{shown}: expected a tensor of I8 or U8, got {'none' if entry is None else entry.dtype}"
        )
    if axis is not None and (
        not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < len(entry.shape)
    ):
        raise FormatError(
            f"{shown}: axis: expected null or a number below {len(entry.shape)}, got {axis!r:.20}"
        )
    shape = () if axis is None else (entry.shape[axis],)
    for suffix, allowed in ((SCALE, ("F32", "F64")), (ZERO_POINT, ("I32",))):
        part = entries.get(name + suffix)
        if part is None or part.dtype not in allowed or part.shape != shape:
            got = "none" if part is None else f"{part.dtype} of shape {list(part.shape)}"
            raise FormatError(
                f"{shown}: {suffix[1:]}: expected {' or '.join(allowed)} of shape {list(shape)}, got {got}"
            )
    return axis


def from_file(state: dict[str, torch.Tensor], weights: Mapping[str, int | None]) -> dict[str, Int8Weight]:
    """Take the INT8 weights out of a file's tensors.

    Args:
        state: The tensors; those of the weights are taken out.
        weights: The axis of every weight.

    Raises:
        FormatError: A scale is not a finite number above 0, or a zero point is outside the integers' range.
    """
    found = {}
    for name, axis in weights.items():
        values, scale, zero = state.pop(name), state.pop(name + SCALE), state.pop(name + ZERO_POINT)
        shown = f"INT8 weight {name[:_SHOWN]!r}"
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise FormatError(f"{shown}: scale: expected finite numbers above 0")
        low, high = _RANGE["I8" if values.dtype == torch.int8 else "U8"]
        if not bool(((zero >= low) & (zero <= high)).all()):
            raise FormatError(f"{shown}: zero point: expected numbers from {low} to {high}")
        found[name] = Int8Weight(values, scale, zero, axis)
    return found


@torch.no_grad()
def fill_quantised(model: nn.Module, floats: State, weights: Mapping[str, Int8Weight]) -> None:
    """Put tensors into a model, some of whose layers torch quantised.

    Args:
        model: The model; it is changed.
        floats: Every tensor of the file, weights as floats.
        weights: Those that the file holds as integers.

    Raises:
        DataError: A layer of torch's is in INT8 and the file holds its weight in floats.
    """
    left = dict(floats)
    layers = {path: module for path, module in model.named_modules() if _of_torch(module) is not None}
    for path in layers:
        name = f"{path}.weight" if path else "weight"
        if name not in weights:
            raise DataError(
                f"weight {name!r} is INT8 in the model and in floats in the file; load it into the float model"
            )
    for path, module in layers.items():
        start = f"{path}." if path else ""
        layer: Any = module
        left.pop(start + "weight")
        bias = left.pop(start + "bias", None)
        for part, kind in (("scale", float), ("zero_point", int)):
            if start + part in left:
                setattr(layer, part, kind(left.pop(start + part)))
        with _silent():
            layer.set_weight_bias(weights[start + "weight"].packed(), bias)
    own = {k: v for k, v in model.state_dict().items() if k in left}
    for name, value in left.items():
        own[name].copy_(value)


def has_torch_layers(model: nn.Module) -> bool:
    """Whether a layer of a model holds its weight as torch's integers.

    Args:
        model: The model.
    """
    return any(_of_torch(module) is not None for module in model.modules())


_FUSED = (
    nn.TransformerEncoderLayer,
    nn.MultiheadAttention,
)
"""Read the weights of the layers inside themselves."""


def with_torch_layers(model: nn.Module, weights: Mapping[str, Int8Weight]) -> nn.Module:
    """A float model with torch's dynamic INT8 layers in the place of those whose weights are in integers.

    Args:
        model: The model; it is changed.
        weights: The weights in integers, by name.
    """
    for name, weight in weights.items():
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path.rpartition(".")[0]) if path else None
        made = None if isinstance(owner, _FUSED) else _torch_layer(model.get_submodule(path), weight)
        if made is not None and owner is None:
            return made
        if made is not None:
            setattr(owner, path.rpartition(".")[2], made)
    return model


def _torch_layer(module: nn.Module, weight: Int8Weight) -> nn.Module | None:
    """A float layer as torch's dynamic INT8 layer; None where torch has none for it.

    Args:
        module: The layer, an nn.Linear or nn.Conv1d, 2d, 3d.
        weight: Its weight in integers.
    """
    if type(module) not in _ROUNDED or weight.values.dtype != torch.int8:
        return None
    from torch.ao.nn.quantized import dynamic

    with _silent():
        layer: Any = module
        made: Any
        bias = None if layer.bias is None else layer.bias.detach().float().cpu()
        if isinstance(module, nn.Linear):
            made = dynamic.Linear(module.in_features, module.out_features, bias is not None)
        else:
            if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                return None
            kinds: dict[type, Any] = {
                nn.Conv1d: dynamic.Conv1d,
                nn.Conv2d: dynamic.Conv2d,
                nn.Conv3d: dynamic.Conv3d,
            }
            made = kinds[type(module)](
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                bias is not None,
            )
        made.set_weight_bias(weight.packed(), bias)
    return made.train(module.training)
