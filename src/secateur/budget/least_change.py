"""LeastChange: of every list a share is removed, those units together whose removal changes the outputs least.

A score judges each unit alone, and two layers that do little alone may do much together. Here sets are measured: the
units of lowest score are removed, then one removed unit is exchanged for one kept, as long as that lowers the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.budget import Budget, Candidates, Chosen, Compare, Costs, Selection, check_share
from secateur.errors import OptionError, ProofError

__all__ = ["LeastChange"]


@dataclass(frozen=True)
class LeastChange(Budget):
    """Of every list round(sparsity * units) are removed, of channels and heads all but one at most.

    They are a set of least change that no exchange of two units betters.

    Every set is cut out and run on the first batches of the call's data, or on its example, so it is for lists of few
    units: layers, or heads. The change is the squared error of the outputs over their squares. `compare` is what of an
    output counts, a function of the output and of the inputs, as that of `sc.Tuning`; `most` the most sets measured.

    Two equal branches of opposite sign change nothing together; by their sizes others would be removed:

    >>> import secateur as sc
    >>> from torch import nn
    >>> class Plus(nn.Module):
    ...     def __init__(self, by):
    ...         super().__init__()
    ...         self.by = nn.Linear(1, 1, bias=True)
    ...         self.by.weight.data.zero_(); self.by.bias.data.fill_(by)
    ...     def forward(self, x):
    ...         return x + self.by(x)
    >>> model = nn.Sequential(Plus(1.0), Plus(3.0), Plus(2.0), Plus(-3.0))
    >>> masks = sc.prune(model, "l1", "layer", LeastChange(0.5), example=torch.ones(1, 1))
    >>> sc.shrink(model, masks, torch.ones(1, 1)).plan.layers
    {'': ('0', '2')}
    """

    measured: ClassVar[bool] = True

    sparsity: float
    compare: Compare | None = None
    most: int = 200

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_share("sparsity", self.sparsity))
        if self.most < 1:
            raise OptionError(f"LeastChange most: expected at least 1 set, got {self.most!r}")

    @classmethod
    def at(cls, share: float) -> LeastChange:
        """This share of every list."""
        return cls(share)

    def choose(self, selection: Selection) -> Chosen:
        """The units of lowest score, then exchanges as long as they help."""
        if selection.costs is None:
            raise OptionError(
                f"{self} runs what a choice leaves: it works with sc.prune, which provides that"
            )
        costs = selection.costs()
        best = {each.name: each.drop(each.going(self.sparsity)) for each in selection.candidates}
        least, left = self._change(costs, best), self.most - 1
        while left > 0:
            tried: list[tuple[float, int, Chosen]] = []
            for chosen in self._exchanged(selection, best):
                if left == 0:
                    break
                left -= 1
                tried.append((self._change(costs, chosen), len(tried), chosen))
            if not tried or min(change for change, _, _ in tried) >= least:
                break
            least, _, best = min(tried, key=lambda one: one[:2])
        return best

    def _change(self, costs: Costs, chosen: Chosen) -> float:
        """How much a set changes; infinitely much if the model does not run without it."""
        try:
            return costs.change(chosen, self.compare)
        except ProofError:
            return math.inf

    def _exchanged(self, selection: Selection, chosen: Chosen) -> Iterator[Chosen]:
        """Every choice in which one removed unit is exchanged for one that remains."""
        for each in selection.candidates:
            keep = chosen[each.name]
            for back in _free(each, ~keep):
                for away in torch.nonzero(keep).flatten().tolist():
                    other = keep.clone()
                    other[back], other[away] = True, False
                    yield {**chosen, each.name: other}


def _free(candidates: Candidates, removed: torch.Tensor) -> list[int]:
    """The removed units that may come back: those that no earlier mask removed."""
    if candidates.gone is not None:
        removed = removed & ~candidates.gone
    found: list[int] = torch.nonzero(removed).flatten().tolist()
    return found
