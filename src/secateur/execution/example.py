"""Examples: the arguments of one call of a model, and how they are taken from data.

An example is one call of a model: a tuple holds the arguments, a dict the keywords, anything else is the one argument.
A dict that holds no keyword of a model with one argument is that argument.
A batch of data is `(inputs, targets)` as a tuple or list, a dict (as Hugging Face collators give), or the inputs alone.

>>> import torch
>>> batch = read_batch((torch.ones(4, 2), torch.zeros(4)), 0, labels_apart=True)
>>> batch.size, batch.args[0].shape
(4, torch.Size([4, 2]))
>>> first_example([(torch.ones(4, 2), torch.zeros(4))]).shape
torch.Size([4, 2])
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.errors import DataError, OptionError
from secateur.execution.undisturbed import kept_random_state

__all__ = [
    "Batch",
    "ComparedByCall",
    "Example",
    "Training",
    "call_arguments",
    "check_training",
    "first_example",
    "own_call",
    "read_batch",
    "takes_a_dict",
    "with_defaults",
]

Example: TypeAlias = object
"""One call of a model: a tensor or any other single argument, a tuple of arguments, or a dict of keywords."""

Training: TypeAlias = object
"""What a model is called with in training: True for the example itself, False where it is never trained, or another
example, such as the images and the targets that a detector takes its losses from.
"""

_LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch of data.

    Attributes:
        args: The model's arguments.
        kwargs: The model's keywords.
        targets: What the loss compares the outputs with.
        size: The number of examples.
        valid: Where a token is not padding, [examples, tokens]; None where `kwargs` say so, or nothing does.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: object = None
    size: int = 1
    valid: torch.Tensor | None = None

    @property
    def example(self) -> Example:
        """The inputs as one example."""
        if self.kwargs:
            return self.kwargs
        return (
            self.args[0] if len(self.args) == 1 and not isinstance(self.args[0], (tuple, dict)) else self.args
        )


def check_training(training: Training) -> None:
    """Raise an `OptionError` for None, which could mean either of two things.

    Args:
        training: What the model is called with in training.
    """
    if training is None:
        raise OptionError(
            "training: expected True (called as with the example), False (never trained), or what the model is called "
            "with in training, such as (images, targets), got None"
        )


def own_call(training: Training) -> bool:
    """Whether the model is called with something of its own in training.

    Args:
        training: What it is called with there.

    >>> own_call(True), own_call(torch.zeros(2, 3))
    (False, True)
    """
    return not isinstance(training, bool)


class ComparedByCall:
    """A base of frozen data classes with a field `training`, which may hold tensors: two are equal where the tensors of
    both have the same values, and all other fields are equal.

    >>> @dataclass(frozen=True, eq=False)
    ... class Options(ComparedByCall):
    ...     training: Training = True
    >>> x = torch.zeros(2, 3)
    >>> Options((x, 1)) == Options((x.clone(), 1)), Options((x, 1)) == Options((x + 1, 1)), Options() == Options(False)
    (True, False, False)
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._others() == other._others() and _same_call(
            vars(self)["training"], vars(other)["training"]
        )

    def __hash__(self) -> int:
        return hash(self._others())

    def _others(self) -> tuple[object, ...]:
        return tuple(value for name, value in vars(self).items() if name != "training")


def _same_call(left: Training, right: Training) -> bool:
    """Whether two calls are of the same type with equal tensors; calls that do not say are different."""
    if left is right:
        return True
    pair = [tensors_in(left), tensors_in(right)]
    if type(left) is not type(right) or len(pair[0]) != len(pair[1]):
        return False
    try:
        plain = map_tensors(_nothing, left) == map_tensors(_nothing, right)
        return bool(plain) and all(map(_same_tensor, *pair))
    except (RuntimeError, TypeError, ValueError):
        return False


def _nothing(tensor: torch.Tensor) -> None:
    return None


def _same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left is right:
        return True
    return left.dtype == right.dtype and left.device == right.device and torch.equal(left, right)


