"""The forward in training: whether a model has one of its own, and its recording.

Modules read `self.training` for dropout, for auxiliary heads, for noise. Only a model in which a module of another
author reads it, or a hook runs, can do something in training that its forward in evaluation mode does not show; torch's
own layers run the same operators, with other statistics.

>>> import torch
>>> from torch import nn
>>> reads_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
False
>>> class Noisy(nn.Module):
...     def forward(self, x):
...         return x + torch.randn(4) if self.training else x
>>> reads_training(nn.Sequential(nn.Linear(2, 4), Noisy()))
True
>>> model, x = nn.Sequential(nn.Linear(2, 4), Noisy()), torch.zeros(3, 2)
>>> found = training_run(trace(model, x), model, x)
>>> found.trace.training, found.extra
(True, True)
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from secateur.errors import DataError
from secateur.execution.example import Example, Training, own_call
from secateur.structure.trace.other_shapes import path_taken, rows_of, with_rows
from secateur.structure.trace.trace import Op, Trace, trace

__all__ = [
    "TrainingRun",
    "reads_training",
    "training_examples",
    "training_run",
    "used_tensors",
]

_NAME = "training"
_DEEP = 4
"""How many functions deep the name is looked for, from a module's own functions on."""
_NOISE = frozenset(
    {
        "bernoulli_", "bernoulli", "native_dropout", "rand_like", "randn_like", "uniform_", "normal_", "empty_like",
        "zeros_like", "ones_like", "floor", "floor_", "lt", "gt", "mul", "mul_", "div", "div_", "add", "add_", "sub",
        "sub_", "rsub", "clone", "_to_copy", "detach", "alias", "lift_fresh",
    }
)  # fmt: skip
"""Operators of which dropout is made, of whole paths too: their results are as wide as their inputs."""
_MADE = frozenset(("empty", "rand", "randn", "new_empty", "new_ones", "new_zeros", "ones", "zeros", "full"))
"""Operators that make a tensor of sizes they are given."""


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """The recording of a forward in training.

    Attributes:
        example: What it was called with: the example, or one of two rows where batch norm needs more than one.
        trace: The recording.
        extra: Whether it has operators that the forward in evaluation mode has not, other than dropout and its like.
    """

    example: Example
    trace: Trace
    extra: bool


def reads_training(model: nn.Module) -> bool:
    """Whether a module that is not torch's own may do something else in training.

    Args:
        model: The model.
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    return any(map(_class_reads, kinds)) or any(map(_changed, model.modules()))


def training_examples(example: Example, training: Training = True) -> Iterator[Example]:
    """The examples with which a forward in training is tried: the example, and one of two rows for batch norm.

    Args:
        example: The example.
        training: True for that; or what the model is called with in training, which is all that is tried then.
    """
    if own_call(training):
        yield training
        return
    yield example
    rows = rows_of(example)
    if rows == 1:
        yield with_rows(example, rows, 2)


_KNOWN: weakref.WeakKeyDictionary[Trace, tuple[Training, TrainingRun | None]] = weakref.WeakKeyDictionary()


def training_run(
    recorded: Trace, model: nn.Module, example: Example, training: Training = True
) -> TrainingRun | None:
    """The forward in training, recorded once for each recording in evaluation mode.

    Args:
        recorded: The recording in evaluation mode.
        model: The model; it is not changed.
        example: The example.
        training: True for the example; or what the model is called with in training.

    Returns:
        None where no module reads its mode, or where the model does not run in training on this example.

    Raises:
        DataError: The model does not run in training on what it is said to be called with there.
    """
    known = _KNOWN.get(recorded)
    if known is None or known[0] is not training:
        known = _KNOWN[recorded] = training, _training_run(recorded, model, example, training)
    return known[1]


def _training_run(
    recorded: Trace, model: nn.Module, example: Example, training: Training
) -> TrainingRun | None:
    if own_call(training):
        return _run_on_own_call(recorded, model, training)
    if not reads_training(model):
        return None
    for each in training_examples(example):
        found = trace(model, each, training=True, mode=recorded.mode, partial=True)
        if found.error is None:
            return TrainingRun(each, found, _extra(recorded, found, model))
    return None


def _run_on_own_call(recorded: Trace, model: nn.Module, training: Example) -> TrainingRun:
    """The recording of the call that was given; on real tensors where it looks at values."""
    for mode in dict.fromkeys((recorded.mode, "real")):
        found = trace(model, training, training=True, mode=mode, partial=True)
        if found.error is None:
            return TrainingRun(training, found, _extra(recorded, found, model))
    raise DataError(
        f"training: expected what {type(model).__name__} is called with in training, but it does not run on that "
        f"({type(found.error).__name__}: {str(found.error)[:200]}); a tuple means several arguments, a dict keywords"
    ) from found.error


def used_tensors(found: Trace) -> set[str]:
    """The parameters and buffers that an operator of a recording used.

    Args:
        found: The recording.
    """
    return {ref.name for op in found.ops for ref in op.refs() if ref.name}


def _extra(recorded: Trace, found: Trace, model: nn.Module) -> bool:
    """Whether the second recording has operators that the first has not, other than those of dropout."""
    own = {name for name, module in model.named_modules() if _of_torch(type(module))} & recorded.entered
    tensors = used_tensors(found) - used_tensors(recorded)
    if any(name.rpartition(".")[0] not in own for name in tensors):
        return True
    new = path_taken(found) - path_taken(recorded)
    for op in found.ops:
        if (op.path, op.name) in new and op.path not in own and not _noise(op):
            return True
    calls = [call for call in found.calls if call.numbers and (call.numbers[0][0], call.chain) in new]
    return any(not _noise(op) for call in calls for op in found.ops[call.first : call.last])


def _noise(op: Op) -> bool:
    """Whether an operator is one of dropout's, with no width of its own: what it makes has one number for each row."""
    if op.name in _MADE:
        return all(set(ref.shape[1 if len(ref.shape) > 1 else 0 :]) <= {1} for ref in op.results())
    return op.name in _NOISE


