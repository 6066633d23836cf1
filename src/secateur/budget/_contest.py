"""What a budget decides about: `Candidates`s of competing units, gathered in one `Selection`.

>>> import torch
>>> from secateur.core.units import Units
>>> pool = Candidates(Units("fc.weight", 4, ()), worth=torch.tensor([3.0, 1.0, 1.0, 2.0]))
>>> pool.drop(2)
tensor([ True, False, False,  True])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.budget._select import keep_highest
from secateur.core.context import Context
from secateur.core.masks import count_true
from secateur.core.targets import Pattern, Target, matches
from secateur.core.units import Units
from secateur.errors import BudgetNotMetError, OptionError, PatternError, near

__all__ = ["Candidates", "Selection", "check_share", "share_of"]


def check_share(what: str, value: Any) -> float:
    """The share removed as a float, or an `OptionError` unless it is a number with 0 <= share < 1.

    >>> check_share("sparsity", 50)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: sparsity is the share removed: expected a number with 0 <= sparsity < 1,
    got 50; for 50 % write 0.5
    """
    wanted = f"{what} is the share removed: expected a number with 0 <= {what} < 1, got {value!r}"
    if isinstance(value, str):
        raise OptionError(f"{wanted}, which is text; write the number without quotes")
    try:
        share = float(value)
    except (TypeError, ValueError):
        raise OptionError(f"{wanted} of type {type(value).__name__}") from None
    if isinstance(value, bool) or math.isnan(share):
        raise OptionError(wanted)
    if share == 1.0:
        raise OptionError(f"{wanted}; that would remove everything")
    if 1.0 < share < 100.0:
        raise OptionError(f"{wanted}; for {share:g} % write {share / 100:g}")
    if not 0.0 <= share < 1.0:
        raise OptionError(wanted)
    return share


def share_of(share: float, count: int) -> int:
    """How many of `count` units a share is: rounded half to even, once. Every budget counts with this.

    >>> share_of(0.5, 5), share_of(0.5, 7), share_of(0.9, 4)
    (2, 4, 4)
    """
    return round(share * count)


@dataclass(frozen=True, eq=False)
class Candidates:
    """One list of competing units: what each is worth, which are already gone, how many must stay."""

    units: Units
    worth: torch.Tensor  # [units], finite
    gone: torch.Tensor | None = None  # [units], True where an earlier round removed the unit
    least: int = 0  # never fewer than so many units stay
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the members' tensors

    @property
    def name(self) -> str:
        """The name of the list: the parameter's, or the coupled group's."""
        return self.units.name

    @property
    def count(self) -> int:
        """How many units compete."""
        return self.units.count

    @property
    def grid(self) -> tuple[int, ...]:
        """How the units lie beside each other; a plain list where nothing is known of that."""
        return self.units.grid or (self.count,)

    @property
    def removed(self) -> int:
        """How many of them are already gone."""
        return 0 if self.gone is None else count_true(self.gone)

    @property
    def most(self) -> int:
        """How many may go in all, under the floor."""
        return max(0, self.count - self.least)

    @property
    def ranked(self) -> torch.Tensor:
        """The worth with the units already gone put before all others."""
        return self.worth if self.gone is None else self.worth.masked_fill(self.gone, -math.inf)

    def sizes(self) -> torch.Tensor:
        """How many weights each unit has, over all tensors it cuts."""
        total = torch.zeros(self.count, dtype=torch.int64)
        for member in self.units.members:
            shape = self.shapes[member.name]
            exact = getattr(member, "sizes", None)
            if exact is not None:
                total += exact(shape)
            else:
                total += member.gather(torch.empty(shape, device="meta")).shape[1]
        return total

    def drop(self, count: int) -> torch.Tensor:
        """True for all units but the `count` of least worth; keeps to the floor and brings none back."""
        removed = self.removed
        return keep_highest([self.ranked], max(removed, min(count, self.most)))[0]

    def floored(self, keep: torch.Tensor) -> torch.Tensor:
        """A choice made by threshold, with the units already gone and the floor seen to."""
        if self.gone is not None:
            keep = keep & ~self.gone
        removed = self.count - count_true(keep)
        return keep if removed <= self.most else self.drop(self.most)


@dataclass(frozen=True, eq=False)
class Selection:
    """Everything a budget may look at: the pools, and the model they are cut from."""

    pools: tuple[Candidates, ...]
    model: nn.Module
    targets: Sequence[Target] = ()
    context: Context = field(default_factory=Context)
    meter: Callable[[], Any] | None = None  # what a choice costs, for budgets that say what remains

    @property
    def count(self) -> int:
        """How many units compete in all."""
        return sum(pool.count for pool in self.pools)

    def weights(self, pool: Candidates) -> torch.Tensor:
        """The weights a pool scores, as one flat tensor."""
        names = [member.name for member in pool.units.members if member.scored]
        flat = [self.model.get_parameter(name).detach().reshape(-1) for name in dict.fromkeys(names)]
        return flat[0] if len(flat) == 1 else torch.cat([part.to(flat[0].device) for part in flat])

    def matching(self, pattern: Pattern, option: str) -> list[Candidates]:
        """The pools a pattern means, by layer, parameter, module type or group; none at all is an error."""
        found = [pool for pool in self.pools if self._means(pattern, pool)]
        if found:
            return found
        shown = pattern.__name__ if isinstance(pattern, type) else str(pattern)
        known = {pool.name for pool in self.pools}
        known |= {name.rpartition(".")[0] for pool in self.pools for name in self._owners(pool)}
        raise PatternError(
            f"{option}: pattern {shown!r} matches no layer that is being pruned: "
            f"{near(shown.removeprefix('type:'), known - {''})}"
        )

    def table(self, values: Sequence[tuple[Pattern, Any]], option: str) -> dict[str, Any]:
        """The value of each pool that a table of patterns speaks of; of two that match, the later holds."""
        found: dict[str, Any] = {}
        for pattern, value in values:
            for pool in self.matching(pattern, option):
                found[pool.name] = value
        return found

    def _means(self, pattern: Pattern, pool: Candidates) -> bool:
        if pattern == pool.name:
            return True
        for name in self._owners(pool):
            layer = name.rpartition(".")[0]
            if matches(pattern, layer, name, self.model.get_submodule(layer)):
                return True
        return False

    def check_not_past(self, pool: Candidates, asked: int, budget: Any) -> None:
        """Raise unless the units already gone leave room for the count asked: masks only grow."""
        if pool.removed > asked:
            raise BudgetNotMetError(
                f"{budget} removes {asked} of the {pool.count} units of {pool.name!r}, but the masks given "
                f"have already removed {pool.removed} and masks only grow; ask for a sparsity of at least "
                f"{pool.removed / pool.count:.4g}, or pass regrow=True"
            )

    def _owners(self, pool: Candidates) -> list[str]:
        """The parameters a pool is called by: those it cuts along their outputs, else all it scores."""
        outputs = {target.name: target.out_axis for target in self.targets}
        scored = [member for member in pool.units.members if member.scored]
        own = [m.name for m in scored if getattr(m, "axis", None) == outputs.get(m.name, 0)]
        return own or [member.name for member in scored]
