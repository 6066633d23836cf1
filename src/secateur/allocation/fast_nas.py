"""FastNAS: each list is cut alone at every level; one threshold on the loss of accuracy decides all widths.

As ModelOpt's `fastnas` (NVIDIA): the losses of narrower widths count at least as much as those of wider ones, and the
threshold is found by bisection on the constraint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.allocation import Allocator, Gone, Space
from secateur.allocation._thresholds import at_threshold, rising
from secateur.errors import OptionError

__all__ = ["FastNas", "losses_alone"]

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))


@dataclass(frozen=True)
class FastNas(Allocator):
    """Every list loses as much as it can alone for at most t of the value; t is the least within the limit.

    Args:
        levels: The shares of a list that are tried, rising.

    >>> space = Space(("a", "b"), (10, 10), (9, 9), lambda g: 1 - sum(g) / 20, lambda g: -g[0] - 3 * g[1], limit=0.6)
    >>> FastNas().search(space, seed=0)  # at t = 6 six of a and two of b
    (6, 2)
    """

    levels: Sequence[float] = LEVELS

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def search(self, space: Space, seed: int) -> Gone:
        """Evaluate each list alone at every level, and find the threshold."""
        return at_threshold(space, losses_alone(space, self.levels))


def check_levels(levels: Sequence[float]) -> None:
    """Raise an `OptionError` unless levels are rising shares.

    Args:
        levels: What was given.
    """
    found = list(levels)
    if not found or found != sorted(set(found)) or not 0 < found[0] <= found[-1] < 1:
        raise OptionError(f"levels: expected rising shares 0 < level < 1, each once, got {found}")


def losses_alone(space: Space, levels: Sequence[float]) -> list[list[tuple[int, float]]]:
    """For every list (units gone, loss of value) where it alone is cut, rising.

    Args:
        space: The lists, and the value of a choice.
        levels: The shares of a list that are tried.
    """
    dense = space.value(space.none)
    found = []
    for at, (count, most) in enumerate(zip(space.counts, space.most, strict=True)):
        gone = sorted({min(most, round(level * count)) for level in levels} - {0})
        found.append(rising([(each, dense - space.value(space.alone(at, each))) for each in gone]))
    return found
