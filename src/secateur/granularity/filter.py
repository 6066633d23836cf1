"""Filter: everything that makes one output of a layer is cut as one unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Member, Units
from secateur.granularity import Granularity
from secateur.granularity._members import FilterMember, FlatMember

__all__ = ["Filter"]


@dataclass(frozen=True)
class Filter(Granularity):
    """One unit per output channel of a convolution, per row of a linear layer, per word of an embedding.

    The filter's weights are removed; its bias, a norm after it and later layers are not, so that its output becomes a
    constant. To remove a channel from every tensor that has it, cut by channel.

    >>> from secateur.core.targets import select
    >>> layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    >>> Filter().units(layer, select(layer), Context())[0].count
    6
    """

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per tensor, its outputs in order."""
        found = []
        for target in targets:
            member: Member
            if not target.shape:
                count, member = 1, FlatMember(target.name)
            elif target.kind == "conv_transpose":
                count = target.shape[target.out_axis] * target.groups
                member = FilterMember(target.name, target.out_axis, target.groups)
            else:
                count, member = target.shape[target.out_axis], FilterMember(target.name, target.out_axis)
            found.append(Units(target.name, count, (member,), (count,), ("out",)))
        return tuple(found)
