"""A shrink plan as the width that every axis keeps, in a dozen bytes.

A file that holds all tensors of the small model needs no more of a plan than widths: which channels remained does not
matter once every tensor is filled from the file. So the plan that a reader makes keeps the first channels of each axis.
It is written so only where the plan made from the widths sets the same widths everywhere as the given one. Which
channels remained, and for which inputs the cut was proved, is then not in the file.

Axes are taken in the order of the state dict. The predicted width of an axis is that of the previous axis of the same
size, or the full size. One bit an axis says whether the prediction is wrong; then the width follows as a varint.

>>> from torch import nn
>>> plan = ShrinkPlan(
...     keep={"0.weight": {0: (1, 3)}, "0.bias": {0: (1, 3)}, "1.weight": {1: (1, 3)}},
...     attributes={"0": {"out_features": 2}, "1": {"in_features": 2}},
...     shapes={"0.weight": (4, 2), "0.bias": (4,), "1.weight": (3, 4)},
...     model="Sequential",
... )
>>> small = plan.apply_(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)))
>>> written = encode_widths(plan, small)
>>> written.hex()  # axes 4, 2, 4, 3, 4, 3: the first one keeps 2, and so do all others of size 4
'0102'
>>> plan_of_widths(written, nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))).keep["1.weight"][1]
Runs([0, 2])
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from secateur.coding import varint
from secateur.errors import PlanError
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.runs import Runs

__all__ = ["encode_widths", "plan_of_widths"]

Shapes = Mapping[str, tuple[int, ...]]

# The width attribute of an axis of a layer's weight; of a convolution's inputs it counts those of all groups.
_LINEAR = ("out_features", "in_features")
_CONV = ("out_channels", "in_channels")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def encode_widths(plan: ShrinkPlan, small: nn.Module) -> bytes | None:
    """The widths of a plan; None if they do not hold all of it.

    Args:
        plan: The plan.
        small: The model after the plan.

    Returns:
        The bytes that `plan_of_widths` reads.
    """
    left = _shapes(small)
    shapes = {name: plan.shapes.get(name, shape) for name, shape in left.items()}
    if not set(plan.keep) <= set(left) or any(len(shapes[name]) != len(left[name]) for name in left):
        return None
    kept = [width for name in left for width in left[name]]
    again = _plan(small, shapes, kept)
    alike = (
        again.keep.keys() == plan.keep.keys()
        and all(again.keep[name].keys() == plan.keep[name].keys() for name in plan.keep)
        and _plain(again.attributes) == _plain(plan.attributes)
        and dict(again.shapes) == {name: tuple(shape) for name, shape in plan.shapes.items()}
        and plan.model == again.model
        and not plan.rewrites
        and not plan.layers
    )
    return _written(shapes, kept) if alike else None


def plan_of_widths(data: bytes | memoryview, model: nn.Module) -> ShrinkPlan:
    """The plan that the widths stand for; it keeps the first channels of every axis.

    Args:
        data: The result of `encode_widths`.
        model: A freshly built model of the original widths.

    Raises:
        PlanError: The model has another number of axes, or narrower ones.
    """
    shapes = _shapes(model)
    sizes = [size for shape in shapes.values() for size in shape]
    reader = varint.Reader(data, "the widths of the file")
    flags = bytes(reader.take(-(-len(sizes) // 8)))
    kept: list[int] = []
    known: dict[int, int] = {}
    for at, size in enumerate(sizes):
        width = known.get(size, size)
        if flags[at // 8] >> at % 8 & 1:
            width = reader.varint(size, "a width")
        if not 0 < width <= size and size:
            raise PlanError(f"the file keeps {width} of an axis of {size}; expected 1 to {size}")
        known[size] = width
        kept.append(width)
    reader.end()
    if any(flags[at // 8] >> at % 8 & 1 for at in range(len(sizes), 8 * len(flags))):
        raise PlanError(f"the file has widths of more axes than the {len(sizes)} of {type(model).__name__}")
    return _plan(model, shapes, kept)


def _written(shapes: Shapes, kept: list[int]) -> bytes:
    sizes = [size for shape in shapes.values() for size in shape]
    flags, out = bytearray(-(-len(sizes) // 8)), b""
    known: dict[int, int] = {}
    for at, (size, width) in enumerate(zip(sizes, kept, strict=True)):
        if known.get(size, size) != width:
            flags[at // 8] |= 1 << at % 8
            out += varint.write(width)
        known[size] = width
    return bytes(flags) + out


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def _plan(model: nn.Module, shapes: Shapes, kept: list[int]) -> ShrinkPlan:
    """The plan that keeps the first channels of every axis, and sets the widths of the layers whose weights it cuts."""
    keep: dict[str, dict[int, Runs]] = {}
    attributes: dict[str, dict[str, int]] = {}
    modules = dict(model.named_modules())
    left = iter(kept)
    for name, shape in shapes.items():
        widths = [next(left) for _ in shape]
        cut = {axis: Runs((0, width)) for axis, width in enumerate(widths) if width != shape[axis]}
        if cut:
            keep[name] = cut
            path, _, leaf = name.rpartition(".")
            if leaf == "weight":
                found = {
                    key: widths[axis] * times
                    for axis, key, times in _attributes(modules[path])
                    if axis in cut
                }
                if found:
                    attributes[path] = found
    cut_shapes = {name: tuple(shapes[name]) for name in keep}
    return ShrinkPlan(keep, attributes, {}, cut_shapes, type(model).__name__)


def _attributes(layer: nn.Module) -> list[tuple[int, str, int]]:
    """Axis of the weight, attribute, and what the axis is multiplied by."""
    if isinstance(layer, nn.Linear):
        return [(0, _LINEAR[0], 1), (1, _LINEAR[1], 1)]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return [(0, _CONV[0], 1), (1, _CONV[1], layer.groups)]
    if isinstance(layer, _NORMS):
        return [(0, "num_features", 1)]
    return []


def _plain(attributes: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    return {path: dict(values) for path, values in attributes.items() if values}
