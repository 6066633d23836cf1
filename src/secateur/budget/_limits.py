"""Floors and caps: how many units of each pool must stay, whatever the budget says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from secateur.budget._contest import Candidates, Selection, check_share
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["floors"]


def floors(contest: Selection, at_least: Any = None, at_most: Any = None) -> tuple[Candidates, ...]:
    """The contest's pools, each with the least number of units that must stay.

    `at_least` counts units, for all pools or by pattern; a pool with fewer keeps what it has. `at_most` is
    the largest share a pool may lose, rounded down so that it is never passed.
    """
    if at_least is None and at_most is None:
        return contest.pools
    least = {name: _units(value) for name, value in _table(contest, at_least, "at_least").items()}
    caps = {
        name: check_share("at_most", value) for name, value in _table(contest, at_most, "at_most").items()
    }
    pools = []
    for pool in contest.pools:
        floor = min(pool.count, least.get(pool.name, 0))
        if pool.name in caps:
            # rounded to nine places first: 0.29 * 100 is 28.999999999999996, and 29 was meant
            floor = max(floor, pool.count - math.floor(round(caps[pool.name] * pool.count, 9)))
        if pool.removed > pool.count - floor:
            raise BudgetNotMetError(
                f"{pool.name!r}: {floor} of {pool.count} units must stay (at_least, at_most), but the "
                "masks given "
                f"leave only {pool.count - pool.removed}; lower the floor, or pass regrow=True"
            )
        pools.append(replace(pool, least=floor))
    return tuple(pools)


def _table(contest: Selection, value: Any, option: str) -> dict[str, Any]:
    """The option's value for each pool it speaks of."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return contest.table(list(value.items()), option)
    return {pool.name: value for pool in contest.pools}


def _units(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"at_least counts units: expected a whole number of at least 0, got {value!r}")
    return value
