"""Parts of a plan that need no trial: old counts for operators that divide by a length, and where its calls stand.

>>> from secateur.structure.cut.rewrite_data import Rewrite
>>> _sites(nn.Linear, [Rewrite("reshape", 0, ((1, 6),))], []) is None
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from secateur.structure.cut.call_sites import Site, site_of
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite_data import Rewrite
from secateur.structure.groups.couplings import Structure
from secateur.structure.trace.calls import SIZED, FunctionCall

__all__ = ["with_counts", "with_sites"]


def with_counts(structure: Structure, plan: ShrinkPlan, alive: np.ndarray) -> ShrinkPlan:
    """The plan with the old count for every operator that divides by the number of positions of an axis.

    Args:
        structure: The structure of the original.
        plan: The plan so far.
        alive: Which labels remain.
    """
    rewrites = {path: list(items) for path, items in plan.rewrites.items()}
    for follower in (structure.follower, *structure.more):
        for each in follower.counted:
            now = int(alive[each.labels].sum())
            have = rewrites.setdefault(each.op.path, [])
            sizes: tuple[tuple[int, int], ...] = ((0, each.labels.size), (1, now))
            sizes += () if each.axis is None else ((2, each.axis),)
            known = {(item.function, item.sizes) for item in have}
            if now < each.labels.size and (each.function, sizes) not in known:
                have.append(Rewrite(each.function, min([-1, *(item.call for item in have)]) - 1, sizes))
    return replace(plan, rewrites={path: tuple(items) for path, items in rewrites.items() if items})


def with_sites(structure: Structure, model: nn.Module, plan: ShrinkPlan) -> ShrinkPlan:
    """The plan in which rewrites know the place of their calls in the source, for modules where all of them can.

    A call in a loop is made several times from one place. It has a site if all of them get the same sizes.

    Args:
        structure: The structure of the original.
        model: The original.
        plan: The plan, complete otherwise.
    """
    made: dict[str, list[FunctionCall]] = {}
    for call in structure.trace.calls:
        if call.numbers:
            made.setdefault(call.numbers[0][0], []).append(call)
    rewrites = dict(plan.rewrites)
    for path, items in plan.rewrites.items():
        sites = _sites(type(model.get_submodule(path)), items, made.get(path, []))
        if sites is not None:
            rewrites[path] = tuple(replace(item, site=site) for item, site in zip(items, sites))
    return replace(plan, rewrites=rewrites)


def _sites(base: type, items: Sequence[Rewrite], calls: Sequence[FunctionCall]) -> list[Site] | None:
    """The sites of all rewrites of a module, or None where one has none; rewrites of one site are the same."""
    table = {item.call: item for item in items}
    found: dict[Site, Rewrite] = {}
    sites: dict[int, Site] = {}
    chains = {call.chain for call in calls if call.numbers[0][1] in table}
    for call in calls:
        if call.chain not in chains:
            continue
        item = table.get(call.numbers[0][1])
        site = site_of(base, call.chain) if call.chain else None
        if item is None or site is None or item.function not in SIZED or item.function != call.function:
            return None
        first = found.setdefault(site, item)
        if first.sizes != item.sizes:
            return None
        sites[item.call] = site
    return [sites[item.call] for item in items] if len(sites) == len(table) == len(items) else None
