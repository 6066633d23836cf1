"""Isomorphic: lists of equal structure compete with each other, and each kind of structure loses the same share.

Fang et al. 2024, "Isomorphic Pruning for Vision Models": scores of heads, hidden neurons and residual channels are not
comparable, those of one kind are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from secateur.budget import Budget, Candidates, Selection, check_share
from secateur.budget._kinds import Kind, kind_of
from secateur.budget.overall import Overall

__all__ = ["Isomorphic"]


@dataclass(frozen=True)
class Isomorphic(Budget):
    """Of all units of one kind of structure, the lowest `sparsity` of them are removed, in whichever list.

    Two lists are of one kind where their units cut the same parameters of the same classes of layers along the same
    axes, whatever their widths. `by` is that of `Overall`: the share is of "units", or of their "weights".

    Two convolutions are of one kind and the Linear layer of another, so that its small weights are not removed first:

    >>> import secateur as sc
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    >>> for scale, layer in zip((1.0, 10.0, 0.1), (model[0], model[1], model[3])):
    ...     _ = layer.weight.data.copy_((torch.arange(layer.weight.numel()) + 1).reshape(layer.weight.shape) * scale)
    >>> masks = sc.prune(model, budget=Isomorphic(0.5), options=sc.PruneOptions(at_least=1))
    >>> [row.kept for row in masks.summary()]
    [1, 2, 2]
    """

    sparsity: float
    by: str = "units"

    def __post_init__(self) -> None:
        checked = Overall(self.sparsity, self.by)  # the same options, checked there
        object.__setattr__(self, "sparsity", checked.sparsity)

    @classmethod
    def at(cls, share: float) -> Isomorphic:
        """This share of every kind."""
        return cls(check_share("share", share))

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Remove the lowest of each kind."""
        kinds: dict[Kind, list[Candidates]] = {}
        for candidates in selection.candidates:
            kinds.setdefault(kind_of(selection, candidates), []).append(candidates)
        within = Overall(self.sparsity, self.by)
        found: dict[str, torch.Tensor] = {}
        for lists in kinds.values():
            found.update(within.choose(dataclasses.replace(selection, candidates=tuple(lists))))
        return {candidates.name: found[candidates.name] for candidates in selection.candidates}
