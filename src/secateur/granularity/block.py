"""Block: rectangles of the weight seen as a table are cut as one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units
from secateur.errors import OptionError
from secateur.granularity import Granularity
from secateur.granularity._members import BlockMember, FlatMember

__all__ = ["Block"]


@dataclass(frozen=True)
class Block(Granularity):
    """`height` outputs by `width` neighbouring weights of the [out, everything else] table of each tensor.

    Where the table does not divide evenly the last row and column of blocks are smaller, and compete as
    they are.

    >>> from secateur.core.targets import select
    >>> layer = nn.Linear(10, 6)
    >>> Block(4, 4).units(layer, select(layer), Context())[0].grid
    (2, 3)
    """

    height: int = 4
    width: int = 4

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"block {name}: expected a whole number of at least 1, got {value!r}")

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per tensor, its blocks row by row."""
        found = []
        for target in targets:
            if not target.shape:
                found.append(Units(target.name, 1, (FlatMember(target.name),), (1,), ("out",)))
                continue
            member = BlockMember(target.name, self.height, self.width, target.out_axis)
            grid = member.grid(target.shape)
            found.append(Units(target.name, math.prod(grid), (member,), grid, ("out", "in")))
        return tuple(found)
