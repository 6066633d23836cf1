"""`floors`: the least number of units of each list that must remain, whatever the budget.

>>> import torch
>>> from torch import nn
>>> from secateur.core.units import Units
>>> selection = Selection((Candidates(Units("fc.weight", 4, ()), torch.arange(4.0)),), nn.Identity())
>>> floors(selection, at_least=1).candidates[0].least, floors(selection, at_most=0.3).candidates[0].least
(1, 3)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from secateur.budget._selection import Candidates, Selection, check_share
from secateur.core.targets import Pattern
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["Limits", "floors"]

Limits = (
    int
    | float
    | Mapping[Pattern, int]
    | Mapping[Pattern, float]
    | Mapping[str, int]
    | Mapping[str, float]
    | None
)
"""One number for every list, or a table of patterns to numbers; None sets no limit."""


def floors(selection: Selection, at_least: Limits = None, at_most: Limits = None) -> Selection:
    """The selection with the least number of units of each list that must remain.

    Args:
        selection: The lists, as they are before.
        at_least: A number of units, for all lists or by pattern; a list with fewer keeps what it has.
        at_most: The largest share that a list may lose, rounded down so that it is never passed.

    Raises:
        BudgetNotMetError: The masks given have already removed more than the floor allows.
    """
    if at_least is None and at_most is None:
        return selection
    least = {name: _units(value) for name, value in _by_list(selection, at_least, "at_least").items()}
    caps = {
        name: check_share("at_most", value) for name, value in _by_list(selection, at_most, "at_most").items()
    }
    found: list[Candidates] = []
    for candidates in selection.candidates:
        floor = min(candidates.count, least.get(candidates.name, 0))
        if candidates.name in caps:
            # rounded to nine places first: 0.29 * 100 is 28.999999999999996, and 29 was meant
            may_go = math.floor(round(caps[candidates.name] * candidates.count, 9))
            floor = max(floor, candidates.count - may_go)
        if candidates.removed > candidates.count - floor:
            raise BudgetNotMetError(
                f"{candidates.name!r}: {floor} of {candidates.count} units must stay (at_least, at_most), but the "
                f"masks given leave only {candidates.count - candidates.removed}; lower the floor, or pass regrow=True"
            )
        found.append(replace(candidates, least=floor))
    return replace(selection, candidates=tuple(found))


def _by_list(selection: Selection, value: Limits, option: str) -> dict[str, int | float]:
    """The option's value for each list that it names."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return selection.table(list(value.items()), option)
    return {candidates.name: value for candidates in selection.candidates}


def _units(value: int | float) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"at_least counts units: expected a whole number of at least 0, got {value!r}")
    return value
