"""GradNAS: as FastNAS, with the loss of a list estimated by gradients: the sum over the units that leave.

As ModelOpt's `gradnas` (NVIDIA). Nothing is evaluated but the gradients of a few batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.allocation import Allocator, Gone, Space
from secateur.allocation._thresholds import at_threshold, rising
from secateur.errors import OptionError

__all__ = ["GradNas"]


@dataclass(frozen=True)
class GradNas(Allocator):
    """Every list loses as many units as it can for an estimated rise of the loss of at most t, the least that fits.

    The estimate of a unit is the criterion `taylor`'s.

    >>> losses = lambda: [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    >>> space = Space(("a", "b"), (4, 4), (3, 3), lambda gone: 1 - sum(gone) / 8, lambda gone: 0.0, 0.7, losses)
    >>> GradNas().search(space, seed=0)
    (2, 1)
    """

    def search(self, space: Space, seed: int) -> Gone:
        """Find the threshold on the estimates."""
        if space.losses is None:
            raise OptionError(
                "grad_nas: expected data= and loss= to estimate the rise of the loss by, got none; pass "
                "options=sc.AllocateOptions(data=batches, loss=function)"
            )
        rows = [rising(list(enumerate(row, start=1))) for row in space.losses()]
        return at_threshold(space, rows)
