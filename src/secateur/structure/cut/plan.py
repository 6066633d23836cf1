"""`ShrinkPlan`: a cut as plain data. It is stored as JSON and cuts any freshly built model of the same class.

>>> import torch
>>> from torch import nn
>>> plan = ShrinkPlan(keep={"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)}}, attributes={"0": {"out_features": 2}})
>>> plan.apply_(nn.Sequential(nn.Linear(4, 3)))[0]
Linear(in_features=4, out_features=2, bias=True)
>>> ShrinkPlan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from secateur.compensation.low_rank import replace_
from secateur.core.cut_mark import layers_kept, mark_cut, shapes_before, unmark_cut
from secateur.core.json_text import are_counts, is_count, parse
from secateur.errors import PlanError, SecateurError
from secateur.execution.fast_copy import modules_of, tensors_of
from secateur.structure.cut.attributes import AttributeValue, check_attribute, set_attributes_
from secateur.structure.cut.rewrite import RewrittenClass, rewrite_
from secateur.structure.cut.rewrite_data import Rewrite, check_rewrites, one_after_the_other
from secateur.structure.cut.runs import Runs, runs_of
from secateur.structure.depth.entries import (
    check_entries,
    entries_then,
    kept_positions,
    name_after,
    take_out_,
)
from secateur.structure.proof import ProofDomain

__all__ = ["ShrinkPlan", "cut_tensor", "mark_model", "owner"]

VERSION = 1
DEPTH_VERSION = 2
"""The version of plans that remove layers; earlier readers refuse it."""
_Value = TypeVar("_Value")


Kept = Sequence[int] | np.ndarray
"""The indices of an axis that remain."""
KnownIndices = dict[tuple[int, torch.device], torch.Tensor]
"""Indices as tensors, by the identity of the sequence they come from and their device."""


@dataclass(frozen=True)
class ShrinkPlan:
    """A cut as plain data.

    A plan from a file is not trusted: applied to a model it cuts tensors and decreases widths, and anything else is
    refused before the model is changed.

    Attributes:
        keep: `keep[name][axis]` are the indices of a tensor's axis that remain, ascending.
        attributes: `attributes[module]` are the widths to set on a module, or fields of the model's configuration.
        rewrites: `rewrites[module]` are the calls in a module's forward whose sizes are replaced.
        shapes: The shape of every tensor before it is cut.
        model: The name of the model's class.
        proof: For which shapes and modes the cut model was proved equal, if it was.
        layers: `layers[container]` are the keys of the entries of an `nn.Sequential` or `nn.ModuleList` that remain,
            which are renumbered. Containers have the names of the model before; all other names in the plan are those
            that the model has without the other entries.
        factors: `factors[layer]` is the rank of a layer that is replaced by two smaller ones; done before everything
            else.
        spatial: Those of `factors` that become one convolution along the height and one along the width.
    """

    keep: Mapping[str, Mapping[int, Sequence[int]]]
    attributes: Mapping[str, Mapping[str, AttributeValue]] = field(default_factory=dict)
    rewrites: Mapping[str, tuple[Rewrite, ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = ""
    proof: ProofDomain | None = None
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    factors: Mapping[str, int] = field(default_factory=dict)
    spatial: Sequence[str] = ()

    @property
    def only_factors(self) -> bool:
        """Whether the plan factorises layers and cuts nothing."""
        return bool(self.factors) and not (self.keep or self.layers or self.attributes or self.rewrites)

    def to_dict(self) -> dict[str, object]:
        """Plain data. Indices are stored as runs [first, length, first, length, ...]."""
        data: dict[str, object] = {
            "format": "secateur-plan",
            "version": DEPTH_VERSION if self.layers else VERSION,
            "model": self.model,
            "keep": {
                name: {str(axis): runs_of(indices) for axis, indices in axes.items()}
                for name, axes in self.keep.items()
            },
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "attributes": {path: dict(values) for path, values in self.attributes.items()},
            "rewrites": {path: [item.to_dict() for item in items] for path, items in self.rewrites.items()},
        }
        if self.proof is not None:
            data["proof"] = self.proof.to_dict()
        if self.layers:
            data["layers"] = {path: list(keys) for path, keys in self.layers.items()}
        if self.factors:
            data["factors"] = dict(self.factors)
        if self.spatial:
            data["spatial"] = list(self.spatial)
        return data

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_dict(cls, data: object) -> ShrinkPlan:
        """The inverse of `to_dict`, checked.

        Args:
            data: A plan as plain data.

        Raises:
            PlanError: The data is not a plan, or one of another version.
        """
        if not isinstance(data, Mapping) or data.get("format") != "secateur-plan":
            raise PlanError("expected a plan written by secateur (format=secateur-plan), got something else")
        version = DEPTH_VERSION if "layers" in data else VERSION
        if data.get("version") != version:
            raise PlanError(
                f"expected version {version} of secateur-plan, got {str(data.get('version'))[:80]!r}; write it "
                f"again with this version"
            )
        known: dict[tuple[int, ...], Runs] = {}
        try:
            return cls(
                keep=_each(data["keep"], lambda axes: _kept_axes(axes, known)),
                attributes=_each(data["attributes"], _plain_values),
                rewrites=_each(data["rewrites"], _rewrites),
                shapes=_each(data["shapes"], _shape),
                model=str(data.get("model", "")),
                proof=ProofDomain.from_dict(data["proof"]) if "proof" in data else None,
                factors=_each(data.get("factors", {}), _rank),
                spatial=_spatial(data.get("spatial", []), data.get("factors", {})),
                layers=_each(data.get("layers", {}), _keys),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"a damaged plan: {type(error).__name__}: {str(error)[:200]}") from error

    @classmethod
    def from_json(cls, text: str) -> ShrinkPlan:
        """The inverse of `to_json`.

        Args:
            text: The plan, as JSON.

        Raises:
            PlanError: The text is not a plan.
        """
        return cls.from_dict(parse(text, "a plan", PlanError))

    def then(self, second: ShrinkPlan) -> ShrinkPlan:
        """One plan for two cuts made one after the other; it cuts the model that this plan was made for.

        Args:
            second: The plan of a model that this plan had cut.

        Returns:
            A plan that cuts a model of the original widths as both did in turn.

        Raises:
            PlanError: The second plan was made for a model of other widths than this plan leaves.

        >>> first = ShrinkPlan(keep={"weight": {0: (0, 2, 3)}}, shapes={"weight": (4, 2)})
        >>> second = ShrinkPlan(keep={"weight": {0: (1, 2), 1: (0,)}}, shapes={"weight": (3, 2)})
        >>> first.then(second).keep
        {'weight': {0: (2, 3), 1: (0,)}}
        """
        factors = self._factors_then(second)
        out = second.layers
        keep = {name: dict(axes) for name, axes in _renamed(self.keep, out).items()}
        mine_shapes = _renamed(self.shapes, out)
        known: dict[tuple[int, int], tuple[int, ...]] = {}
        for name, axes in second.keep.items():
            self._check_left(name, keep.get(name, {}), mine_shapes.get(name), second.shapes.get(name))
            mine = keep.setdefault(name, {})
            for axis, kept in axes.items():
                before = mine.get(axis)
                if before is None:
                    mine[axis] = kept
                    continue
                key = id(before), id(kept)
                if key not in known:
                    known[key] = tuple(np.asarray(before)[np.asarray(kept)].tolist())
                mine[axis] = known[key]
        attributes = {path: dict(values) for path, values in _renamed(self.attributes, out).items()}
        for path, values in second.attributes.items():
            attributes.setdefault(path, {}).update(values)
        replaced = _renamed(self.rewrites, out)
        rewrites = dict(replaced)
        for path, items in second.rewrites.items():
            rewrites[path] = one_after_the_other(replaced.get(path, ()), items)
        shapes = {**second.shapes, **mine_shapes}
        layers = entries_then(self.layers, out) if out else self.layers
        return ShrinkPlan(
            keep,
            attributes,
            rewrites,
            shapes,
            self.model or second.model,
            layers=layers,
            factors=factors,
            spatial=(*self.spatial, *second.spatial),
        )

    def _factors_then(self, second: ShrinkPlan) -> dict[str, int]:
        """The layers that both plans factorise; a `PlanError` if the second would factorise a layer that was cut
        before.
        """
        first_cuts = bool(self.keep or self.layers or self.attributes or self.rewrites)
        again = [name for name in second.factors if name.rpartition(".")[0] in self.factors]
        if second.factors and (first_cuts or again):
            name = again[0] if again else next(iter(second.factors))
            raise PlanError(
                f"the second plan factorises {name!r} of a model that the first has changed; "
                "factorise first, then prune and shrink"
            )
        return {**self.factors, **second.factors}

    @staticmethod
    def _check_left(
        name: str,
        axes: Mapping[int, Sequence[int]],
        shape: Sequence[int] | None,
        wanted: Sequence[int] | None,
    ) -> None:
        """Raise a `PlanError` unless a tensor of this shape has the shape wanted once cut, as far as both are known."""
        if shape is None or wanted is None:
            return
        left = tuple(len(axes.get(axis, range(size))) for axis, size in enumerate(shape))
        if left != tuple(wanted):
            raise PlanError(
                f"the second plan cuts {name!r} of shape {tuple(wanted)}, and the first leaves {left}; join plans in "
                "the order in which they were made, each for the model that the one before left"
            )

    def width(self, name: str, axis: int, before: int) -> int:
        """How long an axis is once cut.

        Args:
            name: The tensor.
            axis: Its axis.
            before: How long the axis is now.
        """
        return len(self.keep.get(name, {}).get(axis, range(before)))

    def shape_after(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor once it is cut; of one whose shape the plan holds.

        Args:
            name: The tensor.

        >>> ShrinkPlan(keep={"weight": {0: (0, 2)}}, shapes={"weight": (4, 3)}).shape_after("weight")
        (2, 3)
        """
        return tuple(self.width(name, axis, size) for axis, size in enumerate(self.shapes[name]))

    def name_after(self, name: str) -> str | None:
        """The name of a tensor or module once the plan's layers are removed; None if it is removed with them.

        Args:
            name: Its name in the model before.

        >>> ShrinkPlan(keep={}, layers={"blocks": ("0", "2")}).name_after("blocks.2.weight")
        'blocks.1.weight'
        """
        return name_after(name, self.layers)

    def check(self, model: nn.Module) -> None:
        """Raise a `PlanError` unless every parameter named has the shape it had when the plan was made."""
        if self.factors:
            replace(self, factors={}, spatial=()).check(
                _factorised(copy.deepcopy(model), self.factors, self.spatial)
            )
            return
        check_entries(model, self.layers)
        tensors = _renamed(tensors_of(model), self.layers) if self.keep else {}
        ends: dict[int, tuple[int, int]] = {}
        for name, axes in self.keep.items():
            if name not in tensors:
                raise PlanError(self._not_there(f"the plan cuts {name!r}", model))
            shape = tuple(tensors[name].shape)
            wanted = tuple(self.shapes.get(name, shape))
            if shape != wanted:
                raise PlanError(
                    f"the plan cuts {name!r}: expected shape {wanted} as in the model it was made "
                    f"for, got {shape}; apply it "
                    "to a freshly built model of the original widths. Plans of a model that was shrunk several times "
                    "are joined first: first.then(second)"
                )
            for axis, indices in axes.items():
                if id(indices) not in ends:
                    ends[id(indices)] = _ends(indices)
                low, high = ends[id(indices)]
                fits = 0 <= axis < len(shape) and low >= 0 and high < shape[axis]
                if not fits or len(indices) > shape[axis]:
                    raise PlanError(
                        f"the plan cuts {name!r} along axis {axis}: indices do not fit shape {shape}"
                    )
        known = _renamed(modules_of(model), self.layers)
        for path in (*self.attributes, *self.rewrites):
            if path not in known:
                raise PlanError(self._not_there(f"the plan sets widths of {path!r}", model))
        for path, values in self.attributes.items():
            for key, value in values.items():
                check_attribute(path, known[path], key, value)
        for path, items in self.rewrites.items():
            check_rewrites(path, known[path], items)

    def _not_there(self, what: str, model: nn.Module) -> str:
        """The text for a model that lacks what the plan names."""
        made_for = f"{self.model}, " if self.model else ""
        return (
            f"{what}, which {type(model).__name__} does not have; build the class that was shrunk ({made_for}at its "
            "original widths), and load into that"
        )

    @torch.no_grad()
    def apply_(
        self, model: nn.Module, classes: dict[tuple[object, ...], RewrittenClass] | None = None
    ) -> nn.Module:
        """Cut a model of the original widths in place, and set its widths; checked first, so all or nothing.

        Args:
            model: A freshly built model of the class the plan was made for.
            classes: The rewritten classes of other copies of it, which are recorded and then discarded; None gives
                the model classes of its own.

        Returns:
            The same model.

        Raises:
            PlanError: The plan does not fit the model, or asks for something that no plan may do.
        """
        self.check(model)
        if self.factors:
            done = _factorised(model, self.factors, self.spatial)
            mark_model(done, self, done)
            return replace(self, factors={}, spatial=()).apply_(done)
        lengths = kept_positions(model, self.layers)
        take_out_(model, self.layers)
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
        set_attributes_(model, modules, self.attributes, lengths)
        classes = {} if classes is None else classes
        for path, items in self.rewrites.items():
            rewrite_(modules[path], items, classes)
        for module in modules.values():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        if self.keep or self.layers:
            mark_model(model, self, model)
        return model


