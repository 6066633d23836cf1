"""Kernel: the k x k slice that joins one input channel to one output channel is cut as one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units
from secateur.granularity import Granularity
from secateur.granularity._members import FlatMember

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel(Granularity):
    """One unit per (output, input) pair: k weights in a Conv1d, k x k in a Conv2d, k x k x k in a Conv3d.

    A linear layer or an embedding has 1 x 1 kernels, so there it means single weights.

    >>> from secateur.core.targets import select
    >>> layer = nn.Conv2d(3, 4, 5)
    >>> Kernel().units(layer, select(layer), Context())[0].grid
    (4, 3)
    """

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per tensor, its kernels in the tensor's own order."""
        found = []
        for target in targets:
            grid, taps = target.shape[:2], math.prod(target.shape[2:])
            named = {target.out_axis: "out", target.in_axis: "in"}
            axes = tuple(named.get(axis, "tap") for axis in range(len(grid)))
            found.append(Units(target.name, math.prod(grid), (FlatMember(target.name, taps),), grid, axes))
        return tuple(found)
