"""Gradients of the loss over many batches, added up exactly: what taylor, snip and grasp are made of.

A batch is `(inputs, targets)` as a tuple or list, a dict (as Hugging Face collators give), or the inputs
alone.

>>> batch = read_batch((torch.ones(4, 2), torch.zeros(4)), 0, labels_apart=True)
>>> batch.size, batch.args[0].shape
(4, torch.Size([4, 2]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import check_finite
from secateur.core.targets import Target
from secateur.errors import (
    CollapseError,
    DataError,
    NonFiniteError,
    OptionError,
    SecateurError,
    StructureError,
)

__all__ = [
    "Batch",
    "GradientPass",
    "accumulator_dtype",
    "batches",
    "first_call",
    "move",
    "read_batch",
    "shares",
]

_LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch: the model's arguments and keywords, the targets for the loss, how many examples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: Any = None
    size: int = 1


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order.

    >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "x"]})]
    [1, 2]
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The same nest of tuples, lists and mappings with `function` applied to each tensor.

    >>> map_tensors(lambda t: t * 2, {"a": (torch.tensor(1), "x")})
    {'a': (tensor(2), 'x')}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(function, item) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def move(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A nest of tensors on another device; floating-point ones cast to `dtype` where one is given.

    >>> move((torch.ones(1), torch.ones(1, dtype=torch.long)), torch.device("cpu"), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor([1]))
    """
    return map_tensors(lambda t: t.to(device, dtype if t.is_floating_point() else None), value)


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(arguments, keywords) of a model call from a tensor, a tuple of arguments or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def read_batch(batch: Any, index: int, *, labels_apart: bool) -> Batch:
    """A batch of any of the accepted forms; with `labels_apart` a dict's labels go to the loss only.

    The last of a tuple or list of two or more is the targets, all before it the model's arguments; inputs
    without targets are their own target, as an auto-encoder's are.
    """
    if isinstance(batch, Mapping):
        kwargs, targets = dict(batch), None
        if labels_apart:
            key = next((key for key in _LABELS if key in kwargs), None)
            targets = kwargs.pop(key) if key is not None else None
        call: tuple[tuple[Any, ...], dict[str, Any]] = ((), kwargs)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        call = _as_call(batch[0] if len(batch) == 2 else tuple(batch[:-1]))
        targets = batch[-1]
    else:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 1 else batch
        call, targets = _as_call(inputs), inputs
    first = next((t for t in tensors_in([*call[0], call[1]]) if t.dim() > 0), None)
    if first is None:
        raise DataError(
            f"batch {index} of the data: expected (inputs, targets), a dict or inputs, with a tensor among "
            "them, got "
            f"{type(batch).__name__}; make every batch hold tensors whose first axis counts the examples"
        )
    if first.shape[0] == 0:
        raise DataError(f"batch {index} of the data holds no example: its shape is {tuple(first.shape)}")
    return Batch(*call, targets=targets, size=int(first.shape[0]))


def batches(who: str, context: Context) -> Iterator[Any]:
    """The raw batches of `context.data`; none at all is an error that says so."""
    data = context.data
    if data is None:
        raise DataError(
            f"{who} scores weights on data, and none was given: pass data=<batches> and loss=<function>"
        )
    if isinstance(data, torch.Tensor):
        raise DataError(
            f"{who}: data is one tensor, expected an iterable of batches; write data=[(inputs, targets)]"
        )
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, torch.Tensor) for part in data):
        one, two = data
        if one.dim() != two.dim() or one.dtype != two.dtype:
            raise DataError(
                f"{who}: data is one (inputs, targets) pair, expected an iterable; write data=[(x, y)]"
            )
    if not isinstance(data, Iterable):
        raise DataError(
            f"{who}: expected data to be an iterable of batches, got {type(data).__name__}; write "
            "data=[(inputs, targets)], or pass a DataLoader"
        )
    empty = True
    for batch in data:
        empty = False
        yield batch
    if empty:
        spent = (
            " (a generator can be read only once: give a list or a DataLoader)"
            if isinstance(data, Iterator)
            else ""
        )
        raise DataError(f"{who}: the data held no batch{spent}")


