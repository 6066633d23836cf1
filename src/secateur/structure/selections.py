"""Selections in a forward (top-k, suppression of boxes, thresholds), recorded in one model and given to another. Two
models that agree up to rounding may still choose differently if two scores are almost the same, and then nothing after
the choice can be compared; and if nothing is chosen, there is nothing to compare. So a proof compares the tensors that
a choice is made from, and gives both models the choice of the first.

>>> import torch
>>> chosen = Selections()
>>> with chosen:
...     first = torch.tensor([1.0, 3.0, 2.0]).topk(1).indices
>>> chosen.replay = True
>>> with chosen:
...     second = torch.tensor([1.0, 2.0, 3.0]).topk(1).indices
>>> first, second, chosen.error, chosen.names
(tensor([1]), tensor([1]), 0.3333333333333333, ('topk',))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.torch_calls import Arguments, Keywords

__all__ = ["Selections", "differences", "relative"]

_CHOOSE = frozenset(
    [
        "topk",
        "sort",
        "argsort",
        "argmax",
        "argmin",
        "nonzero",
        "kthvalue",
        "nms",
        "gt",
        "ge",
        "lt",
        "le",
        "eq",
        "ne",
        "floor",
        "ceil",
        "round",
        "trunc",
    ]
)
"""Operators whose result jumps when their input moves by a rounding error."""
_CHOOSE_ALONG = frozenset(("aten::max.dim", "aten::min.dim"))
_TAKE = frozenset(["index", "index_select", "gather", "masked_select"])
"""Operators that gather the chosen elements: their sources are compared, even if nothing is gathered."""
_SMALL = 1e-6
"""A tensor below this share of the largest one is compared at the scale of that one, because it may consist of
rounding errors.
"""


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    """The largest absolute difference and the largest absolute value of two tensors of one shape.

    Args:
        left: The one whose values give the scale.
        right: The other.

    Returns:
        (difference, scale): 1 for whole numbers that differ, infinity where other entries are finite.
    """
    if not left.numel():
        return 0.0, 0.0
    if not (left.is_floating_point() or left.is_complex()):
        return float((left != right).any()), 0.0
    left, right = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (left, right))
    finite = torch.isfinite(left)
    if not torch.equal(finite, torch.isfinite(right)):
        return math.inf, 0.0
    if not finite.any():
        return 0.0, 0.0
    return float((left - right)[finite].abs().max()), float(left[finite].abs().max())


def differences(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value) of two lists of outputs of the same shapes.

    Args:
        left: The ones whose values give the scale.
        right: The others.
    """
    absolute = scale = 0.0
    for a, b in zip(left, right, strict=True):
        apart, largest = largest_difference(a, b)
        absolute, scale = max(absolute, apart), max(scale, largest)
    return absolute, scale


def relative(absolute: float, scale: float) -> float:
    """A difference over the largest value; the difference itself where all values are 0."""
    return absolute / scale if scale > 0 else absolute


class Selections(TorchDispatchMode):
    """Records every selection of a forward; with `replay`, gives the recorded results to the next forward and compares.

    Attributes:
        replay: False while the first model runs, True while the second one does.
        error: The largest difference of the tensors chosen from, over their scale; infinity where the two forwards do
            not make the same selections.
        noted: (operator, the tensors it was called with, its result).
        position: How many selections the second model has made.
        largest: The largest value in the tensors chosen from.
        widened: Whether a conversion to float32 was left out, where float64 is the default type: its rounding errors
            would hide the difference of the models.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replay = False
        self.error = 0.0
        self.noted: list[tuple[str, list[torch.Tensor], Any]] = []
        self.position = 0
        self.largest = 0.0
        self.widened = False

    @property
    def names(self) -> tuple[str, ...]:
        """The operators that choose, each once, in order, and "float32" where a conversion was left out."""
        chosen = dict.fromkeys(name for name, _, _ in self.noted if name not in _TAKE)
        return (*chosen, *(("float32",) if self.widened else ()))

    @property
    def complete(self) -> bool:
        """Whether the second forward made as many selections as the first."""
        return self.position == len(self.noted)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Arguments = (),
        kwargs: Keywords | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32 and torch.get_default_dtype() == torch.float64:
            kwargs["dtype"] = torch.float64
            self.widened |= func._schema.name == "aten::_to_copy"
        name = _selection(func, args, kwargs)
        if not name:
            return func(*args, **kwargs)
        read = tensors_in((args, kwargs)) if name not in _TAKE else [args[0]]
        if not self.replay:
            result = func(*args, **kwargs)
            self.noted.append((name, [t.detach().clone() for t in read], map_tensors(_apart, result)))
            self.largest = max([self.largest, *(_scale(t) for t in read)])
            return result
        return self._replayed(name, read, lambda: func(*args, **kwargs))

    def _replayed(self, name: str, read: list[torch.Tensor], run: Callable[[], Any]) -> Any:
        """The recorded result of this selection, after the tensors that it chooses from are compared."""
        known, before, result = self.noted[self.position] if not self.complete else ("", [], None)
        self.position += 1
        if known != name or [t.shape for t in before] != [t.shape for t in read]:
            self.error = math.inf
            return run()
        for left, right in zip(before, read, strict=True):
            absolute, scale = largest_difference(left, right)
            scale = max(scale, _SMALL * self.largest)
            self.error = max(self.error, absolute / scale if scale else absolute)
        return run() if name in _TAKE else map_tensors(_apart, result)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _scale(tensor: torch.Tensor) -> float:
    return largest_difference(tensor, tensor)[1]


def _selection(func: torch._ops.OpOverload, args: Arguments, kwargs: Keywords) -> str:
    """The name of a selection that depends on real values; empty for any other operator."""
    whole = func._schema.name
    name = whole.rpartition("::")[2]
    real = any(isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args)
    if name in _TAKE or f"{whole}.{func._schema.overload_name}" in _CHOOSE_ALONG:
        return name if real else ""
    if name in _CHOOSE:
        return name if real or name == "nonzero" else ""
    kind = kwargs.get("dtype") if name == "_to_copy" else None
    return "to" if kind is not None and real and not kind.is_floating_point and not kind.is_complex else ""
