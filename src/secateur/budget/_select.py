"""Exact selection of the lowest of many numbers without sorting them all.

Works on every device torch has: it needs comparisons, gathering by index, and a sort of a small part. A strided sample
brackets the threshold; one pass splits the numbers into sure ones and a narrow band of candidates; only the band is sorted.
Should the sample mislead (the bracket is checked by counting), the bracket widens until it holds.

>>> import torch
>>> keep_highest([torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 5.0])], 2)
[tensor([ True, False, False]), tensor([True, True])]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["keep_highest"]

_SORTED_WHOLE = 1 << 15  # below this a plain stable sort is as fast
_SAMPLE = 1 << 17


def keep_highest(worth: Sequence[torch.Tensor], remove: int) -> list[torch.Tensor]:
    """One boolean tensor per one-dimensional tensor: False for the `remove` lowest numbers of all together.

    Of equal numbers the earliest goes first: tensors in the order given, elements in their own order. `worth` holds no
    NaN; it may hold infinities.
    """
    total = sum(tensor.numel() for tensor in worth)
    if remove <= 0:
        return [torch.ones_like(tensor, dtype=torch.bool) for tensor in worth]
    if remove >= total:
        return [torch.zeros_like(tensor, dtype=torch.bool) for tensor in worth]
    if total <= _SORTED_WHOLE:
        return _by_sorting(worth, remove)
    low, high = -math.inf, math.inf
    sample = torch.cat([tensor[:: max(1, total // _SAMPLE)].float().cpu() for tensor in worth]).sort().values
    spread = 4.0 * math.sqrt(len(sample)) + 8.0
    while True:
        rank = (remove - 1) / (total - 1) * (len(sample) - 1)
        first, last = math.floor(rank - spread), math.ceil(rank + spread)
        low = float(sample[first]) if first >= 0 else -math.inf
        high = float(sample[last]) if last < len(sample) else math.inf
        above, band = _split(worth, low, high)
        kept = sum(int(mask.sum()) for mask in above)
        candidates = sum(index.numel() for index in band)
        below = total - kept - candidates
        if below <= remove <= below + candidates:
            break
        spread *= 8.0
    _settle(worth, above, band, remove - below)
    return above


def _by_sorting(worth: Sequence[torch.Tensor], remove: int) -> list[torch.Tensor]:
    """The same by one stable sort."""
    device = worth[0].device
    whole = worth[0] if len(worth) == 1 else torch.cat([tensor.to(device) for tensor in worth])
    keep = torch.ones_like(whole, dtype=torch.bool)
    keep[torch.sort(whole, stable=True).indices[:remove]] = False
    parts = torch.split(keep, [tensor.numel() for tensor in worth])
    return [part.to(tensor.device) for part, tensor in zip(parts, worth)]


def _split(
    worth: Sequence[torch.Tensor], low: float, high: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Where a tensor is above `high`, and the positions of what lies in between, ends included."""
    above, band = [], []
    for tensor in worth:
        over = tensor > high
        between = (tensor >= low) ^ over
        above.append(over)
        band.append(between.nonzero()[:, 0])
    return above, band


def _settle(
    worth: Sequence[torch.Tensor], above: list[torch.Tensor], band: list[torch.Tensor], remove: int
) -> None:
    """Decide the candidates: all but the `remove` lowest of the band are kept, in place."""
    values = [tensor[index] for tensor, index in zip(worth, band)]
    for keep, index, stays in zip(above, band, _by_sorting(values, remove)):
        keep[index[stays]] = True
