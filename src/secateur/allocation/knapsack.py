"""Knapsack: each list takes one of its levels, so that the sum of the losses is least within the limit, exactly.

Each list is cut alone at every level first. As Puzzletron (NVIDIA, Bercovich et al. 2024) chooses among a block's
alternatives, and as `Scan.allocate`. What lists save together is less than the sum of what each saves alone; the sum's
limit is lowered until the choice really is within the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.allocation import Allocator, Gone, Space
from secateur.allocation.fast_nas import LEVELS, check_levels, losses_alone
from secateur.errors import BudgetNotMetError

__all__ = ["Knapsack", "spend"]

_HALVINGS = 12


@dataclass(frozen=True)
class Knapsack(Allocator):
    """The levels whose losses, each measured alone, add up to the least.

    Args:
        levels: The shares of a list that are tried, rising.

    >>> cost = lambda gone: 1 - sum(gone) / 20
    >>> space = Space(("a", "b"), (10, 10), (9, 9), cost, lambda g: -g[0] ** 2 - 6 * g[1], limit=0.6)
    >>> Knapsack().search(space, seed=0)  # 9 + 30, where 3 of a and 5 of b are gone
    (3, 5)
    """

    levels: Sequence[float] = LEVELS

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def search(self, space: Space, seed: int) -> Gone:
        """Evaluate each list alone at every level, and choose."""
        rows = [[(0, 0.0), *row] for row in losses_alone(space, self.levels)]
        options = {
            name: [(space.cost(space.alone(at, gone)), loss) for gone, loss in row]
            for at, (name, row) in enumerate(zip(space.names, rows, strict=True))
        }
        cheapest = sum(min(cost for cost, _ in row) for row in options.values())
        most = tuple(row[-1][0] for row in rows)
        if not space.fits(most):
            raise BudgetNotMetError(
                f"allocate: expected to keep at most {space.limit:.4f} of the cost, got {space.cost(most):.4f} with "
                "the highest level of every list; try higher levels, or keep more"
            )
        names, low, high, found = space.names, cheapest, len(options) - 1.0 + space.limit, most
        middle = high  # what costs add up to beyond that of one network does not count
        for _ in range(_HALVINGS):
            taken = spend(options, middle)
            tried = tuple(row[taken[name]][0] for name, row in zip(names, rows, strict=True))
            if space.fits(tried):
                low, found = middle, tried
            else:
                high = middle
            if low >= high:
                break
            middle = (low + high) / 2
        space.value(found)
        return found


def spend(
    layers: Mapping[str, Sequence[tuple[float, float]]], limit: float, steps: int = 20_000
) -> dict[str, int]:
    """Which option each layer takes: the least total loss among choices that cost at most `limit` together.

    Each option is (cost, loss). Costs are measured from the layer's cheapest option and rounded up to `limit/steps`,
    so the limit always holds and what is lost by rounding is below `len(layers)/steps` of it. Among equal losses the
    cheaper choice wins, then the earlier option.

    Args:
        layers: For every layer its options, each (cost, loss).
        limit: What the costs may add up to.
        steps: How finely costs are rounded.

    >>> layers = {"a": [(10, 0.0), (5, 0.1)], "b": [(10, 0.0), (5, 0.3)]}
    >>> spend(layers, limit=15)
    {'a': 1, 'b': 0}
    """
    cheapest = {name: min(cost for cost, _ in options) for name, options in layers.items()}
    room = limit - sum(cheapest.values())
    tolerance = 1e-9 * max(1.0, abs(limit))
    if room < -tolerance:
        raise BudgetNotMetError(
            f"the layers' cheapest options cost {sum(cheapest.values()):,.6g} together, the limit is {limit:,.6g}; "
            "scan higher sparsities, or ask for less"
        )
    unit = max(room, 0.0) / steps
    best = np.zeros(steps + 1)
    taken: list[np.ndarray] = []
    for name, options in layers.items():
        found = np.full(steps + 1, np.inf)
        choice = np.zeros(steps + 1, dtype=np.int32)
        # Cheaper first, so that of equal losses the cheaper stays.
        for index in sorted(range(len(options)), key=lambda i: (options[i][0], i)):
            extra = options[index][0] - cheapest[name]
            weight = (
                0 if extra <= tolerance else (steps + 1 if unit == 0 else int(np.ceil(extra / unit - 1e-6)))
            )
            if weight > steps:
                continue
            total = np.full(steps + 1, np.inf)
            total[weight:] = best[: steps + 1 - weight] + options[index][1]
            better = total < found - 1e-15
            found[better] = total[better]
            choice[better] = index
        best = found
        taken.append(choice)
    result: dict[str, int] = {}
    left = int(np.argmin(best))  # the least room that reaches the least loss
    for (name, options), choice in zip(reversed(list(layers.items())), reversed(taken)):
        index = int(choice[left])
        result[name] = index
        extra = options[index][0] - cheapest[name]
        left -= 0 if extra <= tolerance else int(np.ceil(extra / unit - 1e-6))
    return {name: result[name] for name in layers}
