"""Widths that a module repeats and shows in its text, as `GCNConv(16, 32)` of graph networks does.

A layer inside the module has the weight and is cut; the module around it computes nothing with the number, and would
show the old one. `in_channels`, `out_channels`, `in_features` and `out_features` are set where the text of a module
shows them, no other method of its class reads them, and the tensors that enter the module (or leave it) got narrower.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FunctionType

import numpy as np
from torch import nn

from secateur.structure.cut.repair import integers, within
from secateur.structure.groups.couplings import Structure
from secateur.structure.trace.trace import TensorRef

__all__ = ["restated"]

_NAMES = frozenset({"in_channels", "out_channels", "in_features", "out_features"})
_TEXT = frozenset({"__repr__", "extra_repr", "__str__"})
_UNCOUNTED = _TEXT | {"__init__", "reset_parameters"}


def restated(
    structure: Structure, modules: Mapping[str, nn.Module], known: Collection[str], alive: np.ndarray
) -> dict[str, dict[str, int | tuple[int, ...]]]:
    """The widths that modules without a weight of their own repeat.

    Args:
        structure: The groups of the model.
        modules: Its modules by name, as they are before the cut.
        known: The names of modules whose widths follow from their own weights.
        alive: For every label whether it stays.

    Returns:
        New values by module and attribute.
    """
    found: dict[str, dict[str, int | tuple[int, ...]]] = {}
    shown: dict[type, set[str]] = {}
    for path, module in modules.items():
        kind = type(module)
        if kind not in shown:
            torchs = kind.__module__.partition(".")[0] == "torch"
            shown[kind] = set() if torchs else (_named(kind, True) - _named(kind, False)) & _NAMES
        if not shown[kind] or path in known:
            continue
        for name, old in integers(module):
            new = _passing(structure, path, name, old, alive) if name in shown[kind] else set()
            if len(new) == 1:
                found.setdefault(path, {})[name] = new.pop()
    return found


def _named(kind: type, text: bool) -> set[str]:
    """The names that the methods which make a module's text look up, or all of its other methods."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            break
        for key, value in vars(base).items():
            if isinstance(value, FunctionType) and (key in _TEXT if text else key not in _UNCOUNTED):
                found.update(_names(value.__code__))
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _passing(structure: Structure, path: str, name: str, old: int, alive: np.ndarray) -> set[int]:
    """What becomes of this size in the tensors that enter a module, or in those that its last operator gives."""
    ops = [op for op in structure.trace.ops if not path or within(op.path, (path,))]
    made = {ref.id for op in ops for ref in op.results()}
    refs: list[TensorRef] = [ref for op in ops[-1:] for ref in op.results()]
    if name.startswith("in_"):
        outside = [ref for op in ops for ref in op.refs() if ref.id not in made]
        refs = [ref for ref in outside if ref.role not in ("parameter", "buffer")]
    kept = [(ref.shape, structure.kept_shape(ref, alive)) for ref in refs]
    sizes = {
        after for was, now in kept if now is not None for before, after in zip(was, now) if before == old
    }
    return sizes - {old}
