"""Params: at most a given number of parameters remains, counted exactly, met to the unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.budget._cost_path import Remaining, check_keep
from secateur.budget._selection import Selection, check_share
from secateur.budget.macs import within_share

__all__ = ["Params"]


@dataclass(frozen=True)
class Params(Remaining):
    """At most this share of all the model's parameters remains, and one unit more would be too much.

    Parameters that nothing prunes (biases, norms, layers left out) remain and count. `spread` and `round_to` as for
    `Macs`.

    >>> import secateur as sc
    >>> model = torch.nn.Linear(9, 10)
    >>> masks = sc.prune(model, budget=sc.budget.Params(keep=0.3))
    >>> masks.kept + 10  # the biases stay: 30 of 100
    30
    """

    keep: float
    spread: str = "per_tensor"
    round_to: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", check_keep("Params", self.keep))
        self.check_spread()

    @classmethod
    def at(cls, share: float) -> Params:
        """A budget of what remains when this share is removed."""
        return cls(1.0 - (check_share("share", share) or 1e-9))

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """The first choice on the path that is small enough."""
        return within_share(self, selection, "params", "parameters")
