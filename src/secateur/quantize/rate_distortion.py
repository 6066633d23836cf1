"""Rate-aware assignment: each weight to the value where error and price together are least.

>>> weights = torch.tensor([0.9, 1.1, 1.0, 1.0, 1.0, 1.52])
>>> values = torch.tensor([1.0, 2.0])
>>> assign_by_rate(weights, values, zero=None, rate=0.0).tolist()  # the nearest
[0, 0, 0, 0, 0, 1]
>>> assign_by_rate(weights, values, zero=None, rate=0.05).tolist()  # the rare 2.0 is not worth its bits
[0, 0, 0, 0, 0, 0]
"""

from __future__ import annotations

import math

import torch

from secateur.errors import OptionError
from secateur.quantize.prices import Prices

__all__ = ["assign_by_rate", "check_rate"]


def check_rate(rate: float) -> None:
    """Raise unless a rate is a price: a finite number, 0 or more."""
    if isinstance(rate, bool) or not (math.isfinite(rate) and rate >= 0):
        raise OptionError(f"rate: expected the price of a bit, a finite number of 0 or more, got {rate!r}")


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
    """The index of the value of least `importance * (weight - value)**2 + rate * bits`, for every weight.

    `rate` is the price of a bit in squared weights. The bits are those of the assignment before (`start`; the nearest
    value where it is not given), found anew `rounds` times or until nothing moves. `importance` weighs the squared
    error of each weight (its curvature, say). Weights that are not `kept` stay at `zero`. Of equals the earlier value
    wins.
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
