"""`at_threshold`: each list loses as much as it can while its own loss stays below one threshold.

>>> from secateur.allocation._space import Space
>>> space = Space(("a", "b"), (4, 4), (3, 3), lambda gone: 1 - sum(gone) / 8, lambda gone: 0.0, limit=0.6)
>>> losses = [[(1, 0.1), (2, 0.5)], [(1, 0.2), (2, 0.3), (3, 0.9)]]
>>> at_threshold(space, losses)  # at 0.3 one of a and two of b are gone: 5 / 8 remain; at 0.5 two of each
(2, 2)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from secateur.allocation._space import Gone, Space
from secateur.errors import BudgetNotMetError

__all__ = ["at_threshold", "rising"]


def rising(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """(units gone, loss) of one list, each loss at least that of fewer units gone, and at least 0.

    Args:
        losses: In the order of the units.

    >>> rising([(1, -0.1), (2, 0.3), (3, 0.2)])
    [(1, 0.0), (2, 0.3), (3, 0.3)]
    """
    highest = itertools.accumulate((loss for _, loss in losses), max, initial=0.0)
    return [(gone, loss) for (gone, _), loss in zip(losses, itertools.islice(highest, 1, None), strict=True)]


def at_threshold(space: Space, losses: Sequence[Sequence[tuple[int, float]]]) -> Gone:
    """The choice at the lowest threshold that is within the limit.

    Args:
        space: The lists, the cost and the limit.
        losses: For every list (units gone, loss), both rising.

    Raises:
        BudgetNotMetError: Not even the largest of these numbers of units are enough.
    """
    thresholds = sorted({loss for row in losses for _, loss in row})

    def choice(threshold: float) -> Gone:
        return tuple(max((gone for gone, loss in row if loss <= threshold), default=0) for row in losses)

    least = space.cost(choice(thresholds[-1]))
    if not space.fits(choice(thresholds[-1])):
        raise BudgetNotMetError(
            f"allocate: expected to keep at most {space.limit:.4f} of the cost, got {least:.4f} with the highest level "
            "of every list; try higher levels, or keep more"
        )
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if space.fits(choice(thresholds[middle])) else (middle + 1, high)
    return choice(thresholds[low])
