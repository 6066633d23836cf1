"""`copy_module`: a copy of a module tree as `copy.deepcopy` makes it, in less time.

A module holds many small dicts, numbers and flags. `copy.deepcopy` copies them one by one, which takes longer than
the cut itself. Modules whose class does not define its own copying are assembled here; the others go to
`copy.deepcopy`, with the same memo.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
>>> weight = nn.Parameter(torch.zeros(1, 2))
>>> copied = copy_module(model, {id(model[0].weight): weight})
>>> copied[0].weight is weight, torch.equal(copied[0].bias, model[0].bias), copied[1] is model[1]
(True, True, False)
"""

from __future__ import annotations

import copy
import copyreg
import gc
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["collector_paused", "copy_module", "is_atom", "modules_of", "tensors_of"]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype})


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector for a block.

    While many lasting small objects are made, a full collection finds nothing and takes longer than the work itself.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


def is_atom(value: Any) -> bool:
    """Whether a value is a plain number, text or the like: it holds no tensor and is never copied."""
    return type(value) in _ATOMS


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name it has, in the order of `named_modules(remove_duplicate=False)`.

    >>> list(modules_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())))
    ['', '0', '0.0', '1']
    """
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        found[name] = module
        start = name + "." if name else ""
        for key, child in module._modules.items():
            if child is not None:
                walk(child, start + key)

    walk(model, "")
    return found


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, then every buffer, by every name it has.

    >>> list(tensors_of(nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2, bias=False))))
    ['1.weight', '0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    modules = modules_of(model)
    found: dict[str, torch.Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for path, module in modules.items():
            start = path + "." if path else ""
            for key, tensor in vars(module)[kind].items():
                if tensor is not None:
                    found[start + key] = tensor
    return found


def copy_module(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """The same as `copy.deepcopy(model, memo)`."""
    known = memo.get(id(model))
    if known is not None:
        return known
    kind = type(model)
    if not _plainly_copied(kind) or "__deepcopy__" in vars(model) or "__reduce_ex__" in vars(model):
        return copy.deepcopy(model, memo)
    twin = kind.__new__(kind)
    memo[id(model)] = twin
    state: dict[str, Any] = {}
    for key, value in model.__getstate__().items():
        inner = type(value)
        if inner in _ATOMS:
            state[key] = value
        elif (inner is OrderedDict or inner is dict) and not value and id(value) not in memo:
            state[key] = memo[id(value)] = inner()
        else:
            state[key] = _part(value, memo)
    twin.__setstate__(state)
    return twin


_PLAIN: dict[type, bool] = {}


def _plainly_copied(kind: type) -> bool:
    """Whether a class leaves copying to Python and, for the state, to `nn.Module` or torch's own layers."""
    known = _PLAIN.get(kind)
    if known is None:
        known = _PLAIN[kind] = (
            not hasattr(kind, "__deepcopy__")
            and kind.__reduce_ex__ is object.__reduce_ex__  # type: ignore[comparison-overlap]
            and kind.__reduce__ is object.__reduce__  # type: ignore[comparison-overlap]
            and kind.__getstate__ in (nn.Module.__getstate__, object.__getstate__)  # type: ignore[comparison-overlap]
            and not hasattr(kind, "__getnewargs__")
            and not hasattr(kind, "__getnewargs_ex__")
            and kind.__new__ is object.__new__  # type: ignore[comparison-overlap]
            and not any(vars(base).get("__slots__") for base in kind.__mro__)
            and kind not in copyreg.dispatch_table
        )
    return known


def _part(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict or kind is OrderedDict:
        copied: Any = kind()
        memo[id(value)] = copied
        for key, item in value.items():
            copied[key if type(key) in _ATOMS else copy.deepcopy(key, memo)] = _part(item, memo)
        return copied
    if isinstance(value, nn.Module):
        return copy_module(value, memo)
    return copy.deepcopy(value, memo)
