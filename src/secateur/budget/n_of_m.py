"""NOfM: of every m neighbours n remain, the pattern of sparse tensor cores (2 of 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.budget import Budget, Candidates, Selection, check_share
from secateur.core.masks import count_true
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["NOfM"]


@dataclass(frozen=True)
class NOfM(Budget):
    """Of every `m` adjacent units along `axis`, the `n` with the highest scores remain.

    `axis` is `"in"` (the layer's inputs, as 2:4 hardware requires), `"out"`, or a number counting the
    sides of the grid the units form: the tensor's own axes for single weights, (out, in) for kernels and
    blocks. Units that form a line, such as filters, are taken along it.

    Where the axis is no multiple of `m`: `tail="error"` names the layers; `tail="keep"` leaves the last,
    short group whole; `tail="share"` keeps round(n / m * length) of it.

    >>> import torch, secateur as sc
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0, 5.0, 2.0]]))
    >>> sc.prune(layer, budget=sc.budget.NOfM(2, 4))["weight"]
    tensor([[ True, False,  True, False]])
    """

    n: int = 2
    m: int = 4
    axis: str | int = "in"
    tail: str = "error"

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"NOfM {name}: expected a whole number of at least 1, got {value!r}")
        if self.n >= self.m:
            raise OptionError(f"NOfM: n of every m stay, so n must be below m; got n={self.n}, m={self.m}")
        number = isinstance(self.axis, int) and not isinstance(self.axis, bool)
        if not number and self.axis not in ("in", "out"):
            raise OptionError(f"NOfM axis: expected 'in', 'out' or a number, got {self.axis!r}")
        if self.tail not in ("error", "keep", "share"):
            raise OptionError(f"NOfM tail: expected 'error', 'keep' or 'share', got {self.tail!r}")

    @classmethod
    def at(cls, share: float) -> NOfM:
        """The n of 4 nearest to this share, with short groups pruned by the same share."""
        return cls(min(3, max(1, round(4 * (1 - check_share("share", share))))), 4, tail="share")

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """Each list by itself."""
        return {candidates.name: self for candidates in selection.candidates}

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Every group of every list by itself."""
        sides = [self._side(candidates) for candidates in selection.candidates]
        uneven = [
            f"{candidates.name!r} ({candidates.grid[side]})"
            for candidates, side in zip(selection.candidates, sides)
            if candidates.grid[side] % self.m
        ]
        if uneven and self.tail == "error":
            raise OptionError(
                f"{self}: the axis is no multiple of {self.m} in {', '.join(uneven[:8])}"
                f"{' and more' if len(uneven) > 8 else ''}; leave these layers out with skip=[...], "
                "or choose how the short group is pruned: tail='keep' or tail='share'"
            )
        return {
            candidates.name: self._groups(candidates, side)
            for candidates, side in zip(selection.candidates, sides)
        }

    def _side(self, candidates: Candidates) -> int:
        """Which side of the list's grid the groups run along."""
        grid, axes = candidates.grid, candidates.units.axes
        if len(grid) == 1:
            return 0
        if isinstance(self.axis, str):
            if self.axis in axes:
                return axes.index(self.axis)
            raise OptionError(
                f"NOfM: the units of {candidates.name!r} form a grid {grid} without an {self.axis!r} axis; "
                "give its number"
            )
        if not -len(grid) <= self.axis < len(grid):
            raise OptionError(f"NOfM axis: {candidates.name!r} has {len(grid)} axes {grid}, got {self.axis}")
        return self.axis % len(grid)

    def _groups(self, candidates: Candidates, side: int) -> torch.Tensor:
        grid = candidates.grid
        scores = candidates.ranked.reshape(grid).movedim(side, -1)
        length = grid[side]
        whole = length - length % self.m
        keep = torch.ones_like(scores, dtype=torch.bool)
        if whole:
            keep[..., :whole] = _keep(scores[..., :whole].unflatten(-1, (-1, self.m)), self.n).flatten(-2)
        if whole < length and self.tail == "share":
            keep[..., whole:] = _keep(scores[..., whole:], round(self.n / self.m * (length - whole)))
        keep = keep.movedim(-1, side).reshape(-1)
        if candidates.gone is not None:
            keep &= ~candidates.gone
        if count_true(keep) < candidates.least:
            raise BudgetNotMetError(
                f"{self} leaves {count_true(keep)} units of {candidates.name!r}, but {candidates.least} must stay "
                "(at_least, "
                "at_most); skip the layer, or lower the floor"
            )
        return keep


def _keep(groups: torch.Tensor, n: int) -> torch.Tensor:
    """True for the n highest along the last axis; of equals the earlier is removed first."""
    order = torch.sort(groups, dim=-1, stable=True).indices
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(-1, order[..., groups.shape[-1] - n :], True)