def first_call(who: str, context: Context) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the model is called: `context.example`, or else the inputs of the first batch of `context.data`."""
    if context.example is not None:
        return _as_call(context.example)
    if context.data is None:
        raise DataError(f"{who} needs the shape of one input: pass example=<a tensor> (or data=<batches>)")
    batch = read_batch(next(iter(batches(who, context))), 0, labels_apart=True)
    return batch.args, batch.kwargs


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, but float32 on MPS, which has none wider.

    >>> accumulator_dtype(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class GradientPass:
    """Passes over the data for one criterion, inside `undisturbed`; `who` is the word used in messages."""

    who: str
    model: nn.Module
    targets: Sequence[Target]
    context: Context
    temperature: float = 1.0

    def check_passes(self, passes: int) -> None:
        """Raise unless the data can be read `passes` times."""
        data = self.context.data
        if passes > 1 and isinstance(data, Iterator):
            raise DataError(
                f"{self.who} reads the data {passes} times, and a {type(data).__name__} can be read only "
                "once: give a "
                "list of batches or a DataLoader"
            )

    def gradients(self) -> dict[str, torch.Tensor]:
        """d loss / d weight, the mean over all examples of all batches, in the widest type of the device."""
        return self._mean(lambda loss, weights: torch.autograd.grad(loss, weights, allow_unused=True))

    def hessian_times(self, vector: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The Hessian of the loss (over all targets at once) times `vector`, the mean over all examples."""

        def product(loss: torch.Tensor, weights: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            names = [target.name for target in self.targets]
            along = [
                (slope * vector[name].to(slope.dtype)).sum()
                for name, slope in zip(names, slopes, strict=True)
                if slope is not None and slope.requires_grad
            ]
            if not along:  # the loss is linear in every weight
                return [torch.zeros_like(weight) for weight in weights]
            found = torch.autograd.grad(torch.stack(along).sum(), weights, allow_unused=True)
            return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]

        return self._mean(product)

    def _mean(
        self, of: Callable[[torch.Tensor, list[torch.Tensor]], Sequence[torch.Tensor | None]]
    ) -> dict[str, torch.Tensor]:
        """The mean of `of(loss, weights)` over the data, each batch counting by its number of examples."""
        weights = [target.of(self.model) for target in self.targets]
        for weight in weights:
            weight.requires_grad_(True)
        totals: list[torch.Tensor | None] = [None] * len(weights)
        examples = 0
        for index, raw in enumerate(batches(self.who, self.context)):
            batch = read_batch(raw, index, labels_apart=self.context.loss is not None)
            loss = self._loss(batch, index)
            found = of(loss, weights) if loss.requires_grad else [None] * len(weights)
            for position, gradient in enumerate(found):
                if gradient is None:
                    continue
                dense = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
                part = dense.to(accumulator_dtype(dense.device)) * batch.size
                total = totals[position]
                totals[position] = part if total is None else total.add_(part)
            examples += batch.size
        missing = [target.name for target, total in zip(self.targets, totals, strict=True) if total is None]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (
                f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            )
            raise StructureError(
                f"{self.who}: no gradient reached {shown}: the loss does not depend on it (an unused layer, "
                "a detach() "
                "or no_grad() on the way); leave it out with skip=[...]"
            )
        result = {}
        for target, total in zip(self.targets, totals, strict=True):
            assert total is not None
            result[target.name] = total.div_(examples)
            check_finite(
                f"{self.who}: gradient of {target.name!r}",
                total,
                "check the loss and the data, or use a wider dtype",
            )
        return result

    def _loss(self, batch: Batch, index: int) -> torch.Tensor:
        """The scalar loss of one batch, from `context.loss` or from the model's own output."""
        reference = next(iter(self.model.parameters()))
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        args = move(batch.args, reference.device, dtype)
        kwargs = move(batch.kwargs, reference.device, dtype)
        with explained(f"{self.who}: {type(self.model).__name__} failed on batch {index}", args, kwargs):
            outputs = self.model(*args, **kwargs)
        if self.context.loss is not None:
            if self.temperature != 1.0:
                outputs = map_tensors(lambda t: t / self.temperature if t.is_floating_point() else t, outputs)
            targets = move(batch.targets, reference.device)
            with explained(f"{self.who}: the loss failed on batch {index}", (outputs, targets), {}):
                loss: Any = self.context.loss(outputs, targets)
        else:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
            if loss is None:
                raise DataError(
                    f"{self.who} needs a loss, and none was given nor did the model's output "
                    f"({type(outputs).__name__}) hold one: pass loss=<function of outputs and targets>"
                )
            if self.temperature != 1.0:
                raise DataError(
                    f"{self.who}: the model computes its loss itself, where its outputs cannot be divided "
                    "by the "
                    f"temperature {self.temperature:g}: pass loss=<function>, or set temperature=1"
                )
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise DataError(
                f"{self.who}: expected the loss to be one number, a mean over the batch, got {got}"
            )
        if not bool(torch.isfinite(loss.detach())):
            raise NonFiniteError(
                f"{self.who}: the loss of batch {index} is {loss.item()}; check the data, the loss and the "
                "weights"
            )
        return loss.reshape(())


