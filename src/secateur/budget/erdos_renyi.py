"""ErdosRenyi: each layer's density follows from its shape alone, by the Erdős–Rényi-kernel rule.

Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science"; with kernels as in Evci et al. 2020, "Rigging the Lottery".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.budget import Budget, Candidates, Selection, check_share
from secateur.budget.per_tensor import PerTensor
from secateur.errors import BudgetNotMetError

__all__ = ["ErdosRenyi"]


@dataclass(frozen=True)
class ErdosRenyi(Budget):
    """Each list keeps a share in proportion to (out + in + kernel sides) / (out * in * kernel), at most all of it.

    So small layers stay denser than large ones. The factor is the one at which the share `sparsity` of all scored
    weights is removed; layers that would keep more than all are dense, and the others lose the difference. Each list
    loses its share of its own units, rounded by itself, and of channels or heads one stays, as with `PerTensor`. Floors
    and earlier masks hold, and the other lists compensate for them.

    With weights of 4 x 4 (8 / 16) and 2 x 2 (4 / 4), 20 in all, half of them to remain: the second would keep 10 / 3 of
    its 4, the first 20 / 3 of its 16.

    >>> import secateur as sc
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    >>> masks = sc.prune(model, budget=ErdosRenyi(0.5), skip="1")
    >>> [row.kept for row in masks.summary()]
    [7, 3]
    """

    sparsity: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_share("sparsity", self.sparsity))

    @classmethod
    def at(cls, share: float) -> ErdosRenyi:
        """This share of all weights."""
        return cls(share)

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list with the share that its shape gives it."""
        lists = selection.candidates
        return {each.name: PerTensor(1.0 - density) for each, density in zip(lists, self._densities(lists))}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Remove the lowest of each list, as many as its shape says."""
        lists = selection.candidates
        densities = self._densities(lists)
        chosen = {}
        for candidates, density in zip(lists, densities):
            chosen[candidates.name] = candidates.drop(candidates.going(1.0 - density))
        return chosen

    def _densities(self, lists: tuple[Candidates, ...]) -> list[float]:
        """The share of each list that remains: one factor for all, between its floor and what earlier masks left."""
        sizes, rules = zip(*(_shape_rule(candidates) for candidates in lists))
        low = [min(1.0, candidates.least / candidates.count) for candidates in lists]
        high = [1.0 - candidates.removed / candidates.count for candidates in lists]

        def at(factor: float) -> list[float]:
            return [
                max(least, min(most, factor * rule))
                for rule, least, most in zip(rules, low, high, strict=True)
            ]

        def left(factor: float) -> float:
            return sum(density * size for density, size in zip(at(factor), sizes, strict=True))

        total = sum(sizes)
        wanted = (1.0 - self.sparsity) * total
        most, least = left(math.inf), left(0.0)
        tolerance = 1e-9 * total
        if most < wanted - tolerance:
            raise BudgetNotMetError(
                f"{self} leaves {wanted:,.0f} of {total:,} weights, but the masks given leave only {most:,.0f} and "
                f"masks only grow; ask for a sparsity of at least {1.0 - most / total:.4g}, or pass regrow=True"
            )
        if least > wanted + tolerance:
            raise BudgetNotMetError(
                f"{self} leaves {wanted:,.0f} of {total:,} weights, but the floors (at_least, at_most) keep "
                f"{least:,.0f}: lower the sparsity or the floors"
            )
        below, above = 0.0, 1.0
        while left(above) < wanted - tolerance:
            above *= 2.0
        for _ in range(200):
            middle = (below + above) / 2
            if middle in (below, above):
                break
            below, above = (middle, above) if left(middle) < wanted else (below, middle)
        return at(above)


def _shape_rule(candidates: Candidates) -> tuple[int, float]:
    """(how many weights a list scores, the sum of its tensors' sides over that number)."""
    names = dict.fromkeys(member.name for member in candidates.units.members if member.scored)
    shapes = [candidates.shapes[name] for name in names]
    size = sum(math.prod(shape) for shape in shapes)
    return size, max(1, sum(sum(shape) for shape in shapes)) / max(1, size)
