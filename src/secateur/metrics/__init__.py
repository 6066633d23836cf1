"""Every number with its definition beside it: `measure` makes the table, each file of this folder one
measure.

A measure is a file with one function of the same name, which takes the model and says by its arguments what
else it needs; nothing else has to be edited to add one.

>>> from torch import nn
>>> import torch
>>> table = measure(nn.Linear(3, 2), torch.zeros(1, 3), what=["params", "macs"])
>>> table["params"].value, table["macs"].value
(8, 6)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from secateur.core.masks import Masks
from secateur.core.measurement import Measurements
from secateur.errors import NothingToDoError, OptionError, UnknownNameError, near
from secateur.registry import Registry

__all__ = ["measure", "names"]

_REGISTRY = Registry(__name__, __path__, "measure")


def names() -> list[str]:
    """The measures there are, by name.

    >>> "latency" in names()
    True
    """
    return _REGISTRY.names()


def measure(
    model: nn.Module,
    example: Any = None,
    evaluate: Any = None,
    *,
    masks: Masks | None = None,
    what: str | Iterable[str] | None = None,
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> Measurements:
    """A table of measurements of the model, which is left as found.

    `example` is what the model is called with: a tensor, a tuple of arguments, or a dict of keywords.
    `evaluate` is a function of the model that returns a number or a dict of numbers, or an iterable of
    batches (inputs, targets) for top-1. `masks` are counted as if applied. `what` names the measures wanted;
    by default all for which enough is given. `options` go to the measures that know them (`bias=True` to the
    MACs, `trials=25` to the latency). `context` is put on every row, for reports to group by.
    """
    given = {"example": example, "evaluate": evaluate, "masks": masks}
    given = {key: value for key, value in given.items() if value is not None}
    wanted = names() if what is None else [what] if isinstance(what, str) else list(what)
    if not wanted:
        raise NothingToDoError(f"measure: what= names no measure; {near('', names())}")
    functions = {name: _function(name) for name in wanted}
    if what is None:
        functions = {
            name: function
            for name, function in functions.items()
            if not _lacking(function, given) and _by_default(function)
        }
    known = {key for function in functions.values() for key in inspect.signature(function).parameters}
    for key in options:
        if key not in known:
            raise UnknownNameError(
                f"measure: no option {key!r} of {', '.join(functions)}: "
                f"{near(key, known - {'model', *given})}"
            )
    rows: list[Any] = []
    for name, function in functions.items():
        lacking = _lacking(function, given)
        if lacking:
            raise OptionError(
                f"measure {name!r} needs {lacking[0]}=; give it, or leave {name!r} out of what="
            )
        accepted = inspect.signature(function).parameters
        rows += function(model, **{k: v for k, v in {**given, **options}.items() if k in accepted})
    return Measurements(rows).within(context or {})


def _function(name: str) -> Callable[..., Measurements]:
    if name not in names():
        raise UnknownNameError(f"unknown measure {name!r}: {near(name, names())}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def _by_default(function: Callable[..., Measurements]) -> bool:
    """Whether it is measured unasked: a file may say `BY_DEFAULT = False`, as those made for charts do."""
    return bool(getattr(importlib.import_module(function.__module__), "BY_DEFAULT", True))


def _lacking(function: Callable[..., Measurements], given: Mapping[str, Any]) -> list[str]:
    """What a measure needs and was not given."""
    return [
        key
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and key != "model" and key not in given
    ]
