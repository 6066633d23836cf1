"""Gradients of the loss over many batches, accumulated in a wide type; used by the criteria taylor, snip and grasp.

>>> from secateur.core.targets import select
>>> model = nn.Linear(2, 1, bias=False)
>>> data = [(torch.ones(3, 2), torch.zeros(3, 1)), (torch.zeros(1, 2), torch.zeros(1, 1))]
>>> context = Context(data=data, loss=lambda outputs, targets: outputs.mean())
>>> GradientPass("snip", model, select(model), context).gradients()["weight"]
tensor([[0.7500, 0.7500]], dtype=torch.float64)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.fetching import fetched
from secateur.core.nested import map_tensors
from secateur.core.scores import check_all_finite
from secateur.core.targets import Target
from secateur.errors import (
    CollapseError,
    DataError,
    NonFiniteError,
    OptionError,
    SecateurError,
    StructureError,
)
from secateur.execution.example import Batch, call_arguments, read_batch

__all__ = [
    "GradientPass",
    "accumulator_dtype",
    "batches",
    "check_losses",
    "check_positive",
    "double_backward",
    "explained",
    "first_call",
    "move",
    "shares",
]

T = TypeVar("T")


def move(value: T, device: torch.device, dtype: torch.dtype | None = None) -> T:
    """A nested value on another device, and in another floating-point type where one is given.

    Args:
        value: The nested value; it is not changed.
        device: Where its tensors go.
        dtype: The type that floating-point tensors get; integers keep theirs.

    >>> move((torch.ones(1), torch.ones(1, dtype=torch.long)), torch.device("cpu"), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor([1]))
    """
    return map_tensors(lambda t: t.to(device, dtype if t.is_floating_point() else None), value)


def batches(who: str, context: Context) -> Iterator[object]:
    """The raw batches of `context.data`.

    Args:
        who: The criterion's name, for error messages.
        context: Where the data is.

    Raises:
        DataError: There is no data, or it is not an iterable of batches, or it is empty.
    """
    data = context.data
    if data is None:
        raise DataError(
            f"{who} scores weights on data, and none was given: pass data=<batches> and loss=<function>"
        )
    if isinstance(data, torch.Tensor):
        raise DataError(
            f"{who}: data is one tensor, expected an iterable of batches; write data=[(inputs, targets)], or "
            "data=[inputs] where no targets are needed"
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


def first_call(
    who: str, context: Context, model: nn.Module | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the model is called: on `context.example`, or else on the inputs of the first batch of `context.data`.

    Args:
        who: The criterion's name, for error messages.
        context: Where the example or the data is.
        model: As in `read_batch`.

    Returns:
        (arguments, keywords).

    Raises:
        DataError: There is neither.
    """
    if context.example is not None:
        return call_arguments(context.example)
    if context.data is None:
        raise DataError(f"{who} needs the shape of one input: pass example=<a tensor> (or data=<batches>)")
    batch = read_batch(next(iter(batches(who, context))), 0, labels_apart=True, model=model)
    return batch.args, batch.kwargs


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, but float32 on MPS, which has none wider.

    >>> accumulator_dtype(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class GradientPass:
    """Passes over the data for one criterion; call them inside `undisturbed`.

    Attributes:
        who: The criterion's name, for error messages.
        model: The model.
        targets: The weights whose gradients are wanted.
        context: The data and the loss.
        temperature: The divisor of the outputs before the loss.
    """

    who: str
    model: nn.Module
    targets: Sequence[Target]
    context: Context
    temperature: float = 1.0

    def check_passes(self, passes: int) -> None:
        """Raise a `DataError` unless the data can be read `passes` times.

        Args:
            passes: How often the criterion reads it.
        """
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

    def squared_gradients(self) -> dict[str, torch.Tensor]:
        """The square of d loss / d weight of every batch, the mean by the batches' examples."""

        def squares(loss: torch.Tensor, weights: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
            wide = accumulator_dtype(loss.device)
            dense = (None if g is None else g.to_dense() if g.is_sparse else g for g in slopes)
            return [None if g is None else g.to(wide).square() for g in dense]

        return self._mean(squares)

    def loss_of(self, raw: object, index: int) -> torch.Tensor:
        """The loss of one batch, with its graph. Whether it is finite, `check_losses` tells of all of them at the end.

        Args:
            raw: The batch, as the data has it.
            index: Its position in the data, for error messages.
        """
        return self._loss(self._read(raw, index), index)

    def _read(self, raw: object, index: int) -> Batch:
        return read_batch(raw, index, labels_apart=self.context.loss is not None, model=self.model)

    def hessian_times(self, vector: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The Hessian of the loss, over all targets at once, times a vector; the mean over all examples.

        Args:
            vector: A tensor of the weight's shape for each target, by name.

        Returns:
            The product, likewise by name.
        """

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
        examples, losses = 0, []
        for index, raw in enumerate(batches(self.who, self.context)):
            batch = self._read(raw, index)
            loss = self._loss(batch, index)
            losses.append(loss.detach())
            found = of(loss, weights) if loss.requires_grad else [None] * len(weights)
            for position, gradient in enumerate(found):
                if gradient is None:
                    continue
                dense = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
                part = dense.to(accumulator_dtype(dense.device)) * batch.size
                total = totals[position]
                totals[position] = part if total is None else total.add_(part)
            examples += batch.size
        check_losses(self.who, losses)
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
        advice = "check the loss and the data, or use a wider dtype"
        check_all_finite(result, self.who + ": gradient of {name!r}", advice)
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
                loss: object = self.context.loss(outputs, targets)
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
        return loss.reshape(())


def check_losses(who: str, losses: Sequence[torch.Tensor]) -> None:
    """Raise a `NonFiniteError` for the first loss that is not finite; the device is waited for once.

    Args:
        who: The criterion's name, for the message.
        losses: One number for each batch.

    >>> check_losses("snip", [torch.tensor(1.0), torch.tensor(math.nan)])
    Traceback (most recent call last):
    ...
    secateur.errors.NonFiniteError: snip: the loss of batch 1 is nan; check the data, the loss and the weights
    """
    for index, loss in enumerate(fetched(losses)):
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"{who}: the loss of batch {index} is {loss}; check the data, the loss and the weights"
            )


@contextmanager
def explained(what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Add a note to an error raised by the user's model or loss: what it was called with. The error keeps its type.

    Args:
        what: The beginning of the note: who failed, and on what.
        args: The arguments of the call.
        kwargs: Its keywords.

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


def _shown(value: object) -> str:
    """A value in an error message: the shape and type of a tensor, else its class."""
    if isinstance(value, torch.Tensor):
        return f"Tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def double_backward() -> AbstractContextManager[object]:
    """A context in which attention uses the only kernel that can be differentiated twice."""
    attention = getattr(torch.nn, "attention", None)
    if attention is None or not hasattr(attention, "sdpa_kernel"):
        return nullcontext()
    return attention.sdpa_kernel(attention.SDPBackend.MATH)


def check_positive(name: str, value: float) -> None:
    """Raise an `OptionError` unless a number is finite and above zero.

    Args:
        name: The option's name, for the message.
        value: The number.

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
    """Scores from products of weights and gradients, in the weights' own type (float32 for anything narrower).

    Args:
        who: The criterion's name, for error messages.
        products: The products by target, in a wide type; they are overwritten.
        model: The model that has the targets.
        normalize: Whether to divide by the absolute value of their sum over all targets.

    Returns:
        The scores by target.

    Raises:
        CollapseError: All products are zero. Such scores would prune by position.
    """
    if not any(fetched(tensor.any() for tensor in products.values())):
        raise CollapseError(
            f"{who}: all {len(products)} score tensors are zero: no gradient flows through the network on "
            "this data; "
            "look for a layer whose weights or activations are all zero"
        )
    total = abs(sum(fetched(tensor.sum() for tensor in products.values())))
    scale = total if normalize and total > 0 else 1.0
    result = {}
    for name, tensor in products.items():
        wide = model.get_parameter(name).dtype == torch.float64
        result[name] = tensor.div_(scale).to(torch.float64 if wide else torch.float32)
    return result
