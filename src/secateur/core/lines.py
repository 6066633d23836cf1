"""`Lines`: a mask of whole slices, stored as one vector of booleans per axis.

A mask of whole channels repeats one boolean for thousands of weights. Its lines hold it once per channel, which is all
that cutting channels needs.

>>> lines = Lines({0: torch.tensor([True, False]), 1: torch.tensor([True, True, False])}, (2, 3))
>>> lines.mask()
tensor([[ True,  True, False],
        [False, False, False]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Lines"]


@dataclass(frozen=True, eq=False)
class Lines:
    """The kept slices along each axis of a tensor of this shape; a weight is kept if all of its slices are."""

    axes: Mapping[int, torch.Tensor]
    shape: tuple[int, ...]

    def mask(self) -> torch.Tensor:
        """The full mask; axes without a line are expanded views and take no memory."""
        whole: torch.Tensor | None = None
        for axis, line in self.axes.items():
            view = [1] * len(self.shape)
            view[axis] = self.shape[axis]
            part = line.reshape(view)
            whole = part if whole is None else whole & part
        return (
            torch.ones((1,) * len(self.shape), dtype=torch.bool).expand(self.shape)
            if whole is None
            else (whole.expand(self.shape))
        )
