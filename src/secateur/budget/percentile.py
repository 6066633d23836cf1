"""Percentile: units below a percentile of the worth go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.budget import Base, Contest, Pool, check_share
from secateur.budget._select import value_at
from secateur.errors import OptionError

__all__ = ["Percentile"]


@dataclass(frozen=True)
class Percentile(Base):
    """Units worth strictly less than the q-quantile of the worth go; interpolated as numpy does by default.

    `PerTensor(q)` counts: it removes exactly round(q * n) units. A percentile draws a line: it removes what
    lies below the value at position q * (n - 1), so of equal weights none. On large tensors without ties
    the two agree to one unit.

    `scope` is whose worth the line is drawn through: each `"tensor"` has its own, or there is one for the
    `"network"`. `of` says whether units worth exactly nothing (those pruned before) count in it: `"all"` or
    `"nonzero"`.

    >>> import torch, secateur as sc
    >>> layer = torch.nn.Linear(5, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0, 5.0, 2.0, -4.0]]))
    >>> sc.prune(layer, budget=sc.budget.Percentile(0.5))["weight"]
    tensor([[ True, False,  True, False,  True]])
    """

    q: float
    scope: str = "tensor"
    of: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", check_share("q", self.q))
        if self.scope not in ("tensor", "network"):
            raise OptionError(f"Percentile scope: expected 'tensor' or 'network', got {self.scope!r}")
        if self.of not in ("all", "nonzero"):
            raise OptionError(f"Percentile of: expected 'all' or 'nonzero', got {self.of!r}")

    @classmethod
    def at(cls, share: float) -> Percentile:
        """The line that has this share below it."""
        return cls(share)

    def choose(self, contest: Contest) -> dict[str, torch.Tensor]:
        """Each pool by its own line, or all by one."""
        groups = [[pool] for pool in contest.pools] if self.scope == "tensor" else [list(contest.pools)]
        chosen = {}
        for group in groups:
            for pool, keep in zip(group, self._line(group)):
                chosen[pool.name] = pool.floored(keep)
        return chosen

    def _line(self, pools: list[Pool]) -> list[torch.Tensor]:
        worth = [
            pool.worth if pool.gone is None else pool.worth.masked_fill(pool.gone, 0.0) for pool in pools
        ]
        counted = worth if self.of == "all" else [line[line != 0] for line in worth]
        count = sum(line.numel() for line in counted)
        if count == 0:
            return [torch.ones_like(line, dtype=torch.bool) for line in worth]
        below, fraction = divmod(self.q * (count - 1), 1)
        low = value_at(counted, int(below))
        if fraction == 0 or low == value_at(counted, int(below) + 1):
            return [line >= low for line in worth]
        # The line lies above `low` and not above the next value, so below it is what is not above `low`.
        return [line > low for line in worth]
