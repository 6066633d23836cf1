"""Rules: the effect of every operator on the labels of its inputs. One function for each, a file for each family.

A rule takes the `Follower` and the recorded `Op` and gives the layouts of the outputs, in order. An operator without a
rule locks whatever labels reach it, by name, so nothing is ever cut that was not followed.

>>> known = table()
>>> known["convolution"].__name__, known["relu"].__name__
('convolution', 'keeps_zero')
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from secateur.structure.groups.labels import Field, Labels, Layout
from secateur.structure.trace.trace import Op, TensorRef, Trace

__all__ = ["LAYERS", "Follower", "Layout", "Op", "Rule", "follow", "keeps_zero", "markdown", "rule", "table"]

Rule = Callable[["Follower", Op], "Layout | Sequence[Layout]"]

_VIEWS = frozenset(
    [
        "t",
        "transpose",
        "permute",
        "view",
        "_unsafe_view",
        "reshape",
        "expand",
        "clone",
        "_to_copy",
        "detach",
        "alias",
        "unsqueeze",
        "select",
        "index",
    ]
)
LAYERS = frozenset(
    ["mm", "addmm", "linear", "convolution", "_convolution", "bmm", "baddbmm", "_grouped_mm", "grouped_mm"]
)
"""Operators with which a layer's weight maps input channels to output channels."""
_RULES: dict[str, Rule] = {}
_loaded = False


if not TYPE_CHECKING:

    def __getattr__(
        name: str,
    ) -> Rule:  # a rule's own file imports this one, so it is imported when first used
        if name == "keeps_zero":
            return importlib.import_module(f"{__name__}.elementwise").keeps_zero
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators (names without `aten::`)."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def table() -> dict[str, Rule]:
    """Every operator that can be followed and its rule."""
    global _loaded
    if not _loaded:
        for module in pkgutil.iter_modules(__path__):
            if module.name == "__main__":
                continue
            importlib.import_module(f"{__name__}.{module.name}")
        _loaded = True
    return _RULES