def call_arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keywords of the call that an example stands for.

    Args:
        example: A tuple of arguments, a dict of keywords, or the one argument. A named tuple is one argument.

    Returns:
        (arguments, keywords).

    >>> call_arguments((1, 2)), call_arguments({"a": 1}), call_arguments(3)
    (((1, 2), {}), ((), {'a': 1}), ((3,), {}))
    """
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        return example, {}
    return (example,), {}


def read_batch(batch: object, index: int, *, labels_apart: bool, model: nn.Module | None = None) -> Batch:
    """A batch in any of the accepted forms.

    The last of a tuple or list of two or more is the targets, all before it the model's arguments. Inputs without
    targets are their own target, as those of an autoencoder are. A dict holds keywords, unless the model takes one
    argument and none of the keys is a keyword of it: then the dict is that argument, whole, labels and all.

    Args:
        batch: An item of the data.
        index: Its position in the data, for error messages.
        labels_apart: Whether the labels in a dict go to the loss only, not to the model.
        model: The model, where the caller has it: what its forward cannot do without is an input, whatever its name,
            and a dict may be its one argument.

    Returns:
        The batch, separated into arguments, keywords and targets.

    Raises:
        DataError: The batch holds no tensor, or no example.
    """
    targets: object = None
    if isinstance(batch, Mapping):
        kwargs = dict(batch)
        if labels_apart:
            needed = _needed(model)
            key = next((key for key in _LABELS if key in kwargs and key not in needed), None)
            if key is not None:
                targets = kwargs[key] if takes_a_dict(model, kwargs) else kwargs.pop(key)
        call: tuple[tuple[Any, ...], dict[str, Any]] = ((), kwargs)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        call = _arguments(batch[0] if len(batch) == 2 else tuple(batch[:-1]))
        targets = batch[-1]
    else:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 1 else batch
        call, targets = _arguments(inputs), inputs
    if not call[0] and takes_a_dict(model, call[1]):
        call = ((call[1],), {})
    first = next((t for t in tensors_in([*call[0], call[1]]) if t.dim() > 0), None)
    if first is None:
        raise DataError(
            f"batch {index} of the data: expected (inputs, targets), a dict or inputs, with a tensor among "
            f"them, got {type(batch).__name__}; make every batch hold tensors whose first axis counts the examples"
        )
    if first.shape[0] == 0:
        raise DataError(f"batch {index} of the data holds no example: its shape is {tuple(first.shape)}")
    return Batch(*call, targets=targets, size=int(first.shape[0]))


def _parameters(model: nn.Module | None) -> list[inspect.Parameter]:
    """The parameters of a model's forward; none where they cannot be told."""
    try:
        return list(inspect.signature(model.forward).parameters.values()) if model is not None else []
    except (TypeError, ValueError):
        return []


def _needed(model: nn.Module | None) -> set[str]:
    """The arguments of a model's forward that have no default; none where they cannot be told."""
    return {
        parameter.name
        for parameter in _parameters(model)
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def with_defaults(model: nn.Module | None, example: Example) -> tuple[dict[str, object], dict[str, object]]:
    """The arguments of a call by name, and those that it leaves to the forward's defaults.

    Args:
        model: The model; None has no forward.
        example: The example.

    Returns:
        (arguments, defaults); both are empty where the arguments of the forward have no names that a call could use.

    >>> class Tower(nn.Module):
    ...     def forward(self, x, scale=1.0, *, deep=False): ...
    >>> with_defaults(Tower(), 3), with_defaults(Tower(), {"x": 3, "scale": 2.0})
    (({'x': 3}, {'scale': 1.0, 'deep': False}), ({'x': 3, 'scale': 2.0}, {'deep': False}))
    """
    args, keywords = call_arguments(example)
    found = [each for each in _parameters(model) if each.kind is not each.VAR_KEYWORD]
    unnamed = any(each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL) for each in found)
    if unnamed or len(args) > len(found) or takes_a_dict(model, keywords):
        return {}, {}
    given = keywords or {each.name: value for each, value in zip(found, args)}
    left = {each.name: each.default for each in found if each.default is not each.empty}
    return given, {name: default for name, default in left.items() if name not in given}


def takes_a_dict(model: nn.Module | None, keywords: Mapping[str, object]) -> bool:
    """Whether these keywords are the one argument of a model: it needs no other, and has none of their names.

    Args:
        model: The model; None is none that does.
        keywords: The dict.

    >>> class Tower(nn.Module):
    ...     def forward(self, batch, scale=1.0): ...
    >>> takes_a_dict(Tower(), {"user": 1}), takes_a_dict(Tower(), {"batch": 1}), takes_a_dict(nn.ReLU(), {})
    (True, False, False)
    """
    parameters = _parameters(model)
    if not keywords or not parameters or any(each.kind is each.VAR_KEYWORD for each in parameters):
        return False
    needed = [each for each in parameters[1:] if each.default is each.empty]
    return (
        parameters[0].kind in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD)
        and all(each.kind is each.VAR_POSITIONAL for each in needed)
        and not any(each.name in keywords for each in parameters)
    )


def _arguments(inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call that a batch's inputs stand for; a collator turns tuples into lists, so a list is arguments too."""
    return call_arguments(tuple(inputs) if isinstance(inputs, list) else inputs)


def first_example(
    data: Iterable[object] | None,
    *,
    labels_apart: bool = True,
    single: bool = False,
    model: nn.Module | None = None,
) -> Example | None:
    """The inputs of the first batch of data, without using anything up.

    Args:
        data: The batches. An iterator can be read only once, so it is left alone.
        labels_apart: Whether the labels in a dict are left out.
        single: Whether to take the first example of the batch only, where every tensor counts the examples first.
        model: As in `read_batch`.

    Returns:
        The inputs, or None where there is no data, or only an iterator, or no batch.

    Raises:
        DataError: The first batch holds no tensor, or no example.
    """
    if data is None or isinstance(data, Iterator):
        return None
    with kept_random_state():  # a DataLoader draws a seed for its workers
        raw = next(iter(data), None)
    if raw is None:
        return None
    batch = read_batch(raw, 0, labels_apart=labels_apart, model=model)
    example = batch.example
    tensors = [tensor for tensor in tensors_in(example) if tensor.dim() > 0]
    if single and all(tensor.shape[0] == batch.size for tensor in tensors):
        example = map_tensors(_first, example)
    return example


def _first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1] if tensor.dim() > 0 else tensor
