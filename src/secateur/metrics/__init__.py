"""Metrics: measures of a model. Every number has its unit and the sentence that defines it.

In goes a model (with an example, an evaluate function or masks, as the measure needs); out comes a `Measurements`
table. `measure` runs all measures that can be run with what is given; each can also be called by itself. The model is
not changed.

A measure is a file with one function of the same name. The function takes the model, and the names of its other
arguments say what it needs; nothing else has to be edited to add one. A file with `BY_DEFAULT = False` is measured only
when named; `MORE_ROWS` are the names of its rows beside its own, by which it may be named too.

Files, in reading order:

- `params`, `sparsity`, `size`: counts of parameters, of zeros, of bytes.
- `macs`: multiply-accumulates of a forward pass, dense and of the non-zero weights.
- `latency`: the time of a forward pass, and `compare` for two models read in turns.
- `memory`: the most bytes held at once.
- `accuracy`: top-1, or the result of a function of the model.
- `architecture`, `filter_sums`, `weight_histogram`, `activation_histogram`: rows that charts are drawn from.
- `_why`: `why(before, after, example)`, where the time of two models goes, layer by layer.

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
from types import ModuleType

from torch import nn

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.renamed import renamed
from secateur.errors import NothingToDoError, OptionError, UnknownNameError, near
from secateur.execution.example import Example
from secateur.execution.verb import verb
from secateur.metrics._why import LayerTime, Why, why
from secateur.metrics.accuracy import Evaluate
from secateur.registry import Registry

__all__ = ["Evaluate", "LayerTime", "Why", "measure", "measure_of", "names", "rows_of", "why"]

_REGISTRY = Registry(__name__, __path__, "measure")


def names() -> list[str]:
    """All measures, by name.

    >>> "latency" in names()
    True
    """
    return _REGISTRY.names()


@renamed(trials="repetitions")
@verb
def measure(
    model: nn.Module,
    example: Example = None,
    evaluate: Evaluate | None = None,
    *,
    masks: Masks | None = None,
    what: str | Iterable[str] | None = None,
    context: Mapping[str, object] | None = None,
    **options: object,
) -> Measurements:
    """Measure a model, which is not changed.

    Args:
        model: The model.
        example: What the model is called with: a tensor, a tuple of arguments, or a dict of keywords.
        evaluate: A function of the model that returns a number or a dict of numbers, or an iterable of batches
            (inputs, targets) for top-1.
        masks: Counted as if applied; the model need not be masked.
        what: The measures wanted, or rows that they give; by default all for which enough is given.
        context: Put on every row, for reports to group by.
        **options: Go to the measures that know them: `bias=True` to the MACs, `repetitions=25` to the latency.

    Returns:
        The table, one row or more for each measure.

    Raises:
        NothingToDoError: `what` is empty.
        UnknownNameError: No such measure, or no measure that takes an option.
        OptionError: A measure that was named needs something that was not given.
    """
    given: dict[str, object] = {"example": example, "evaluate": evaluate, "masks": masks}
    given = {key: value for key, value in given.items() if value is not None}
    functions = _wanted(what, given)
    _check_options(functions, options, given)
    rows: list[Measurement] = []
    for name, function in functions.items():
        if lacking := _lacking(function, given):
            raise OptionError(
                f"measure {name!r} needs {lacking[0]}=; give it, or leave {name!r} out of what="
            )
        accepted = inspect.signature(function).parameters
        rows += function(model, **{k: v for k, v in {**given, **options}.items() if k in accepted})
    return Measurements(rows).within(context or {})


def _wanted(
    what: str | Iterable[str] | None, given: Mapping[str, object]
) -> dict[str, Callable[..., Measurements]]:
    """The functions of the measures named, or of all that can run with what is given."""
    wanted = names() if what is None else [what] if isinstance(what, str) else list(what)
    if not wanted:
        raise NothingToDoError(f"measure: what= names no measure; {near('', names())}")
    functions = {(name := measure_of(each)): _function(name) for each in wanted}
    if what is not None:
        return functions
    return {
        name: function
        for name, function in functions.items()
        if not _lacking(function, given) and _by_default(function)
    }


def _check_options(
    functions: Mapping[str, Callable[..., Measurements]],
    options: Mapping[str, object],
    given: Mapping[str, object],
) -> None:
    """Raise unless some measure takes each option."""
    known = {key for function in functions.values() for key in inspect.signature(function).parameters}
    for key in options:
        if key not in known:
            raise UnknownNameError(
                f"measure: no option {key!r} of {', '.join(functions)}: "
                f"{near(key, known - {'model', *given})}"
            )


_OTHER_WORDS = {
    **dict.fromkeys(("flops", "flop", "gflops"), "'macs' counts multiply-accumulates; one is two of these"),
    **dict.fromkeys(("bytes", "memory_size", "disk"), "'size' is the bytes of the state dict"),
    **dict.fromkeys(("time", "speed", "fps", "throughput"), "'latency' is the time of one forward pass"),
    **dict.fromkeys(("parameters", "weights"), "'params' counts them"),
}


def measure_of(name: str) -> str:
    """The measure that gives the row of a name, such as `params` for "nonzeros"; the name itself if there is none.

    Args:
        name: The row's.
    """
    known = names()
    if name in known:
        return name
    giving = (each for each in known if name in getattr(_module(each), "MORE_ROWS", ()))
    return next(giving, name)


def rows_of(name: str) -> tuple[str, ...]:
    """The names of the rows that a measure gives: its own first.

    Args:
        name: The measure's.

    >>> rows_of("params")
    ('params', 'nonzeros')
    """
    return (name, *getattr(_module(name), "MORE_ROWS", ()))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _function(name: str) -> Callable[..., Measurements]:
    if name not in names():
        hint = _OTHER_WORDS.get(name.lower()) or near(name, names())
        raise UnknownNameError(f"unknown measure {name!r}: {hint}")
    function: Callable[..., Measurements] = getattr(_module(name), name)
    return function


def _by_default(function: Callable[..., Measurements]) -> bool:
    """Whether a measure runs when none is named; files for charts say `BY_DEFAULT = False`."""
    return bool(getattr(importlib.import_module(function.__module__), "BY_DEFAULT", True))


def _lacking(function: Callable[..., Measurements], given: Mapping[str, object]) -> list[str]:
    """The arguments that a measure needs and was not given."""
    return [
        key
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and key != "model" and key not in given
    ]
