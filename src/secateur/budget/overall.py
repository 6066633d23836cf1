"""Overall: all units of the network compete in one list."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.budget import Budget, Candidates, Selection, check_share, share_of
from secateur.budget._depth import check_comparable
from secateur.budget._select import keep_highest
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["Overall"]


@dataclass(frozen=True)
class Overall(Budget):
    """Of all units of the network, the round(sparsity * units) with the lowest scores are removed, in whichever list.

    Units may differ in size: a filter of a wide layer holds more weights than one of a narrow layer. With
    `by="units"` the share is of units, whatever their size, and exact. With `by="weights"` it is of the
    weights: units are removed from the lowest score on while the weights removed are within the share, so
    that it is met to less than one unit.

    Units that a floor protects are replaced by units of other layers; the total is exact.

    >>> import torch, secateur as sc
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    >>> sc.prune(model, budget=sc.budget.Overall(0.75), options=sc.PruneOptions(at_least=1)).kept
    6
    """

    sparsity: float
    by: str = "units"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_share("sparsity", self.sparsity))
        if self.by not in ("units", "weights"):
            raise OptionError(f"Overall by: expected 'units' or 'weights', got {self.by!r}")

    @classmethod
    def at(cls, share: float) -> Overall:
        """This share of the whole network."""
        return cls(share)

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Remove the lowest of all lists together."""
        check_comparable(self, selection)
        entries = selection.candidates
        ranked = [_protected(candidates) for candidates in entries]
        if self.by == "weights":
            return self._by_weights(selection, ranked)
        asked = share_of(self.sparsity, selection.count)
        self._check(
            asked,
            sum(candidates.removed for candidates in entries),
            sum(candidates.most for candidates in entries),
            selection.count,
            "units",
        )
        return {candidates.name: keep for candidates, keep in zip(entries, keep_highest(ranked, asked))}

    def _by_weights(self, selection: Selection, ranked: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        entries = selection.candidates
        scores = torch.cat([part.cpu() for part in ranked])
        sizes = torch.cat([candidates.sizes() for candidates in entries])
        total = int(sizes.sum())
        asked = share_of(self.sparsity, total)
        order = torch.sort(scores, stable=True).indices
        spent = sizes[order].cumsum(0)
        going = spent <= asked
        free = scores[order] < math.inf
        already = int(sizes[scores == -math.inf].sum())
        self._check(asked, already, int(sizes[scores < math.inf].sum()), total, "weights")
        keep = torch.ones_like(scores, dtype=torch.bool)
        keep[order[going & free]] = False
        parts = torch.split(keep, [candidates.count for candidates in entries])
        return {
            candidates.name: part.to(candidates.scores.device) for candidates, part in zip(entries, parts)
        }

    def _check(self, asked: int, already: int, possible: int, total: int, what: str) -> None:
        if asked > possible:
            raise BudgetNotMetError(
                f"{self} removes {asked} of {total} {what}, but the floors (at_least, at_most) let "
                f"only {possible} "
                f"go: the closest sparsity is {possible / total:.4g}; lower the sparsity or the floors"
            )
        if already > asked:
            raise BudgetNotMetError(
                f"{self} removes {asked} of {total} {what}, but the masks given have already removed "
                f"{already} "
                f"and masks only grow; ask for a sparsity of at least {already / total:.4g}, or pass "
                "regrow=True"
            )


def _protected(candidates: Candidates) -> torch.Tensor:
    """The scores of a list, with the units that its floor protects ordered after all others."""
    if candidates.least <= 0:
        return candidates.ranked
    safe = keep_highest([candidates.ranked], candidates.most)[0]
    return candidates.ranked.masked_fill(safe, math.inf)
