"""Macs: at most a given number of multiply-accumulates remains, counted exactly, met to the unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.budget._cost_path import Path, Remaining, check_keep, costs_of, first_within
from secateur.budget._depth import at_best_depth
from secateur.budget._selection import Selection, check_share

__all__ = ["Macs"]


@dataclass(frozen=True)
class Macs(Remaining):
    """At most this share of the model's multiply-accumulates remains, and one unit more would be too much.

    Counted on the example, over the whole model: those of the remaining weights. With granularity "channel" that is
    what the shrunk model computes. `spread` says which units are removed: "per_tensor", the same share of every list;
    "overall", the units with the lowest scores in whichever list; "isomorphic", the lowest among those of equal
    structure. `round_to` keeps the width of every list that is cut a multiple, because kernels are faster at such
    widths; then one block of units more would be too much. With whole layers and channels together (granularity
    ["layer", "channel"]) it is measured how many layers are removed: of the choices that meet the budget, the one that
    changes the outputs least is taken.

    >>> import secateur as sc
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    >>> x = torch.zeros(1, 3, 6, 6)
    >>> masks = sc.prune(model, granularity="channel", budget=sc.budget.Macs(keep=0.5), example=x)
    >>> small = sc.shrink(model, masks, x)
    >>> before, after = (sc.measure(m, x, what="macs")["macs"].value for m in (model, small.model))
    >>> before, after, after <= before / 2
    (6080, 2648, True)
    """

    keep: float
    spread: str = "per_tensor"
    round_to: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", check_keep("Macs", self.keep))
        self.check_spread()

    @classmethod
    def at(cls, share: float) -> Macs:
        """A budget of what remains when this share is removed."""
        return cls(1.0 - (check_share("share", share) or 1e-9))

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """The first choice on the path that is cheap enough."""
        return within_share(self, selection, "macs", "multiply-accumulates")


def within_share(budget: Remaining, selection: Selection, of: str, what: str) -> dict[str, torch.Tensor]:
    """The first choice of a budget's path that leaves at most its share of a cost that is counted."""
    costs = costs_of(selection, budget)
    dense = costs.dense(of)
    assert budget.keep is not None
    limit = budget.keep * dense * (1 + 1e-12)

    def explain(least: float) -> str:
        return (
            f"{budget}: {least:,.0f} of {dense:,.0f} {what} remain ({least / dense:.4f}) with one unit left of every "
            f"list that may be cut, and {limit:,.0f} were asked; let more layers be pruned (only, skip, at_least), or "
            f"keep at least {least / dense:.4f}"
        )

    def search(path: Path, rough: bool) -> dict[str, torch.Tensor]:
        found = first_within(path, lambda c: costs.remaining(of, c), limit, explain)
        return path.refilled(found, lambda c: costs.remaining(of, c) <= limit)

    return at_best_depth(budget, selection, search)