def markdown() -> str:
    """The table of all rules, by family, as docs/operators.md holds it."""
    known = table()
    families: dict[str, dict[Rule, list[str]]] = {}
    for name, function in known.items():
        family = function.__module__.rpartition(".")[2]
        families.setdefault(family, {}).setdefault(function, []).append(name)
    lines = [
        "# Operators",
        "",
        "Written by `python -m secateur.structure.groups.rules`. Shrinking follows every axis through these operators, "
        "position by position.",
        "An operator that is not here, and is not element-wise, locks whatever channels reach it; `sc.explain` "
        "names it.",
    ]
    for family in sorted(families):
        opening = (importlib.import_module(f"{__name__}.{family}").__doc__ or "").splitlines()[0]
        lines += [
            "",
            f"## {family}",
            "",
            opening,
            "",
            "| operators | what happens to the channels |",
            "|---|---|",
        ]
        for function, names in families[family].items():
            shown = ", ".join(f"`{name}`" for name in sorted(names) if not name.startswith("_pointwise"))
            lines.append(f"| {shown} | {(function.__doc__ or '').splitlines()[0]} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, eq=False)
class Counted:
    """An operator that divides by the length of an axis: after a cut it must still divide by the old length.

    This is done for channels inside a block, with `anywhere` for all; those of a stream are locked, for `reason`.
    """

    labels: np.ndarray
    op: Op
    function: str
    reason: str
    anywhere: bool = False
    axis: int | None = None


class Follower:
    """Walks a trace and gives every tensor its layout."""

    def __init__(self, trace: Trace, labels: Labels | None = None, across_norm: bool = False):
        self.trace = trace
        self.labels = labels or Labels()
        self.layouts: dict[int, Layout] = {}
        self.grouped: dict[str, str] = {}
        self.across_norm = across_norm
        self.plain: dict[int, str] = {ref.id: ref.name for ref in trace.parameters.values()}
        self.entered: list[np.ndarray] = []
        self.emitted: list[np.ndarray] = []
        self.heads: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        self.met: list[tuple[np.ndarray, Op]] = []
        self.counted: list[Counted] = []
        self.unmasked: set[tuple[str, int]] = set()
        self.crossed: list[tuple[str, str]] = []

    def of(self, ref: TensorRef | None) -> Layout:
        """The layout of a tensor; one without labels if nothing is known of it."""
        if ref is None:
            return Layout(())
        found = self.layouts.get(ref.id)
        return Layout(ref.shape) if found is None else found

    def lock_all(self, refs: Sequence[TensorRef], reason: str) -> None:
        """Lock every label of these tensors."""
        for ref in refs:
            for field in self.of(ref).fields:
                self.labels.lock(field.labels, reason)

    def read(self, op: Op) -> bool:
        """Whether another operator reads a result of this one, or the model puts it out."""
        return any(ref.id in self._read for ref in op.results())

    @cached_property
    def _read(self) -> set[int]:
        """The tensors that operators read, and the model's outputs."""
        return {ref.id for op in self.trace.ops for ref in op.refs()} | {ref.id for ref in self.trace.outputs}

    def enters(self, ref: TensorRef, axis: int) -> None:
        """Note that a parameter is summed over along an axis: there its inputs come in."""
        if ref.id in self.plain:
            field = self.of(ref).at(axis)
            if field is not None:
                self.entered.append(field.labels.reshape(-1))

    def _layouts_after(
        self, op: Op, results: Sequence[TensorRef], rules: Mapping[str, Rule]
    ) -> Sequence[Layout]:
        """The layouts of an operator's results, by its rule; without a rule all labels that reach it are locked."""
        known = rules.get(op.name)
        if known is None and torch.Tag.pointwise in op.overload.tags:
            known = rules["_pointwise"]
        if known is None:
            self.lock_all(
                [ref for ref in op.refs() if self.of(ref).fields], f"the operator {op.name} has no rule"
            )
            return [Layout(ref.shape) for ref in results]
        found = known(self, op)
        return [found] if isinstance(found, Layout) else found

    def run(self) -> None:
        """Follow every operator of the trace."""
        rules = table()
        labels = self.labels
        for op in self.trace.ops:
            labels.op, labels.operator, labels.path = op.index, op.name, op.path
            results = op.results()
            for ref, layout in zip(results, self._layouts_after(op, results, rules)):
                if layout.fields and layout.shape != ref.shape:
                    raise AssertionError(f"rule of {op.name}: expected {ref.shape}, got {layout.shape}")
                self.layouts[ref.id] = layout
            source = op.args[0] if op.args else None
            if op.name in _VIEWS and isinstance(source, TensorRef) and source.id in self.plain:
                self.plain[results[0].id] = self.plain[source.id]
        labels.op, labels.operator, labels.path = -1, "", ""
        for ref in self.trace.outputs:
            labels.operator = "output"
            self.lock_all([ref], "the model's output")
        labels.operator = ""


def parameter_layout(labels: Labels, ref: TensorRef) -> Layout:
    """Every axis of a parameter, or of a floating buffer, gets labels of its own."""
    if ref.role == "buffer" and not (ref.dtype.is_floating_point or ref.dtype.is_complex):
        return Layout(ref.shape)
    weak = 1 if ref.role == "buffer" else 0
    fields = tuple(
        Field((axis,), labels.fresh(size), weak=weak) for axis, size in enumerate(ref.shape) if size > 1
    )
    return Layout(ref.shape, fields)


def follow(trace: Trace, across_norm: bool = False, labels: Labels | None = None) -> Follower:
    """Give every parameter axis its labels and follow them through the trace."""
    follower = Follower(trace, labels, across_norm)
    for ref in trace.parameters.values():
        follower.layouts[ref.id] = parameter_layout(follower.labels, ref)
    follower.run()
    return follower