def mark_model(model: nn.Module, plan: ShrinkPlan, before: nn.Module) -> None:
    """Mark a model as cut by a plan, unless its configuration states the new widths.

    Args:
        model: The model after the cut.
        plan: The plan.
        before: The model before the cut, with the mark of earlier ones; the same one where it was cut in place.
    """
    if any(name.startswith("config.") for name in plan.attributes.get("", {})):
        unmark_cut(model)
    else:
        earlier = shapes_before(before)
        layers = entries_then(layers_kept(before), plan.layers)
        mark_cut(model, earlier and _renamed(earlier, plan.layers), plan.shapes, layers)


def _factorised(model: nn.Module, ranks: Mapping[str, int], spatial: Sequence[str]) -> nn.Module:
    """The model with two layers for each that a plan factorises; a `PlanError` if that is not possible."""
    try:
        return replace_(model, ranks, spatial)
    except SecateurError as error:
        raise PlanError(f"the plan factorises what {type(model).__name__} does not have: {error}") from error


def _rank(value: object) -> int:
    """A rank, as far as it can be checked without the model."""
    if not is_count(value) or value == 0:
        raise ValueError(f"expected a whole number of at least 1 as a rank, got {str(value)[:80]!r}")
    return value  # type: ignore[return-value]


def _spatial(data: object, factors: object) -> tuple[str, ...]:
    """The layers in the spatial form: each one that is factorised."""
    if (
        not isinstance(data, list)
        or not isinstance(factors, Mapping)
        or not all(isinstance(name, str) and name in factors for name in data)
    ):
        raise ValueError("expected the layers in the spatial form as a list of names in factors")
    return tuple(data)


