"""`judged`: a model's numbers by a function of the user's own, named `package.module:function`.

The function takes the model, and returns a number or a dict of numbers, as `sc.measure` takes them. If it takes a
second argument, it is given the split of the data that is measured on, whose `batches(500)` are inputs and labels on
the model's device.

>>> takes_split(lambda model, split: 0.0), takes_split(lambda model: 0.0)
(True, False)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.adapters import functions
from secateur.core.measurement import Measurement, Measurements
from secateur.data import Split
from secateur.errors import OptionError
from secateur.execution.devices import device_of
from secateur.metrics import names
from secateur.metrics.accuracy import accuracy

__all__ = ["evaluator", "judged", "score_by", "score_of", "takes_split"]

_BY = "as returned by "


def takes_split(function: Callable[..., Any]) -> bool:
    """Whether a function asks for the data besides the model: it has two arguments that must be given."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # some callables have no signature
        return False
    place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for one in found if one.kind in place and one.default is one.empty) > 1


def evaluator(name: str, split: Split | None) -> Callable[[nn.Module], Any]:
    """The user's judgement as a function of the model alone.

    Args:
        name: `package.module:function`.
        split: What it is given where it takes a second argument.

    Raises:
        OptionError: It takes the data, and there is none.
    """
    function = functions.find(name, "evaluate")
    if not takes_split(function):
        return function
    if split is None:
        raise OptionError(
            f"evaluate {name!r} takes the data besides the model, and none was given; give --data, or let it take "
            "the model alone"
        )
    return lambda model: function(model, replace(split, device=device_of(model)))


def judged(name: str, model: nn.Module, split: Split | None, of: str = "") -> Measurements:
    """The numbers that the user's function gives of a model.

    Args:
        name: `package.module:function`.
        model: The model, in evaluation mode meanwhile.
        split: What the function is given where it takes a second argument.
        of: The split's word, such as `test`.

    Returns:
        A row for each number.
    """
    found = accuracy(model, evaluator(name, split))
    taken = sorted({row.name for row in found} & (set(names()) - {"accuracy"}))
    if taken:
        raise OptionError(
            f"evaluate {name!r} returned {', '.join(map(repr, taken))}, which secateur measures itself: expected other "
            "names; rename it"
        )
    seen = split is not None and takes_split(functions.find(name, "evaluate"))
    text = f"{_BY}{name}" + (f" on {len(split):,} {of} {split.word}" if seen and split is not None else "")
    return Measurements(replace(row, definition=text) for row in found)


def score_by(model: nn.Module, name: str, split: Split | None, verb: str) -> float:
    """The one number that the user's function gives of a model, where more is better.

    Args:
        model: The model.
        name: `package.module:function`.
        split: What the function is given where it takes a second argument.
        verb: Who asks, for the message.
    """
    found = score_of(judged(name, model, split), verb)
    assert found is not None  # a function that returns nothing is refused
    return float(found.value)


def score_of(rows: Iterable[Measurement], verb: str) -> Measurement | None:
    """The one number that says how good a model is, where more is better.

    Args:
        rows: The measurements of one model.
        verb: Who asks, for the message.

    Returns:
        `accuracy`, else `score`, else the only number of a user's function; None where nothing judged.

    Raises:
        OptionError: A function returned several, none of which is called so.
    """
    rows = list(rows)
    for word in ("accuracy", "score"):
        named = [row for row in rows if row.name == word]
        if named:
            return named[-1]
    own = [row for row in rows if row.definition.startswith(_BY)]
    if len({row.name for row in own}) > 1:
        raise OptionError(
            f"{verb}: evaluate returned {', '.join(dict.fromkeys(row.name for row in own))}; expected one number, or "
            "one called 'accuracy', where more is better"
        )
    return own[-1] if own else None
