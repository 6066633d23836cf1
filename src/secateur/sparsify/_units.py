"""The units that a penalty shrinks, and their differentiable squared norms.

>>> model = nn.Linear(2, 2, bias=False)
>>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
>>> [squares(each).tolist() for each in lists_of(model, "filter", None)]
[[25.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur import granularity as granularities
from secateur.core.context import Context
from secateur.core.targets import Pattern
from secateur.core.units import Member
from secateur.execution.example import Example
from secateur.granularity import GranularityLike
from secateur.pruning.taking_part import targets_of

__all__ = ["Patterns", "UnitList", "lists_of", "squares"]

Patterns = Pattern | Sequence[Pattern] | None


@dataclass(frozen=True, eq=False)
class UnitList:
    """One list of competing units: how each of its parameters is divided among them, and the parameters."""

    name: str
    count: int
    parts: tuple[tuple[Member, nn.Parameter], ...]

    @property
    def size(self) -> int:
        """The number of weights of one unit."""
        return sum(int(member.gather(parameter.detach()).shape[1]) for member, parameter in self.parts)


def lists_of(
    model: nn.Module,
    granularity: GranularityLike,
    example: Example,
    only: Patterns = None,
    skip: Patterns = None,
) -> tuple[UnitList, ...]:
    """The lists of units of a model, without biases, which do not count in a unit's norm.

    Args:
        model: The model.
        granularity: What is one unit.
        example: One input, for granularities that follow the channels.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.
    """
    grain = granularities.registry.make(granularity)
    context = Context(example=example)
    targets = targets_of(model, grain, context, only, skip)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for units in grain.units(model, targets, context):
        parts = tuple(
            (member, parameters[member.name])
            for member in units.members
            if not member.name.endswith("bias") and parameters[member.name].requires_grad
        )
        if parts:
            found.append(UnitList(units.name, units.count, parts))
    return tuple(found)


def squares(units: UnitList) -> torch.Tensor:
    """The squared norm of every unit of a list."""
    total: torch.Tensor | None = None
    for member, parameter in units.parts:
        part = member.gather(parameter).float().square().sum(dim=1)
        total = part if total is None else total + part.to(total.device)
    assert total is not None
    return total
