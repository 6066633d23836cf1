"""`ShrinkPlan`: what leaves a model, as plain data. It travels as JSON and cuts any freshly built model of the
same class.

>>> import torch
>>> from torch import nn
>>> plan = ShrinkPlan(keep={"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)}}, attributes={"0": {"out_features": 2}})
>>> plan.apply_(nn.Sequential(nn.Linear(4, 3)))[0]
Linear(in_features=4, out_features=2, bias=True)
>>> ShrinkPlan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import PlanError
from secateur.execution.fast_copy import modules_of, tensors_of
from secateur.structure.cut.rewrite import Rewrite, rewrite_

__all__ = ["ShrinkPlan", "cut_tensor", "owner"]

VERSION = 1

Kept = Sequence[int] | np.ndarray
"""The indices of an axis that stay."""
KnownIndices = dict[tuple[int, torch.device], torch.Tensor]
"""Indices as tensors, by the identity of the sequence they come from and their device."""


@dataclass(frozen=True)
class ShrinkPlan:
    """Kept indices of every parameter axis that was cut, the attributes to set, and calls whose sizes are replaced.

    `keep[name][axis]` are the indices that stay, ascending. `shapes[name]` is the shape before. `attributes[module]`
    are the widths set on a module; `rewrites[module]` are sizes written into its forward.
    """

    keep: Mapping[str, Mapping[int, tuple[int, ...]]]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewrites: Mapping[str, tuple[Rewrite, ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data. Indices are stored as runs [first, length, first, length, ...]."""
        return {
            "format": "secateur-plan",
            "version": VERSION,
            "model": self.model,
            "keep": {
                name: {str(axis): _runs(indices) for axis, indices in axes.items()}
                for name, axes in self.keep.items()
            },
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "attributes": {path: dict(values) for path, values in self.attributes.items()},
            "rewrites": {path: [item.to_dict() for item in items] for path, items in self.rewrites.items()},
        }

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShrinkPlan:
        """The inverse of `to_dict`, checked."""
        if not isinstance(data, Mapping) or data.get("format") != "secateur-plan":
            raise PlanError("expected a plan written by secateur (format=secateur-plan), got something else")
        if data.get("version") != VERSION:
            raise PlanError(
                f"expected version {VERSION} of secateur-plan, got {data.get('version')!r}; write it "
                f"again with this version"
            )
        try:
            return cls(
                keep={
                    str(name): {int(axis): _unruns(runs) for axis, runs in axes.items()}
                    for name, axes in data["keep"].items()
                },
                attributes={
                    str(path): {str(key): _tupled(value) for key, value in values.items()}
                    for path, values in data["attributes"].items()
                },
                rewrites={
                    str(path): tuple(Rewrite.from_dict(item) for item in items)
                    for path, items in data["rewrites"].items()
                },
                shapes={
                    str(name): tuple(int(size) for size in shape) for name, shape in data["shapes"].items()
                },
                model=str(data.get("model", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"a damaged plan: {type(error).__name__}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> ShrinkPlan:
        """The inverse of `to_json`."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"expected a plan as JSON, got something else ({error})") from error
        return cls.from_dict(data)

    def width(self, name: str, axis: int, before: int) -> int:
        """How long an axis is once cut."""
        return len(self.keep.get(name, {}).get(axis, range(before)))

    def check(self, model: nn.Module) -> None:
        """Raise a `PlanError` unless every parameter named has the shape it had when the plan was made."""
        tensors = tensors_of(model) if self.keep else {}
        ends: dict[int, tuple[int, int]] = {}
        for name, axes in self.keep.items():
            if name not in tensors:
                raise PlanError(f"the plan cuts {name!r}, which {type(model).__name__} does not have")
            shape = tuple(tensors[name].shape)
            wanted = tuple(self.shapes.get(name, shape))
            if shape != wanted:
                raise PlanError(
                    f"the plan cuts {name!r}: expected shape {wanted} as in the model it was made "
                    f"for, got {shape}; apply it "
                    "to a freshly built model of the original widths"
                )
            for axis, indices in axes.items():
                if id(indices) not in ends:
                    ends[id(indices)] = (min(indices), max(indices)) if indices else (-1, -1)
                low, high = ends[id(indices)]
                bad = axis >= len(shape) or low < 0 or high >= shape[axis]
                if bad:
                    raise PlanError(
                        f"the plan cuts {name!r} along axis {axis}: indices do not fit shape {shape}"
                    )
        known = modules_of(model)
        for path in (*self.attributes, *self.rewrites):
            if path not in known:
                raise PlanError(
                    f"the plan sets widths of {path!r}, which {type(model).__name__} does not have"
                )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Cut a model of the original widths in place, and set its attributes; checked first, so all or nothing."""
        self.check(model)
        new: dict[int, torch.Tensor] = {}
        known: KnownIndices = {}
        tensors = tensors_of(model) if self.keep else {}
        for name, axes in self.keep.items():
            if id(tensors[name]) not in new:
                new[id(tensors[name])] = cut_tensor(tensors[name], axes, known)
        for name, tensor in tensors.items():
            if id(tensor) in new:
                module, leaf = owner(model, name)
                setattr(module, leaf, new[id(tensor)])
        modules = modules_of(model)
        for path, values in self.attributes.items():
            for key, value in values.items():
                set_attribute(modules[path], key, value)
        for path, items in self.rewrites.items():
            rewrite_(modules[path], items)
        for module in modules.values():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        return model


def set_attribute(module: nn.Module, key: str, value: object) -> None:
    """Set `a` or the entry `a.b` of an attribute that is itself an object (a configuration)."""
    target: Any = module
    *path, leaf = key.split(".")
    for part in path:
        target = getattr(target, part)
    setattr(target, leaf, value)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and the name it has there."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def cut_tensor(
    tensor: torch.Tensor, axes: Mapping[int, Kept], known: KnownIndices | None = None
) -> torch.Tensor:
    """The kept slices, as a parameter where it was one; its gradient is cut alike.

    `known` remembers indices as tensors between calls: many axes of a plan are cut by the same ones.
    """
    indices = {axis: _index(kept, tensor.device, known) for axis, kept in axes.items()}

    def cut(value: torch.Tensor) -> torch.Tensor:
        for axis, index in indices.items():
            value = value.index_select(axis, index)
        return value.contiguous()

    result = cut(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(result, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            parameter.grad = cut(tensor.grad.detach())
        return parameter
    return result


def _index(kept: Kept, device: torch.device, known: KnownIndices | None) -> torch.Tensor:
    key = id(kept), device
    index = None if known is None else known.get(key)
    if index is None:
        index = torch.as_tensor(np.asarray(kept), device=device)
        if known is not None:
            known[key] = index
    return index


def _runs(indices: Kept) -> list[int]:
    array = np.asarray(indices)
    starts = np.flatnonzero(np.r_[True, np.diff(array) != 1])
    stops = np.r_[starts[1:], array.size]
    return [int(v) for pair in zip(array[starts], stops - starts) for v in pair]


def _unruns(runs: list[int]) -> tuple[int, ...]:
    if len(runs) % 2 or sum(runs[1::2]) > 1 << 26 or any(length <= 0 for length in runs[1::2]):
        raise ValueError("indices are not runs of [first, length]")
    return tuple(
        i for first, length in zip(runs[::2], runs[1::2]) for i in range(int(first), int(first + length))
    )


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