def _each(data: object, read: Callable[[object], _Value]) -> dict[str, _Value]:
    if not isinstance(data, Mapping):
        raise TypeError(f"expected an object, got {type(data).__name__}")
    return {str(name): read(value) for name, value in data.items()}


def _renamed(named: Mapping[str, _Value], layers: Mapping[str, Sequence[str]]) -> dict[str, _Value]:
    """Entries by tensor or module, renamed for the model without the removed layers; those of removed ones are left
    out.
    """
    if not layers:
        return dict(named)
    after = {name: name_after(name, layers) if name else "" for name in named}
    return {new: named[name] for name, new in after.items() if new is not None}


def _keys(data: object) -> tuple[str, ...]:
    """The keys of the entries that remain."""
    if not isinstance(data, list) or not all(isinstance(key, str) and key and "." not in key for key in data):
        raise ValueError("expected the layers that remain as a list of keys")
    return tuple(data)


def _kept_axes(data: object, known: dict[tuple[int, ...], Runs]) -> dict[int, Runs]:
    return {int(axis): runs for axis, runs in _each(data, lambda runs: Runs.parse(runs, known)).items()}


def _plain_values(data: object) -> dict[str, AttributeValue]:
    return _each(data, _plain_value)


def _plain_value(value: object) -> AttributeValue:
    """A value that an attribute may have, lists of whole numbers as tuples."""
    if isinstance(value, list) and are_counts(value):
        return tuple(value)
    if is_count(value) or isinstance(value, dict):
        return value  # type: ignore[return-value]
    raise ValueError(f"expected a whole number or a list of them as a width, got {str(value)[:80]!r}")


def _rewrites(data: object) -> tuple[Rewrite, ...]:
    if not isinstance(data, list):
        raise TypeError(f"expected a list of calls, got {type(data).__name__}")
    return tuple(Rewrite.from_dict(item) for item in data)


def _shape(data: object) -> tuple[int, ...]:
    if not isinstance(data, list) or not are_counts(data):
        raise ValueError("expected a shape as a list of whole numbers")
    return tuple(data)


def _ends(indices: Sequence[int]) -> tuple[int, int]:
    """The lowest and the highest of indices; (0, -1) of none."""
    if not len(indices):
        return 0, -1
    return (indices[0], indices[-1]) if isinstance(indices, Runs) else (min(indices), max(indices))


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
        return value.contiguous(memory_format=kept_format)

    kept_format = _format_of(tensor)
    result = cut(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(result, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            parameter.grad = cut(tensor.grad.detach())
        return parameter
    return result


def _format_of(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format of a tensor: channels last or contiguous."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


def _index(kept: Kept, device: torch.device, known: KnownIndices | None) -> torch.Tensor:
    key = id(kept), device
    index = None if known is None else known.get(key)
    if index is None:
        index = torch.as_tensor(np.asarray(kept), device=device)
        if known is not None:
            known[key] = index
    return index
