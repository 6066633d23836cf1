"""PerTensor: every tensor (or coupled group) loses the same share of its own units."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.budget import Budget, Selection, check_share, share_of

__all__ = ["PerTensor"]


@dataclass(frozen=True)
class PerTensor(Budget):
    """Exactly round(sparsity * units) of each list are removed, half rounded to even; fewer where a floor forbids it,
    and one of each list of channels or heads stays.

    >>> import torch, secateur as sc
    >>> sc.prune(torch.nn.Linear(5, 2), budget=sc.budget.PerTensor(0.3)).summary()[0].kept
    7
    """

    sparsity: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_share("sparsity", self.sparsity))

    @classmethod
    def at(cls, share: float) -> PerTensor:
        """This share of every tensor."""
        return cls(share)

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list by itself."""
        return {candidates.name: self for candidates in selection.candidates}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Remove the lowest of each list."""
        chosen = {}
        for candidates in selection.candidates:
            selection.check_not_past(candidates, share_of(self.sparsity, candidates.count), self)
            chosen[candidates.name] = candidates.drop(candidates.going(self.sparsity))
        return chosen
