"""`lookup`: the interval between cuts that each number is in: a table instead of a search, for millions of numbers and
few cuts.

The line is divided into equal cells, fine enough that none holds two cuts. A number's cell then says how many cuts lie
before it, and one comparison with the cell's own cut gives the exact answer.

>>> lookup(np.array([0.0, 0.5, 0.6, 9.0]), np.array([0.5, 2.5])).tolist()
[0, 0, 1, 2]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["lookup"]

Numbers = npt.NDArray[np.floating]

_CHUNK = 2**15
_CELLS = 2**12


def lookup(numbers: Numbers, cuts: Numbers) -> npt.NDArray[np.int64]:
    """Count the cuts below each number, as a binary search from the left does.

    Args:
        numbers: Flat, of float32 or float64.
        cuts: In ascending order.
    """
    if cuts.size < 2 or numbers.size < _CELLS or not np.isfinite(cuts).all():
        return np.searchsorted(cuts, numbers, side="left").astype(np.int64)
    kind = numbers.dtype.type
    low = cuts[0].astype(kind)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = kind(_CELLS) / (cuts[-1].astype(kind) - low)

        def cells(part: Numbers) -> npt.NDArray[np.intp]:
            # Each operation is monotonic, so a number above a cut is never in a cell before the cut's.
            scaled = np.subtract(part, low)
            np.multiply(scaled, scale, out=scaled)
            return np.clip(scaled, 0, _CELLS, out=scaled).astype(np.intp)

        if not np.isfinite(scale):
            return np.searchsorted(cuts, numbers, side="left").astype(np.int64)
        homes = cells(cuts.astype(kind))
        if (np.diff(homes) == 0).any():
            return np.searchsorted(cuts, numbers, side="left").astype(np.int64)
        before = np.searchsorted(homes, np.arange(_CELLS + 1), side="left")
        own = np.full(_CELLS + 1, np.inf, dtype=kind)
        own[homes] = cuts
        found = np.empty(numbers.size, dtype=np.int64)
        for start in range(0, numbers.size, _CHUNK):
            part = numbers[start : start + _CHUNK]
            home = cells(part)
            np.add(before[home], part > own[home], out=found[start : start + _CHUNK])
    return found
