"""Exact selection of the lowest of many numbers without sorting them all.

It runs on every device: it needs comparisons, indexing, and a sort of a small part. The
sorted values of a strided sample bracket the threshold; one pass over the numbers separates those above the bracket
from the few inside it; only these are sorted. Counting verifies the bracket; a wrong one is widened.

>>> import torch
>>> keep_highest([torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 5.0])], 2)
[tensor([ True, False, False]), tensor([True, True])]
>>> value_at([torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 5.0])], 3)
2.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from secateur.core.masks import count_true

__all__ = ["keep_highest", "value_at"]

_SORTED_WHOLE = 1 << 15  # below this a plain stable sort is as fast
_SAMPLE = 1 << 17
_CHUNK = 1 << 18  # numbers that fit a processor's cache between two passes


def keep_highest(scores: Sequence[torch.Tensor], remove: int) -> list[torch.Tensor]:
    """One boolean tensor per one-dimensional tensor: False for the `remove` lowest numbers of all together.

    Of equal numbers the earliest is removed first: tensors in the order given, elements in their own order.
    `scores` holds no NaN; it may hold infinities.
    """
    total = sum(tensor.numel() for tensor in scores)
    if remove <= 0:
        return [torch.ones_like(tensor, dtype=torch.bool) for tensor in scores]
    if remove >= total:
        return [torch.zeros_like(tensor, dtype=torch.bool) for tensor in scores]
    if total <= _SORTED_WHOLE:
        return _by_sorting(scores, remove)
    bracket = _bracket(scores, total, remove - 1)
    for keep, index, stays in zip(bracket.above, bracket.index, _settle(bracket, remove - bracket.below)):
        keep[index[stays]] = True
    return bracket.above


def value_at(scores: Sequence[torch.Tensor], rank: int) -> float:
    """The number that would stand at position `rank` (from 0) were all of them sorted together."""
    total = sum(tensor.numel() for tensor in scores)
    if total <= _SORTED_WHOLE:
        return float(_joined(scores).sort().values[rank])
    bracket = _bracket(scores, total, rank)
    return float(_joined(bracket.values).sort().values[rank - bracket.below])


@dataclass(frozen=True)
class _Bracket:
    """The numbers from `low` to `high`, among them the one at the rank asked for."""

    low: float
    high: float
    below: int  # how many numbers are below `low`
    above: list[torch.Tensor]  # per tensor: True where a number is above `high`
    index: list[torch.Tensor]  # per tensor: the positions of numbers in between, ends included
    values: list[torch.Tensor]  # the numbers at these positions


def _bracket(scores: Sequence[torch.Tensor], total: int, rank: int) -> _Bracket:
    sample = _sample(scores, total)
    spread = 4.0 * math.sqrt(len(sample)) + 8.0
    while True:
        middle = rank / (total - 1) * (len(sample) - 1)
        first, last = math.floor(middle - spread), math.ceil(middle + spread)
        low = float(sample[first]) if first >= 0 else -math.inf
        high = float(sample[last]) if last < len(sample) else math.inf
        above, index, kept = [], [], 0
        for tensor in scores:
            over, between, count = _split(tensor, low, high)
            above.append(over)
            index.append(between)
            kept += count
        inside = sum(positions.numel() for positions in index)
        below = total - kept - inside
        if below <= rank < below + inside:
            values = [tensor[positions] for tensor, positions in zip(scores, index)]
            return _Bracket(low, high, below, above, index, values)
        spread *= 8.0


def _sample(scores: Sequence[torch.Tensor], total: int) -> torch.Tensor:
    """Every k-th of all the numbers, sorted, on the CPU in double precision (which MPS lacks)."""
    stride, offset = max(1, total // _SAMPLE), 0
    while math.gcd(stride, 210) > 1:  # a stride that shares no factor with rows of 2, 3, 5 and 7 weights
        stride += 1
    parts = []
    for tensor in scores:
        parts.append(tensor[-offset % stride :: stride].cpu().double())
        offset += tensor.numel()
    return torch.cat(parts).sort().values


def _split(tensor: torch.Tensor, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Where a tensor is above `high`, the positions of numbers from `low` to `high`, and how many are above."""
    if tensor.device.type != "cpu":
        over = tensor > high
        return over, ((tensor >= low) ^ over).nonzero()[:, 0], count_true(over)
    over = torch.empty(tensor.shape, dtype=torch.bool)
    scratch = torch.empty(min(_CHUNK, tensor.numel()), dtype=torch.bool)
    positions, kept = [], 0
    for start in range(0, tensor.numel(), _CHUNK):
        part, top = tensor[start : start + _CHUNK], over[start : start + _CHUNK]
        between = scratch[: part.numel()]
        torch.gt(part, high, out=top)
        torch.ge(part, low, out=between)
        between ^= top
        kept += count_true(top)
        positions.append(np.flatnonzero(between.numpy()) + start)
    found = np.concatenate(positions) if positions else np.empty(0, dtype=np.int64)
    return over, torch.from_numpy(found), kept


def _settle(bracket: _Bracket, remove: int) -> list[torch.Tensor]:
    """Which of the numbers inside a bracket remain when the `remove` lowest of them are removed.

    Networks have many equal weights (zeros above all), and equal numbers end up as an end of the bracket:
    these are counted, not sorted.
    """
    lowest = [values == bracket.low for values in bracket.values]
    highest = [values == bracket.high for values in bracket.values]
    at_low = sum(count_true(mask) for mask in lowest)
    at_high = sum(count_true(mask) for mask in highest) if bracket.high > bracket.low else 0
    inner = sum(values.numel() for values in bracket.values) - at_low - at_high
    if remove <= at_low:
        return [~going for going in _first(lowest, remove)]
    if remove > at_low + inner:
        going = _first(highest, remove - at_low - inner)
        return [top & ~gone for top, gone in zip(highest, going)]
    middle = [~(low | high) for low, high in zip(lowest, highest)]
    rest = [values[mask] for values, mask in zip(bracket.values, middle)]
    # A bracket that barely narrowed would recurse for ever.
    few = inner <= sum(mask.numel() for mask in bracket.above) // 2
    chosen = keep_highest(rest, remove - at_low) if few else _by_sorting(rest, remove - at_low)
    stays = [mask.clone() for mask in highest]
    for keep, mask, kept in zip(stays, middle, chosen):
        keep[mask] = kept
    return stays


def _first(masks: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """The masks with only the first `count` of their True elements, counted through all of them in order."""
    found = []
    for mask in masks:
        here = count_true(mask)
        if here > count:
            mask = mask.clone()
            mask[_place(mask, count) :] = False
        count -= min(here, count)
        found.append(mask)
    return found


def _place(mask: torch.Tensor, count: int) -> int:
    """The shortest start of a mask that holds `count` True elements; there are more than that in all."""
    start = 0
    while True:
        part = mask[start : start + _CHUNK]
        here = count_true(part)
        if here > count:
            return start + int(part.nonzero()[count, 0])
        start, count = start + part.numel(), count - here


def _joined(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    return scores[0] if len(scores) == 1 else torch.cat([tensor.to(scores[0].device) for tensor in scores])


def _by_sorting(scores: Sequence[torch.Tensor], remove: int) -> list[torch.Tensor]:
    """The same by one stable sort."""
    whole = _joined(scores)
    keep = torch.ones_like(whole, dtype=torch.bool)
    keep[torch.sort(whole, stable=True).indices[:remove]] = False
    if len(scores) == 1:
        return [keep]
    parts = torch.split(keep, [tensor.numel() for tensor in scores])
    return [part.to(tensor.device) for part, tensor in zip(parts, scores)]
