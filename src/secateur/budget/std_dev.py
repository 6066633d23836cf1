"""StdDev: weights smaller than a multiple of their tensor's standard deviation are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.budget import Budget, Selection, check_share
from secateur.errors import OptionError

__all__ = ["StdDev"]


@dataclass(frozen=True)
class StdDev(Budget):
    """Units that score less than `sensitivity` times the standard deviation of their tensor's weights are removed.

    The deviation is that of all the tensor's weights as they are in the model, divided by n (not n - 1). It
    is meant for single weights by magnitude, where score and deviation have the same unit; larger units are compared
    with the same threshold. How many are removed follows from the weights: tensors with the same distribution up to
    scale lose the same share. Of normally distributed weights 0.25 removes 20 %, 0.5 38 %, 1.0 68 %.

    >>> import torch, secateur as sc
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[-1.0, 0.1, -0.2, 1.0]]))
    >>> sc.prune(layer, budget=sc.budget.StdDev(0.25))["weight"]
    tensor([[ True, False,  True,  True]])
    """

    sensitivity: float

    def __post_init__(self) -> None:
        value = self.sensitivity
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise OptionError(f"StdDev sensitivity: expected a number of at least 0, got {value!r}")

    @classmethod
    def at(cls, share: float) -> StdDev:
        """The sensitivity that removes this share of normally distributed weights."""
        return cls(math.sqrt(2.0) * float(torch.erfinv(torch.tensor(check_share("share", share)))))

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list by itself."""
        return {candidates.name: self for candidates in selection.candidates}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Each list by its own threshold."""
        chosen = {}
        for candidates in selection.candidates:
            weights = selection.weights(candidates)
            threshold = self.sensitivity * float(weights.float().std(correction=0))
            chosen[candidates.name] = candidates.floored(candidates.scores >= threshold)
        return chosen
