"""PerLayer: a table with the sparsity of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.budget import Budget, Selection, check_share, share_of
from secateur.budget.per_tensor import PerTensor
from secateur.core.schedule import OneShot, Schedule
from secateur.core.targets import Pattern
from secateur.errors import OptionError

__all__ = ["PerLayer"]


@dataclass(frozen=True)
class PerLayer(Budget):
    """A sparsity per layer name or pattern; layers that no pattern matches stay dense. If two patterns match the same
    layer, the later entry holds, so a general rule comes first: `{"*": 0.5, "fc": 0.2}`. A pattern that matches no
    layer is an error. Of channels or heads one stays, as with `PerTensor`.

    >>> import torch, secateur as sc
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    >>> masks = sc.prune(model, budget=sc.budget.PerLayer({"*": 0.5, "1": 0.25}))
    >>> [row.kept for row in masks.summary()]
    [8, 6]
    """

    table: Mapping[Pattern, float] | tuple[tuple[Pattern, float], ...]

    def __post_init__(self) -> None:
        rows = self.table.items() if isinstance(self.table, Mapping) else self.table
        if isinstance(rows, (str, bytes)) or not rows:
            raise OptionError(f"PerLayer: expected a table of layer pattern to sparsity, got {self.table!r}")
        try:
            checked = tuple(
                (pattern, check_share(f"sparsity of {pattern!r}", share)) for pattern, share in rows
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                f"PerLayer: expected a table of layer pattern to sparsity, got {self.table!r}"
            ) from None
        object.__setattr__(self, "table", checked)

    @classmethod
    def at(cls, share: float) -> PerLayer:
        """The same share for every layer."""
        return cls({"*": share})

    def steps(self, schedule: Schedule) -> tuple[PerLayer, ...]:
        """Every row of the table rises to its own sparsity."""
        if isinstance(schedule, OneShot):
            return (self,)
        rows: Any = self.table
        ways = [schedule.levels(share) for _, share in rows]
        patterns = [pattern for pattern, _ in rows]
        return tuple(replace(self, table=tuple(zip(patterns, levels))) for levels in zip(*ways))

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list that the table matches, with its share."""
        rows: Any = self.table
        shares = selection.table(rows, "PerLayer")
        return {name: PerTensor(share) for name, share in shares.items()}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Remove the lowest of each list, as many as its row says."""
        rows: Any = self.table
        shares = selection.table(rows, "PerLayer")
        chosen = {}
        for candidates in selection.candidates:
            asked = candidates.removed
            if candidates.name in shares:
                share = shares[candidates.name]
                selection.check_not_past(candidates, share_of(share, candidates.count), self)
                asked = candidates.going(share)
            chosen[candidates.name] = candidates.drop(asked)
        return chosen
