"""Percentile: units below a percentile of the scores are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.budget import Budget, Candidates, Selection, check_share
from secateur.budget._depth import check_comparable
from secateur.budget._select import value_at
from secateur.core.targets import Pattern
from secateur.errors import OptionError

__all__ = ["Percentile"]


@dataclass(frozen=True)
class Percentile(Budget):
    """Units that score strictly less than the q-quantile of the scores are removed; interpolated as numpy does by
    default.

    `PerTensor(q)` counts: it removes exactly round(q * n) units. A percentile is a threshold: it removes units below
    the value at position q * (n - 1), so of equal weights none. On large tensors without ties the two agree to one
    unit.

    `scope` says which scores give the threshold: each `"tensor"` has its own, or there is one for the `"network"`. `of`
    says whether units whose score is exactly 0 (those pruned before) count: `"all"` or `"nonzero"`. `equal` says what
    happens to units that equal the threshold: they `"stay"`, or they `"go"`, as in code that keeps what is greater than
    a percentile.

    `q` may be a table of layer patterns, as `PerLayer` takes it; layers that it does not match stay dense.

    >>> import torch, secateur as sc
    >>> layer = torch.nn.Linear(5, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0, 5.0, 2.0, -4.0]]))
    >>> sc.prune(layer, budget=sc.budget.Percentile(0.5))["weight"]
    tensor([[ True, False,  True, False,  True]])
    >>> sc.prune(layer, budget=sc.budget.Percentile({"*": 0.5}, equal="go")).kept
    2
    """

    q: float | Mapping[Pattern, float] | tuple[tuple[Pattern, float], ...]
    scope: str = "tensor"
    of: str = "all"
    equal: str = "stay"

    def __post_init__(self) -> None:
        q: Any = self.q
        if isinstance(q, (Mapping, tuple)):
            rows = tuple(q.items() if isinstance(q, Mapping) else q)
            if not rows or self.scope == "network":
                raise OptionError(
                    f"Percentile q: expected a share, or a table of layer pattern to share (with scope='tensor'), got "
                    f"{q!r} with scope={self.scope!r}"
                )
            checked: Any = tuple(
                (pattern, check_share(f"q of {pattern!r}", share)) for pattern, share in rows
            )
        else:
            checked = check_share("q", q)
        object.__setattr__(self, "q", checked)
        if self.scope not in ("tensor", "network"):
            raise OptionError(f"Percentile scope: expected 'tensor' or 'network', got {self.scope!r}")
        if self.of not in ("all", "nonzero"):
            raise OptionError(f"Percentile of: expected 'all' or 'nonzero', got {self.of!r}")
        if self.equal not in ("stay", "go"):
            raise OptionError(f"Percentile equal: expected 'stay' or 'go', got {self.equal!r}")

    @classmethod
    def at(cls, share: float) -> Percentile:
        """The threshold that has this share below it."""
        return cls(share)

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list by its own threshold, unless there is one for the network."""
        if self.scope == "network":
            return None
        table: Any = self.q
        if isinstance(table, tuple):
            shares = selection.table(table, "Percentile")
        else:
            shares = dict.fromkeys((candidates.name for candidates in selection.candidates), table)
        return {name: replace(self, q=share) for name, share in shares.items()}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Each list by its own threshold, or all by one."""
        if self.scope == "network":
            check_comparable(self, selection)
        table: Any = self.q
        if isinstance(table, tuple):
            shares = selection.table(table, "Percentile")
        else:
            shares = dict.fromkeys((candidates.name for candidates in selection.candidates), table)
        groups = (
            [[candidates] for candidates in selection.candidates]
            if self.scope == "tensor"
            else [list(selection.candidates)]
        )
        chosen = {}
        for group in groups:
            q = shares.get(group[0].name)
            lines = (
                self._line(group, q)
                if q is not None
                else [candidates.drop(candidates.removed) for candidates in group]
            )
            for candidates, keep in zip(group, lines):
                chosen[candidates.name] = candidates.floored(keep)
        return chosen

    def _line(self, entries: list[Candidates], q: float) -> list[torch.Tensor]:
        scores = [
            candidates.scores
            if candidates.gone is None
            else candidates.scores.masked_fill(candidates.gone, 0.0)
            for candidates in entries
        ]
        counted = scores if self.of == "all" else [line[line != 0] for line in scores]
        count = sum(line.numel() for line in counted)
        if count == 0:
            return [torch.ones_like(line, dtype=torch.bool) for line in scores]
        below, fraction = divmod(q * (count - 1), 1)
        low = value_at(counted, int(below))
        # The threshold is `low`, or above it and not above the next value.
        at_low = fraction == 0 or low == value_at(counted, int(below) + 1)
        if at_low and self.equal == "stay":
            return [line >= low for line in scores]
        return [line > low for line in scores]
