"""`spend`: the sparsity of each layer with the least total loss, given the loss that a scan measured for each.

`spend` solves the separable problem exactly on a fine grid: choose one option per layer so that the predicted loss is
smallest while the costs together stay within a limit (a multiple-choice knapsack, by dynamic programming).

>>> layers = {"a": [(10, 0.0), (5, 0.1)], "b": [(10, 0.0), (5, 0.3)]}  # (cost, loss) of each option
>>> spend(layers, limit=15)
{'a': 1, 'b': 0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.errors import BudgetNotMetError

__all__ = ["spend"]


def spend(
    layers: Mapping[str, Sequence[tuple[float, float]]], limit: float, steps: int = 20_000
) -> dict[str, int]:
    """Which option each layer takes: the least total loss among choices that cost at most `limit` together.

    Each option is (cost, loss). Costs are measured from the layer's cheapest option and rounded up to `limit/steps`,
    so the limit always holds and rounding leaves at most `len(layers)/steps` of it unused. Among equal losses the
    cheaper choice wins, then the earlier option.
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
    left = int(np.argmin(best))  # the least cost that reaches the least loss
    for (name, options), choice in zip(reversed(list(layers.items())), reversed(taken)):
        index = int(choice[left])
        result[name] = index
        extra = options[index][0] - cheapest[name]
        left -= 0 if extra <= tolerance else int(np.ceil(extra / unit - 1e-6))
    return {name: result[name] for name in layers}
