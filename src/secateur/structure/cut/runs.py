"""`Runs`: ascending indices stored as runs of neighbours, which take no memory until they are used. A plan in a file
stores the remaining slices as runs [first, length, first, length, ...]. A hostile one may claim 2**60 indices in twenty
bytes, so nothing is expanded before the runs have been compared with a tensor's shape.

>>> runs = Runs.parse([0, 2, 5, 1])
>>> list(runs), len(runs), runs[-1], runs == (0, 1, 5)
([0, 1, 5], 3, 5, True)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import add, le
from typing import overload

import numpy as np

from secateur.core.json_text import are_counts

__all__ = ["Runs", "runs_of"]


class Runs(Sequence[int]):
    """A read-only sequence of strictly ascending indices."""

    __slots__ = ("_ends", "_flat")

    def __init__(self, flat: tuple[int, ...]):
        self._flat = flat
        self._ends = tuple(accumulate(flat[1::2]))

    @classmethod
    def parse(cls, value: object, known: dict[tuple[int, ...], Runs] | None = None) -> Runs:
        """The runs that a list [first, length, first, length, ...] stands for.

        Args:
            value: The list.
            known: Runs that were parsed before, by their numbers: many axes of a plan have the same.

        Raises:
            ValueError: The value is no such list.
        """
        flat = tuple(value) if isinstance(value, list) else ()
        if known is not None and set(map(type, flat)) == {int}:  # `True` equals 1, and is no index
            found = known.get(flat)
            if found is None:
                found = known[flat] = cls.parse(value)
            return found
        if not isinstance(value, list) or len(flat) % 2 or not are_counts(flat):
            raise ValueError("expected runs of indices [first, length, ...] as whole numbers")
        firsts, lengths = flat[::2], flat[1::2]
        ends = tuple(map(add, firsts, lengths))
        if 0 in lengths or not all(map(le, ends, firsts[1:])):
            raise ValueError("expected runs of indices that ascend and are not empty")
        if ends and ends[-1] > 1 << 62:
            raise ValueError("expected indices below 2**62")
        return cls(flat)

    @property
    def flat(self) -> list[int]:
        """The runs as a plan stores them."""
        return list(self._flat)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return tuple(self)[index]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        run = bisect_right(self._ends, at)
        return self._flat[2 * run] + at - (self._ends[run] - self._flat[2 * run + 1])

    def __iter__(self) -> Iterator[int]:
        for first, length in zip(self._flat[::2], self._flat[1::2]):
            yield from range(first, first + length)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        spans = [np.arange(first, first + length) for first, length in zip(self._flat[::2], self._flat[1::2])]
        return np.concatenate(spans or [np.zeros(0, dtype=np.int64)]).astype(dtype or np.int64, copy=False)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Runs):
            return self._flat == other._flat
        return isinstance(other, tuple) and len(other) == len(self) and tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Runs({self.flat})"


def runs_of(indices: Sequence[int]) -> list[int]:
    """Ascending indices as runs [first, length, first, length, ...].

    >>> runs_of((0, 1, 5))
    [0, 2, 5, 1]
    """
    if isinstance(indices, Runs):
        return indices.flat
    array = np.asarray(indices)
    starts = np.flatnonzero(np.r_[True, np.diff(array) != 1])
    stops = np.r_[starts[1:], array.size]
    return [int(v) for pair in zip(array[starts], stops - starts) for v in pair]
