"""Element: every single weight is a unit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units
from secateur.granularity import Granularity
from secateur.granularity._members import FlatMember

__all__ = ["Element"]


@dataclass(frozen=True)
class Element(Granularity):
    """Single weights, of any tensor. Also called fine-grained or unstructured.

    >>> from secateur.core.targets import select
    >>> layer = nn.Linear(3, 2)
    >>> Element().units(layer, select(layer), Context())[0].count
    6
    """

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per tensor, its weights in their own order."""
        return tuple(
            Units(target.name, target.numel, (FlatMember(target.name),), target.shape, _axes(target))
            for target in targets
        )


def _axes(target: Target) -> tuple[str, ...]:
    """The meaning of each axis of a tensor."""
    named = {target.out_axis: "out", target.in_axis: "in"}
    return tuple(named.get(axis, "tap") for axis in range(len(target.shape)))
