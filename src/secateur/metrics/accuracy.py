"""`accuracy`: top-1 over batches, or the result of an evaluate function.

>>> import torch
>>> from torch import nn
>>> batches = [(torch.eye(3), torch.tensor([0, 1, 1]))]
>>> accuracy(nn.Identity(), batches)["accuracy"].value
0.6666666666666666
>>> print(accuracy(nn.Identity(), lambda model: {"loss": 0.5, "kld": 0.25}))
loss   0.5  as returned by evaluate
kld   0.25  as returned by evaluate
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import DataError, NonFiniteError
from secateur.execution.calling import call, moved
from secateur.execution.devices import device_of
from secateur.execution.example import Example
from secateur.execution.undisturbed import undisturbed

__all__ = ["Evaluate", "accuracy", "top_1"]

MORE_ROWS = ("score",)

Evaluate: TypeAlias = "Callable[[nn.Module], object] | Iterable[object]"
"""A function of the model that returns a number or a dict of numbers, or batches (inputs, targets) for top-1."""

RETURNED = "as returned by evaluate"
DEFINITION = "share of targets that the largest output names, in evaluation mode"


def accuracy(model: nn.Module, evaluate: Evaluate) -> Measurements:
    """Top-1 over batches, or the result of a function of the model.

    The model is in evaluation mode meanwhile, and not changed.

    Args:
        model: The model.
        evaluate: Batches (inputs, targets), for top-1; or a function of the model. A single number it returns is
            called `score`; a dict names its numbers.

    Returns:
        One row for each number.

    Raises:
        DataError: There is no batch, shapes do not fit, or the function returned no number.
        NonFiniteError: Outputs are NaN.
    """
    if isinstance(evaluate, nn.Module) or not callable(evaluate):
        if not isinstance(evaluate, Iterable):
            raise DataError(
                "accuracy: expected a function of the model or an iterable of batches (inputs, targets), got "
                f"{type(evaluate).__name__}"
            )
        value, count = top_1(model, evaluate)
        return Measurements([Measurement("accuracy", value, "", f"{DEFINITION} ({count:,} targets)")])
    with undisturbed(model, mode="eval"):
        result = evaluate(model)
    named = result if isinstance(result, Mapping) else {"score": result}
    if not named:
        raise DataError("accuracy: evaluate returned an empty dict; return at least one number")
    return Measurements([_row(str(name), value) for name, value in named.items()])


def top_1(model: nn.Module, batches: Iterable[object]) -> tuple[float, int]:
    """The share of targets that the largest output names, and the number of targets.

    Args:
        model: The model.
        batches: Pairs (inputs, targets), or dicts with `labels`.
    """
    right: torch.Tensor | int = 0  # stays on the device: reading it for every batch would wait for each
    broken: torch.Tensor | bool = False
    count = 0
    device = device_of(model)
    with undisturbed(model, mode="eval"), torch.no_grad():
        for batch in batches:
            inputs, targets = _split(batch)
            outputs = call(model, moved(inputs, device))
            outputs = getattr(outputs, "logits", outputs)
            targets = targets.to(device)
            shape = tuple(getattr(outputs, "shape", ()))
            if len(shape) < 2 or shape[:1] + shape[2:] != tuple(targets.shape):
                raise DataError(
                    "accuracy: expected outputs of shape (batch, classes, ...) and targets of shape "
                    f"(batch, ...), got {shape or type(outputs).__name__} and {tuple(targets.shape)}; pass "
                    "a function of the model instead"
                )
            broken = broken | outputs.isnan().any()
            right = right + (outputs.argmax(dim=1) == targets).sum()
            count += targets.numel()
    if not count:
        raise DataError(
            "accuracy: the data holds no batch; an iterator that was used before is empty, give a list"
        )
    if broken:
        raise NonFiniteError(
            "accuracy: outputs of the model are NaN, of which the largest would count as class 0; load a sound "
            "checkpoint, or look for NaN in the inputs"
        )
    return int(right) / count, count


def _split(batch: object) -> tuple[Example, torch.Tensor]:
    """(inputs, targets) of a batch: a pair, or a dict with `labels` as Hugging Face models take it."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and torch.is_tensor(batch[1]):
        return batch[0], batch[1]
    raise DataError(
        f"accuracy: expected batches (inputs, targets) or a dict with 'labels', got {type(batch).__name__}; "
        "pass a function of the model instead"
    )


def _row(name: str, value: object) -> Measurement:
    if (isinstance(value, torch.Tensor) and value.numel() == 1) or getattr(value, "size", None) == 1:
        value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            "accuracy: expected evaluate to return a number or a dict of numbers, got "
            f"{type(value).__name__} for {name!r}"
        )
    if math.isinf(value):
        raise NonFiniteError(
            f"accuracy: expected evaluate to return a finite number, got {value} for {name!r}; return NaN for a value "
            "that diverged"
        )
    return Measurement(name, value, definition=RETURNED)
