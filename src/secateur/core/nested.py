"""Tensors in nested values: list them, or map a function over them.

A nested value is what models take and return: a tensor, or a tuple, list, mapping, named tuple or data class of nested
values, with anything else in between. Hugging Face outputs, which are both a mapping and a data class, are included.

>>> import torch
>>> value = {"a": (torch.tensor(1), "x"), "b": [torch.tensor(2)]}
>>> map_tensors(lambda t: t * 2, value)
{'a': (tensor(2), 'x'), 'b': [tensor(4)]}
>>> tensors_in(value)
[tensor(1), tensor(2)]
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch

from secateur.core.out_of_memory import raise_if_out_of_memory

__all__ = ["map_tensors", "tensors_in"]

T = TypeVar("T")


def map_tensors(function: Callable[[torch.Tensor], object], value: T) -> T:
    """The same nested value with every tensor replaced.

    The result has the type of the value as long as `function` returns tensors.

    Args:
        function: Called with each tensor, in order; its result takes the tensor's place.
        value: The nested value; it is not changed.

    Returns:
        A new nested value; values without tensors are passed on unchanged.
    """
    return cast(T, _mapped(function, value))


def _mapped(function: Callable[[torch.Tensor], object], value: object) -> object:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple):
        return _tuple_of(type(value), [_mapped(function, item) for item in value])
    if isinstance(value, list):
        return [_mapped(function, item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shell = copy.copy(value)
        for part in dataclasses.fields(value):
            changed = _mapped(function, getattr(value, part.name))
            object.__setattr__(shell, part.name, changed)
            if isinstance(shell, dict) and part.name in shell:  # a Hugging Face output is a dict as well
                dict.__setitem__(shell, part.name, changed)
        return shell
    if isinstance(value, Mapping):
        named = {key: _mapped(function, item) for key, item in value.items()}
        return named if type(value) is dict else _mapping_of(type(value), named)
    return value


def _tuple_of(kind: type, items: list[object]) -> tuple[object, ...]:
    """The items as a tuple of this kind: plain, named, or one of torch's own (`torch.Size`, `torch.return_types`)."""
    if kind is tuple:
        return tuple(items)
    if hasattr(kind, "_fields"):
        return cast("tuple[object, ...]", kind(*items))
    try:
        return cast("tuple[object, ...]", kind(items))
    except TypeError:
        return tuple(items)


def _mapping_of(kind: type, named: dict[object, object]) -> Mapping[object, object]:
    """The entries as a mapping of this kind; a plain dict where its constructor takes no mapping."""
    try:
        return cast("Mapping[object, object]", kind(named))
    except Exception as error:  # a constructor of a user's own may want anything
        raise_if_out_of_memory(error)
        return named


def tensors_in(value: object) -> list[torch.Tensor]:
    """Every tensor of a nested value, in order.

    Args:
        value: The nested value.

    Returns:
        The tensors themselves, not copies.
    """
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found
