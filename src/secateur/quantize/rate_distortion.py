"""Assignment by rate and distortion: each weight is assigned to the value of least error plus cost of its bits.

>>> weights = torch.tensor([0.9, 1.1, 1.0, 1.0, 1.0, 1.52])
>>> values = torch.tensor([1.0, 2.0])
>>> assign_by_rate(weights, values, zero=None, rate=0.0).tolist()  # the nearest
[0, 0, 0, 0, 0, 1]
>>> assign_by_rate(weights, values, zero=None, rate=0.05).tolist()  # 2.0 is rare: its bits cost more than the error
[0, 0, 0, 0, 0, 0]
"""

from __future__ import annotations

import math

import torch

from secateur.errors import OptionError
from secateur.quantize.prices import Prices

__all__ = ["assign_by_rate", "check_rate"]


def check_rate(rate: float) -> None:
    """Check the cost of a bit.

    Args:
        rate: The price.

    Raises:
        OptionError: It is not a finite number of 0 or more.
    """
    if isinstance(rate, bool) or not (math.isfinite(rate) and rate >= 0):
        raise OptionError(f"rate: expected the cost of a bit, a finite number of 0 or more, got {rate!r}")


@torch.no_grad()
def assign_by_rate(
    weights: torch.Tensor,
    values: torch.Tensor,
    zero: int | None,
    rate: float,
    importance: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    rounds: int = 4,
) -> torch.Tensor:
    """Find the value of least `importance * (weight - value)**2 + rate * bits` for every weight.

    The bits are those of the assignment of the round before. Of equal costs the earlier value wins.

    Args:
        weights: The weights.
        values: The values they may take.
        zero: The index of the value 0.0, or None.
        rate: The cost of a bit, in squared weights.
        importance: Weighs the squared error of each weight, by its curvature for example.
        start: The assignment of the first round; the nearest values unless given.
        kept: True where a weight is kept; the others stay at `zero`.
        rounds: The most rounds; fewer where nothing moves any more.

    Returns:
        The index of each weight's value.
    """
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    numbers, table = weights.detach().to(wide), values.detach().to(wide)
    errors = [(numbers - value) ** 2 for value in table]
    if importance is not None:
        errors = [error * importance for error in errors]

    def choose(prices: Prices | None) -> torch.Tensor:
        best, least = torch.zeros_like(numbers, dtype=torch.int64), errors[0]
        if prices is not None:
            least = least + rate * prices.bits(0)
        for index in range(1, len(errors)):
            cost = errors[index] if prices is None else errors[index] + rate * prices.bits(index)
            nearer = cost < least
            best, least = torch.where(nearer, index, best), torch.where(nearer, cost, least)
        if kept is not None and zero is not None:
            best = torch.where(kept, best, zero)
        return best

    chosen = choose(None) if start is None else start.long()
    if rate == 0.0:
        return choose(None)
    for _ in range(rounds):
        again = choose(Prices.of(chosen, len(table), zero))
        if torch.equal(again, chosen):
            break
        chosen = again
    return chosen
