"""Flags: inputs that are true or false and decide what runs; each is recorded the other way round as well.

Only a flag that makes a forward use parameters which it does not use otherwise is followed. One that asks for more
outputs (attention maps, a cache) is not: what it shows of a cut model is narrower, as it should be.

>>> import torch
>>> flipped((torch.zeros(2), {"deep": True}))
[(tensor([0., 0.]), {'deep': False})]
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from secateur.execution.example import Example
from secateur.structure.trace.in_training import used_tensors
from secateur.structure.trace.trace import Trace, trace

__all__ = ["FlagRun", "flag_runs", "flipped"]

_MOST = 4
"""How many flags of an example are tried."""


@dataclass(frozen=True, eq=False)
class FlagRun:
    """The recording of a forward with one flag the other way round.

    Attributes:
        example: What it was called with.
        trace: The recording.
    """

    example: Example
    trace: Trace


def flipped(example: Example) -> list[Example]:
    """The example with one flag after the other turned round: booleans, and tensors of one boolean.

    Args:
        example: The example.
    """
    return list(islice(_flipped(example), _MOST))


def _flipped(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, torch.Tensor):
        if value.dtype == torch.bool and value.numel() == 1:
            yield ~value
    elif isinstance(value, Mapping) and type(value) is dict:
        for key, part in value.items():
            yield from ({**value, key: other} for other in _flipped(part))
    elif type(value) in (tuple, list):
        parts = list(value)  # type: ignore[call-overload]
        for index, part in enumerate(parts):
            for other in _flipped(part):
                yield type(value)([*parts[:index], other, *parts[index + 1 :]])  # type: ignore[call-arg]


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
    for each in flipped(example) if idle else ():
        found = trace(model, each, mode=recorded.mode, partial=True)
        if found.error is None and used_tensors(found) & idle:
            yield FlagRun(each, found)
