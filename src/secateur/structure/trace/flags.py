"""Flags: inputs that decide what runs; each is recorded the other way round as well.

A flag is true or false, or the name of a branch: a text that is a key of one of the model's dicts of modules or of
parameters. An argument of the forward that the example leaves out is a flag if its default is one, where arguments have
names (not those of `*args`, and not what a model finds in the one dict that it takes). At most 16 are tried.

Only a flag that makes a forward use parameters which it does not use otherwise is followed. One that asks for more
outputs (attention maps, a cache) is not: what it shows of a cut model is narrower, as it should be.

>>> import torch
>>> flipped((torch.zeros(2), {"deep": True}))
[(tensor([0., 0.]), {'deep': False})]
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from torch import nn

from secateur.execution.example import Example, with_defaults
from secateur.structure.trace.in_training import used_tensors
from secateur.structure.trace.trace import Trace, trace

__all__ = ["FlagRun", "flag_runs", "flipped"]

_Branches: TypeAlias = nn.ModuleDict | nn.ParameterDict
_MOST = 16
"""How many flags and names of branches are tried."""


@dataclass(frozen=True, eq=False)
class FlagRun:
    """The recording of a forward with one flag the other way round.

    Attributes:
        example: What it was called with.
        trace: The recording.
    """

    example: Example
    trace: Trace


def flipped(example: Example, model: nn.Module | None = None) -> list[Example]:
    """The example with one flag after the other turned round.

    Args:
        example: The example.
        model: The model whose branches can be named, and whose forward has defaults; None for none.

    >>> branches = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})
    >>> flipped((1, "a"), branches), flipped((1, "c"), branches)
    ([(1, 'b')], [])
    """
    branches = [each for each in model.modules() if isinstance(each, _Branches)] if model is not None else []
    return list(islice(_flipped(_all_said(example, model, branches), branches), _MOST))


def _others(value: object, branches: Sequence[_Branches]) -> Iterator[object]:
    """What a flag may be in place of this value; nothing where it is no flag."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.numel() == 1:
        yield ~value
    elif isinstance(value, str):
        keys = (key for each in branches if value in each for key in each)
        yield from (key for key in dict.fromkeys(keys) if key != value)


def _flipped(value: object, branches: Sequence[_Branches]) -> Iterator[object]:
    yield from _others(value, branches)
    if isinstance(value, Mapping) and type(value) is dict:
        for key, part in value.items():
            yield from ({**value, key: other} for other in _flipped(part, branches))
    elif type(value) in (tuple, list):
        parts = list(value)  # type: ignore[call-overload]
        for index, part in enumerate(parts):
            for other in _flipped(part, branches):
                yield type(value)([*parts[:index], other, *parts[index + 1 :]])  # type: ignore[call-arg]


def _all_said(example: Example, model: nn.Module | None, branches: Sequence[_Branches]) -> Example:
    """The example with the flags that it leaves to the forward's defaults, by name if there are any."""
    given, left = with_defaults(model, example)
    flags = {name: each for name, each in left.items() if any(True for _ in _others(each, branches))}
    return {**given, **flags} if flags else example


_KNOWN: weakref.WeakKeyDictionary[Trace, tuple[FlagRun, ...]] = weakref.WeakKeyDictionary()


def flag_runs(recorded: Trace, model: nn.Module, example: Example) -> tuple[FlagRun, ...]:
    """The flags with which a forward uses parameters that it does not use on the example.

    Args:
        recorded: The recording on the example.
        model: The model; it is not changed.
        example: The example.
    """
    if recorded not in _KNOWN:
        _KNOWN[recorded] = tuple(_flag_runs(recorded, model, example))
    return _KNOWN[recorded]


def _flag_runs(recorded: Trace, model: nn.Module, example: Example) -> Iterator[FlagRun]:
    idle = {name for name, ref in recorded.parameters.items() if ref.shape} - used_tensors(recorded)
    for each in flipped(example, model) if idle else ():
        found = trace(model, each, mode=recorded.mode, partial=True)
        if found.error is None and used_tensors(found) & idle:
            yield FlagRun(each, found)
