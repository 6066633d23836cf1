"""How shared weights are tuned by gradient: `FixedAssignments` moves the values alone, `LearntAssignments` both.

With fixed assignments every weight of one value gets the mean of their gradients, so that they stay equal. With learnt
ones each weight has a latent number that the gradient moves as if there were no rounding (the straight-through
estimator: Bengio et al. 2013); the weight is the value nearest to it, and each value is the mean of its latents, as in
K-means.

>>> weight = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))
>>> rounding = LearntAssignments([(weight, torch.tensor([0.0, 1.0]), torch.tensor([0, 0, 1]), None)])
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

import torch
from torch import nn

__all__ = ["FixedAssignments", "LearntAssignments", "SharedWeight"]

_TOGETHER = 10.0
"""How much the mean gradient of a value counts beside that of each weight: without it values hardly move as a whole."""

SharedWeight = tuple[nn.Parameter, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""A weight, its values in ascending order, the index of each of its numbers, and its mask; None for no mask."""


class FixedAssignments:
    """Weights of one value move together: each gets the mean of their gradients."""

    def __init__(self, weights: Sequence[SharedWeight]):
        self._weights = [(weight, index.reshape(-1).long()) for weight, _, index, _ in weights]

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
        self._weights = [weight for weight, _, _, _ in weights]
        self._masks = [mask for _, _, _, mask in weights]
        self._latent = [weight.detach().clone() for weight in self._weights]
        self._values = [
            torch.unique(weight.detach() if mask is None else weight.detach()[mask])
            for weight, mask in zip(self._weights, self._masks, strict=True)
        ]

    @torch.no_grad()
    def before_step(self) -> None:
        """Add each value's mean gradient to that of its weights; put the latents where the optimizer finds them."""
        for at, (weight, mask) in enumerate(zip(self._weights, self._masks, strict=True)):
            if weight.grad is not None:
                live = weight if mask is None else weight[mask]
                slope = (weight.grad if mask is None else weight.grad[mask]).reshape(-1)
                index = _nearest(live, self._values[at])
                counts = torch.bincount(index, minlength=len(self._values[at])).clamp_min(1)
                mean = slope.new_zeros(len(counts)).index_add_(0, index, slope) / counts
                slope = slope + _TOGETHER * mean[index]
                if mask is None:
                    weight.grad.copy_(slope.reshape(weight.shape))
                else:
                    weight.grad[mask] = slope
            weight.copy_(self._latent[at])

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the latents, and put the nearest values in their place; masked weights stay zero."""
        for at, (weight, mask) in enumerate(zip(self._weights, self._masks, strict=True)):
            self._latent[at].copy_(weight)
            live = weight if mask is None else weight[mask]
            values = self._values[at]
            index = _nearest(live, values)
            counts = torch.bincount(index, minlength=len(values))
            sums = values.new_zeros(len(values)).index_add_(0, index, live.reshape(-1))
            values = torch.where(counts > 0, sums / counts.clamp_min(1), values)
            self._values[at] = values.sort().values
            rounded = values[index].reshape(live.shape)
            if mask is None:
                weight.copy_(rounded)
            else:
                weight.zero_()
                weight[mask] = rounded


def _nearest(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The index of the nearest of ascending values, laid out flat; the lower one half way between."""
    return torch.bucketize(weights.reshape(-1), (values[1:] + values[:-1]) / 2)
