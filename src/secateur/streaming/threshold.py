"""`threshold`: the score up to which units are removed when all tensors compete, found in two passes over the scores.

A float32 has 32 bits that order it. The first pass counts the upper halves, the second the lower halves of those that
share the threshold's upper half; so the threshold is exact, and only counts are kept. Equal scores are removed in the
order of tensors and positions.

>>> import torch
>>> scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([2.0, -1.0])}
>>> found = threshold(lambda: iter(scores.items()), remove=3)
>>> [found.keep(name, each).tolist() for name, each in scores.items()]
[[True, False, False], [True, False]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from secateur.errors import OptionError

__all__ = ["Lower", "Threshold", "Upper", "keys_of", "lower_counts", "threshold", "upper_counts"]

_HALF = 1 << 16


def keys_of(scores: torch.Tensor) -> np.ndarray:
    """Whole numbers from 0 to 2**32 - 1 in the order of the scores.

    Args:
        scores: Of float32 or half precision.

    >>> keys_of(torch.tensor([-1.0, -0.0, 0.0, 2.0])).tolist()
    [1082130432, 2147483648, 2147483648, 3221225472]
    """
    if scores.dtype == torch.float64:
        raise OptionError(
            "scores in float64 cannot be compared across tensors one tensor at a time; use a budget per tensor"
        )
    bits = (scores.detach().float() + 0.0).contiguous().numpy().view(np.int32)  # + 0.0 makes one zero of two
    wide = bits.astype(np.int64)
    wide[bits < 0] = -(wide[bits < 0] & 0x7FFFFFFF)
    wide += 1 << 31
    return wide


@dataclass(frozen=True)
class Threshold:
    """The key of the threshold, and for every tensor how many of its scores that equal it are removed: its first
    ones.
    """

    key: int
    first: dict[str, int]

    def keep(self, name: str, scores: torch.Tensor) -> torch.Tensor:
        """True for the scores that are kept, in the shape of the scores.

        Args:
            name: The tensor's name.
            scores: Its scores, flat.
        """
        keys = keys_of(scores)
        keep = keys > self.key
        equal = np.flatnonzero(keys == self.key)
        keep[equal[self.first.get(name, 0) :]] = True
        return torch.from_numpy(keep)


def upper_counts(scores: torch.Tensor) -> np.ndarray:
    """How often each upper half of a key comes.

    Args:
        scores: The scores of one tensor.
    """
    return np.bincount(keys_of(scores) >> 16, minlength=_HALF)


def lower_counts(scores: torch.Tensor, upper: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower halves of the keys with a given upper half, in ascending order, and how often each comes.

    Args:
        scores: The scores of one tensor.
        upper: The upper half.
    """
    keys = keys_of(scores)
    return np.unique(keys[keys >> 16 == upper] & (_HALF - 1), return_counts=True)


_Scores = Callable[[], Iterator[tuple[str, torch.Tensor]]]


def threshold(scores: _Scores, remove: int) -> Threshold:
    """The threshold below which there are `remove` scores, of equal ones the first.

    Args:
        scores: Gives every tensor's name and scores, in order; called twice.
        remove: How many are removed; at least 1.
    """
    upper = Upper(remove)
    for _, each in scores():
        upper.add(upper_counts(each))
    lower = upper.lower()
    for name, each in scores():
        lower.add(name, *lower_counts(each, lower.upper))
    return lower.found()


class Upper:
    """The first pass: which upper half the threshold has.

    Args:
        remove: How many scores are removed.
    """

    def __init__(self, remove: int):
        self._remove = remove
        self._counts = np.zeros(_HALF, dtype=np.int64)

    def add(self, counts: np.ndarray) -> None:
        """Count a tensor in.

        Args:
            counts: Its `upper_counts`.
        """
        self._counts += counts

    def lower(self) -> Lower:
        """The second pass."""
        below = np.cumsum(self._counts)
        upper = int(np.searchsorted(below, self._remove))
        return Lower(upper, self._remove - int(below[upper] - self._counts[upper]))


class Lower:
    """The second pass: which lower half the threshold has, and how many scores equal to it each tensor loses.

    Args:
        upper: The upper half.
        remove: How many scores with this upper half are removed.
    """

    def __init__(self, upper: int, remove: int):
        self.upper = upper
        self._remove = remove
        self._counts = np.zeros(_HALF, dtype=np.int64)
        self._tensors: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, name: str, halves: np.ndarray, counts: np.ndarray) -> None:
        """Count a tensor in.

        Args:
            name: Its name.
            halves: As of `lower_counts`.
            counts: As of `lower_counts`.
        """
        self._counts[halves] += counts
        self._tensors[name] = halves.astype(np.uint16), counts.astype(np.uint32)

    def found(self) -> Threshold:
        """The threshold."""
        below = np.cumsum(self._counts)
        lower = int(np.searchsorted(below, self._remove))
        left = self._remove - int(below[lower] - self._counts[lower])
        first: dict[str, int] = {}
        for name, (halves, counts) in self._tensors.items():
            at = int(np.searchsorted(halves, lower))
            here = int(counts[at]) if at < len(halves) and halves[at] == lower else 0
            first[name] = min(left, here)
            left -= first[name]
        return Threshold((self.upper << 16) | lower, first)
