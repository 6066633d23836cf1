"""How shared weights are tuned by gradient: `FixedAssignments` moves the values alone, `LearntAssignments` both.

With fixed assignments every weight of one value gets the mean of their gradients, so that they stay equal. With learnt
ones each weight has a latent number that the gradient moves as if there were no rounding (the straight-through
estimator: Bengio et al. 2013); the weight is the value nearest to it, and each value is the mean of its latents, as in
K-means.

>>> weight = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))
>>> rounding = LearntAssignments([SharedWeight(weight, torch.tensor([0, 0, 1]))])
>>> weight.grad = torch.tensor([1.0, -1.0, 0.0])
>>> rounding.before_step()
>>> with torch.no_grad():
...     _ = weight.add_(weight.grad, alpha=-0.8)  # the latents are now -0.8, 0.8 and 1.0
>>> rounding.after_step()
>>> [round(w, 4) for w in weight.tolist()]
[-0.8, 0.9, 0.9]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["FixedAssignments", "LearntAssignments", "SharedWeight"]

_TOGETHER = 10.0
"""How much the mean gradient of a value counts beside that of each weight: without it values hardly move as a whole."""


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A weight of few values.

    Attributes:
        weight: The weight.
        index: Which value each of its numbers has.
        mask: True where a number is not masked; None for no mask.
        axis: The axis along which each slice has values of its own; None where all have the same.
    """

    weight: nn.Parameter
    index: torch.Tensor
    mask: torch.Tensor | None = None
    axis: int | None = None

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as one row for each list of values."""
        return tensor.reshape(1, -1) if self.axis is None else tensor.movedim(self.axis, 0).flatten(1)

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `rows`."""
        if self.axis is None:
            return rows.reshape(self.weight.shape)
        moved = self.weight.movedim(self.axis, 0)
        return rows.reshape(moved.shape).movedim(0, self.axis)


class FixedAssignments:
    """Weights of one value move together: each gets the mean of their gradients."""

    def __init__(self, weights: Sequence[SharedWeight]):
        self._weights = [(shared.weight, shared.index.reshape(-1).long()) for shared in weights]

    def before_step(self) -> None:
        """Average the gradients."""
        for weight, index in self._weights:
            if weight.grad is not None:
                flat = weight.grad.reshape(-1)
                sums = flat.new_zeros(int(index.max()) + 1).index_add_(0, index, flat)
                counts = torch.bincount(index, minlength=len(sums)).clamp_min(1)
                weight.grad = (sums / counts)[index].reshape(weight.shape)

    def after_step(self) -> None:
        """Nothing: equal weights with equal gradients are equal."""


class LearntAssignments:
    """Latent numbers take the steps; a weight is the value nearest to its latent, a value the mean of its latents."""

    def __init__(self, weights: Sequence[SharedWeight]):
        self._shared = weights
        self._latent = [shared.weight.detach().clone() for shared in weights]
        self._masks = [
            None if shared.mask is None else shared.rows(shared.mask).contiguous() for shared in weights
        ]
        self._values = [
            _distinct(shared.rows(shared.weight.detach()), mask)
            for shared, mask in zip(weights, self._masks, strict=True)
        ]

    @torch.no_grad()
    def before_step(self) -> None:
        """Add each value's mean gradient to that of its weights; put the latents where the optimizer finds them."""
        for at, shared in enumerate(self._shared):
            if shared.weight.grad is not None:
                slope = shared.rows(shared.weight.grad)
                mask = self._masks[at]
                slope = slope if mask is None else slope * mask
                index = _nearest(shared.rows(shared.weight), self._values[at])
                mean = _means(slope, index, self._values[at], mask)[0]
                slope = slope + _TOGETHER * mean.gather(1, index)
                slope = slope if mask is None else slope * mask
                shared.weight.grad.copy_(shared.back(slope))
            shared.weight.copy_(self._latent[at])

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the latents, and put the nearest values in their place; masked weights stay zero."""
        for at, shared in enumerate(self._shared):
            self._latent[at].copy_(shared.weight)
            values, mask = self._values[at], self._masks[at]
            rows = shared.rows(shared.weight)
            index = _nearest(rows, values)
            mean, counts = _means(rows, index, values, mask)
            self._values[at] = torch.where(counts > 0, mean, values).sort(1).values
            rounded = torch.where(counts > 0, mean, values).gather(1, index)
            shared.weight.copy_(shared.back(rounded if mask is None else rounded * mask))


def _distinct(rows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The distinct values of each row's unmasked numbers, ascending; the last repeated where a row has fewer."""
    found = [torch.unique(row if mask is None else row[mask[at]]) for at, row in enumerate(rows)]
    most = max(1, *(len(values) for values in found))
    found = [values if len(values) else rows.new_zeros(1) for values in found]
    return torch.stack([torch.cat([values, values[-1:].expand(most - len(values))]) for values in found])


def _means(
    rows: torch.Tensor, index: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the unmasked numbers of each value, 0.0 of none, and how many there are."""
    ones = torch.ones_like(rows) if mask is None else mask.to(rows.dtype)
    counts = torch.zeros_like(values).scatter_add_(1, index, ones)
    sums = torch.zeros_like(values).scatter_add_(1, index, rows * ones)
    return sums / counts.clamp_min(1), counts


def _nearest(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The index of the nearest of each row's ascending values; the lower one half way between."""
    return torch.searchsorted((values[:, 1:] + values[:, :-1]) / 2, rows.contiguous())