@contextmanager
def explained(what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Add to whatever a user's model or loss raises on a batch what it was called with; the error stays theirs.

    >>> try:
    ...     with explained("snip: Linear failed on batch 0", [torch.zeros(2, 3)], {}):
    ...         _ = nn.Linear(4, 1)(torch.zeros(2, 3))
    ... except RuntimeError as error:
    ...     print(error.__notes__[0])
    snip: Linear failed on batch 0, called with Tensor (2, 3) float32. Batches are (inputs, targets), or a dict of ...
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        given = [_shown(value) for value in args] + [f"{key}={_shown(v)}" for key, v in kwargs.items()]
        error.add_note(
            f"{what}, called with {', '.join(given) or 'nothing'}. Batches are (inputs, targets), or a dict of "
            "the model's keywords; check them, or the example, against the model"
        )
        raise


def _shown(value: Any) -> str:
    """A value in a message: the shape and type of a tensor, else its class."""
    if isinstance(value, torch.Tensor):
        return f"Tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def double_backward() -> Any:
    """A context in which attention uses the one kernel that can be differentiated twice."""
    attention = getattr(torch.nn, "attention", None)
    if attention is None or not hasattr(attention, "sdpa_kernel"):
        return nullcontext()
    return attention.sdpa_kernel(attention.SDPBackend.MATH)


def check_positive(name: str, value: float) -> None:
    """Raise an `OptionError` unless a number is finite and above zero.

    >>> check_positive("temperature", 0)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: temperature: expected a number above 0, got 0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise OptionError(f"{name}: expected a number above 0, got {value!r}")


def shares(
    who: str, products: dict[str, torch.Tensor], model: nn.Module, normalize: bool
) -> dict[str, torch.Tensor]:
    """Scores from products, divided by the absolute value of their sum over all targets where `normalize`.

    `products` are in a wide type and end in the weights' own (float32 for anything narrower). All zero is an
    error: such scores would prune by position.
    """
    if all(not bool(tensor.any()) for tensor in products.values()):
        raise CollapseError(
            f"{who}: all {len(products)} score tensors are zero: no gradient flows through the network on "
            "this data; "
            "look for a layer whose weights or activations are all zero"
        )
    total = abs(sum(float(tensor.sum()) for tensor in products.values()))
    scale = total if normalize and total > 0 else 1.0
    result = {}
    for name, tensor in products.items():
        wide = model.get_parameter(name).dtype == torch.float64
        result[name] = tensor.div_(scale).to(torch.float64 if wide else torch.float32)
    return result