def _of_torch(kind: type) -> bool:
    return kind.__module__.startswith(("torch.nn.", "torch.ao."))


def _changed(module: nn.Module) -> bool:
    """Whether a module has a forward or hooks of its own that its class does not show."""
    return "forward" in vars(module) or bool(module._forward_hooks) or bool(module._forward_pre_hooks)


_CLASSES: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
_FUNCTIONS: weakref.WeakKeyDictionary[FunctionType, dict[int, bool]] = weakref.WeakKeyDictionary()
"""What was found out about classes and functions, as long as they exist; of a function by how deep was looked."""


def _class_reads(kind: Any) -> bool:
    """Whether a class reads its mode in a function of its own, or in one that such a function calls by name."""
    known = _CLASSES.get(kind)
    if known is None:
        known = _CLASSES[kind] = _own_functions_read(kind)
    return known


def _own_functions_read(kind: Any) -> bool:
    if _of_torch(kind):
        return False
    if kind.__module__.startswith("torch."):
        return True  # made at run time, as by torch.fx: its source says nothing
    own = [each for each in kind.__mro__ if issubclass(each, nn.Module) and not _of_torch(each)]
    return any(_reads(value, _DEEP) for each in own for value in vars(each).values())


def _reads(value: Any, deep: int) -> bool:
    function = _function_of(value)
    if function is None or (function.__module__ or "").startswith("torch."):
        return False
    known = _FUNCTIONS.setdefault(function, {})
    if deep not in known:
        known[deep] = _function_reads(function, deep)
    return known[deep]


def _function_of(value: Any) -> FunctionType | None:
    """The innermost function of a function, method, property or decorated function; None for anything else.

    No attribute of an unknown object is asked for: one that loads a package at its first use may raise anything.
    """
    seen: set[int] = set()
    found = None
    while id(value) not in seen:
        seen.add(id(value))
        kind = type(value)
        if issubclass(kind, FunctionType):
            found = value
        if issubclass(kind, property):
            value = value.fget
        elif issubclass(kind, (classmethod, staticmethod, MethodType)):
            value = value.__func__
        else:
            inner = inspect.getattr_static(value, "__wrapped__", None)
            if inner is None or (found is not None and not issubclass(type(inner), FunctionType)):
                break
            value = inner
    return found


def _function_reads(function: FunctionType, deep: int) -> bool:
    names: set[str] = set()
    for code in _codes(function.__code__):
        names |= {*code.co_names, *code.co_varnames, *code.co_freevars}
        names |= {each for each in code.co_consts if each == _NAME}
    if _NAME in names:
        return True
    if not deep:
        return False
    found = list(_contents(function.__closure__ or ()))
    held = [function.__globals__[name] for name in names if name in function.__globals__]
    for each in held:
        if issubclass(type(each), ModuleType) and not str(vars(each).get("__name__")).startswith("torch."):
            found += [vars(each)[name] for name in names if name in vars(each)]
    return any(_reads(each, deep - 1) for each in [*held, *found])


def _contents(cells: Iterable[CellType]) -> Iterator[Any]:
    """What the cells of a closure hold; one that is not filled yet is left out."""
    for cell in cells:
        with suppress(ValueError):
            yield cell.cell_contents


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)
