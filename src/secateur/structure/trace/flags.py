"""Flags: inputs that decide what runs; each is recorded the other way round as well.

A flag is true or false, or the name of a branch: a text that is a key of one of the model's dicts of modules or of
parameters. An argument of the forward that the example leaves out is a flag if its default is one, where arguments have
names (not those of `*args`, and not what a model finds in the one dict that it takes). At most 16 are tried.

Only a flag that makes a forward use parameters or buffers which it does not use otherwise is followed: they are cut
with the rest, so that the model runs either way, also where `ProofOptions(other_shapes=False)` proves neither. One that
asks for more outputs (attention maps, a cache) is not: what it shows of a cut model is narrower, as it should be.

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

from secateur.execution.example import Example, call_arguments, with_defaults
from secateur.structure.trace.in_training import used_tensors
from secateur.structure.trace.trace import Trace, trace

__all__ = ["FlagRun", "flag_runs", "flipped", "ways"]

_Branches: TypeAlias = nn.ModuleDict | nn.ParameterDict
_MOST = 16
"""How many flags and names of branches are tried."""


@dataclass(frozen=True, eq=False)
class FlagRun:
    """The recording of a forward with one flag the other way round.

    Attributes:
        example: What it was called with.
        trace: The recording.
        said: The flag and its value there, such as "deep=True".
    """

    example: Example
    trace: Trace
    said: str


def flipped(example: Example, model: nn.Module | None = None) -> list[Example]:
    """The example with one flag after the other turned round.

    Args:
        example: The example.
        model: The model whose branches can be named, and whose forward has defaults; None for none.

    >>> branches = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})
    >>> flipped((1, "a"), branches), flipped((1, "c"), branches)
    ([(1, 'b')], [])
    """
    return [each for each, _ in ways(example, model)]


def ways(example: Example, model: nn.Module | None) -> Iterator[tuple[Example, str]]:
    """The example with one flag after the other turned round, and the flag and its value in words."""
    branches = [each for each in model.modules() if isinstance(each, _Branches)] if model is not None else []
    whole = _all_said(example, model, branches)
    _, named = call_arguments(whole)
    alone = not named and type(whole) is not tuple
    names = [*named, *with_defaults(model, example)[0]]
    for place, value, made in islice(_flipped(whole, branches), _MOST):
        yield made, _said((0, *place) if alone else place, value, names)


def _said(place: tuple[object, ...], value: object, names: Sequence[str]) -> str:
    """A flag and its value in words, with the name of its argument where that is known.

    >>> _said((1,), True, ["x", "deep"]), _said(("x", "deep"), True, []), _said((2,), False, [])
    ('deep=True', "x['deep']=True", 'argument 3=False')
    """
    first, *rest = place
    name = first
    if isinstance(first, int):
        name = names[first] if first < len(names) else f"argument {first + 1}"
    return f"{name}{''.join(f'[{key!r}]' for key in rest)}={value!r}"


def _others(value: object, branches: Sequence[_Branches]) -> Iterator[object]:
    """What a flag may be in place of this value; nothing where it is no flag."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.numel() == 1:
        yield ~value
    elif isinstance(value, str):
        keys = (key for each in branches if value in each for key in each)
        yield from (key for key in dict.fromkeys(keys) if key != value)


def _flipped(
    value: object, branches: Sequence[_Branches], place: tuple[object, ...] = ()
) -> Iterator[tuple[tuple[object, ...], object, object]]:
    """(the place of a flag, what it is in place of its value, the whole with it) for each flag inside a value."""
    yield from ((place, other, other) for other in _others(value, branches))
    if isinstance(value, Mapping) and type(value) is dict:
        for key, part in value.items():
            for at, other, made in _flipped(part, branches, (*place, key)):
                yield at, other, {**value, key: made}
    elif type(value) in (tuple, list):
        parts = list(value)  # type: ignore[call-overload]
        for index, part in enumerate(parts):
            for at, other, made in _flipped(part, branches, (*place, index)):
                yield at, other, type(value)([*parts[:index], made, *parts[index + 1 :]])  # type: ignore[call-arg]


def _all_said(example: Example, model: nn.Module | None, branches: Sequence[_Branches]) -> Example:
    """The example with the flags that it leaves to the forward's defaults, by name if there are any."""
    given, left = with_defaults(model, example)
    flags = {name: each for name, each in left.items() if any(True for _ in _others(each, branches))}
    return {**given, **flags} if flags else example


_KNOWN: weakref.WeakKeyDictionary[Trace, tuple[FlagRun, ...]] = weakref.WeakKeyDictionary()


def flag_runs(recorded: Trace, model: nn.Module, example: Example) -> tuple[FlagRun, ...]:
    """The flags with which a forward uses parameters or buffers that it does not use on the example.

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
    for each, said in ways(example, model) if idle else ():
        found = trace(model, each, mode=recorded.mode, partial=True)
        if found.error is None and used_tensors(found) & idle:
            yield FlagRun(each, found, said)
