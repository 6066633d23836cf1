"""Plans for torch's attention layer with fewer or smaller heads: the rewrite that its forward needs, and its numbers.

>>> from torch import nn
>>> attention_of(nn.Sequential(nn.MultiheadAttention(4, 2)), "0.out_proj")
'0'
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite_data import HEADS, Rewrite
from secateur.structure.groups.couplings import Structure

__all__ = ["attention_of", "fewer_heads", "with_fewer_heads"]


def attention_of(model: nn.Module, path: str) -> str | None:
    """The torch attention layer an operator ran in, if any."""
    parts = path.split(".") if path else []
    for stop in range(len(parts), max(-1, len(parts) - 2), -1):
        place = ".".join(parts[:stop])
        if isinstance(model.get_submodule(place), nn.MultiheadAttention):
            return place
    return None


def fewer_heads(
    structure: Structure, model: nn.Module, path: str, alive: np.ndarray, plan: ShrinkPlan
) -> ShrinkPlan | None:
    """The plan with the rewrite that lets a torch attention layer run with fewer heads."""
    module: Any = model.get_submodule(path)
    have = plan.rewrites.get(path, ())  # the mean of its heads' weights, if any
    if any(item.function == HEADS for item in have):
        return None
    rows = _rows_of_heads(structure, module, path, alive)
    if rows is None:
        return None
    (heads, size), (value_heads, value_size) = rows
    if heads != value_heads:
        return None
    before = getattr(module, "scaled_as", module.head_dim)
    sizes: tuple[tuple[int, int], ...] = ((0, heads), (1, size))
    if size != module.head_dim or size != value_size:
        sizes += ((2, before),)
    if size != value_size:
        sizes += ((3, value_size),)
    item = Rewrite(HEADS, -1, sizes)
    return replace(plan, rewrites={**plan.rewrites, path: (item, *have)})


def _rows_of_heads(
    structure: Structure, module: Any, path: str, alive: np.ndarray
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The number and the size of the remaining heads, of queries and of values; None if they are not rectangular."""
    width = module.num_heads * module.head_dim
    if module.in_proj_weight is not None:
        lines = [
            (f"{path}.in_proj_weight", slice(0, width)),
            (f"{path}.in_proj_weight", slice(2 * width, None)),
        ]
    else:
        lines = [(f"{path}.q_proj_weight", slice(None)), (f"{path}.v_proj_weight", slice(None))]
    found = []
    for name, rows in lines:
        labels = structure.slots.get((structure.trace.aliases.get(name, name), 0))
        if labels is None:
            return None
        stays = alive[labels[rows]].reshape(module.num_heads, -1)
        heads, size = int(stays.any(1).sum()), int(stays.any(0).sum())
        if int(stays.sum()) != heads * size:
            return None
        found.append((heads, size))
    return found[0], found[1]


def with_fewer_heads(
    structure: Structure, model: nn.Module, plan: ShrinkPlan, alive: np.ndarray
) -> ShrinkPlan:
    """The plan with its rewrite for every torch attention layer that loses heads.

    Args:
        structure: The structure of the original.
        model: The original.
        plan: The plan so far.
        alive: Which labels remain.
    """
    for path in [
        name.rpartition(".")[0] for name in plan.keep if name.endswith(("in_proj_weight", "q_proj_weight"))
    ]:
        module = model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention) and _heads_leave(structure, path, alive):
            plan = fewer_heads(structure, model, path, alive, plan) or plan
    return plan


def _heads_leave(structure: Structure, path: str, alive: np.ndarray) -> bool:
    """Whether rows of an attention layer's queries are removed."""
    names = (f"{path}.in_proj_weight", f"{path}.q_proj_weight")
    lines = [structure.slots.get((structure.trace.aliases.get(name, name), 0)) for name in names]
    return any(line is not None and not bool(alive[line].all()) for line in lines)
