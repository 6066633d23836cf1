"""Least squares in whole numbers, going on from block to block: coder and decoder come to the same weights.

A `Forecast` foretells a number from several others as their weighted sum. After every block it adds what
it has seen to the sums of a least-squares fit, and takes one step towards the solution, one weight after the other.
Nothing of it is in the file.

Numbers are held in float64, where matrix products are fastest, and every one of them is a whole number: features
and targets stay within `MOST`, trusts within 2**15, at most 1024 columns are summed at a time, sums below 2**53.

>>> import numpy as np
>>> features = np.array([[100.0, 20.0, 60.0, 10.0], [7.0, 90.0, 30.0, 80.0]])
>>> forecast = Forecast((32768, 32768))
>>> for _ in range(200):
...     forecast.learn(np.vstack([features, features[0] * 2]), np.full(4, 30000.0))
>>> forecast.predict(features).tolist()
[199.0, 40.0, 119.0, 20.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

import numpy as np

__all__ = ["MOST", "Forecast", "thinned"]

MOST = 2047  # features and targets stay within +-MOST
_ONE = 65536  # a weight of 1
_MOST_WEIGHT = float(1 << 20)  # weights stay within +-16
_ENOUGH = 512  # so many columns of a block, at least, are learnt from
_RIDGE = 1 << 28  # how strongly the weights are held to their start
_SUMS = 1 << 50  # sums are halved beyond this
_TRUST = 1 << 15  # trusts stay below
_STEP_BITS = 26  # sums are cut to so many bits for the step, so that its products are exact


def thinned(count: int) -> slice:
    """Which of so many columns of a block are learnt from: of many, every so manieth is enough.

    >>> thinned(3000)
    slice(None, None, 5)
    """
    return slice(None, None, max(1, count // _ENOUGH))


class Forecast:
    """A weighted sum of so many features as `start` has weights (in 65536ths)."""

    def __init__(self, start: Sequence[int]):
        self._start = [float(w) for w in start]
        self._weights = list(self._start)  # whole numbers
        # Of products of two features, and of one and the target.
        self._sums = np.zeros((len(start), len(start) + 1))
        self._squares = self._sums.reshape(-1)[:: len(start) + 2]  # of one feature each
        self._room = _SUMS  # how much can be added before the largest sum has to be looked at

    @property
    def weights(self) -> np.ndarray:
        """In 65536ths."""
        return np.array(self._weights)

    def next_tensor(self) -> None:
        """What was seen before counts a quarter."""
        np.floor(self._sums / 4, out=self._sums)

    def sums(self, features: np.ndarray) -> np.ndarray:
        """The weighted sums of the columns of `features`."""
        return (self.weights * (1 / _ONE)).dot(features)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The same, rounded down."""
        return np.floor(self.sums(features))

    def learn(self, features: np.ndarray, trust: np.ndarray) -> None:
        """Take (`thinned`) columns into account, which count by their `trust`; the last row of `features` is what the
        others should have foretold.
        """
        self._sums += (features[:-1] * trust).dot(features.T)
        self._room -= len(trust) * MOST * MOST * _TRUST
        if self._room <= 0:
            while (largest := float(np.abs(self._sums).max())) >= _SUMS:
                np.floor(self._sums / 2, out=self._sums)
            self._room = _SUMS - int(largest)
        self._step()

    def _step(self) -> None:
        shift = max(0, int(max(self._squares.tolist())).bit_length() - _STEP_BITS)
        sums = (np.floor(self._sums * 2.0**-shift) if shift else self._sums).tolist()
        ridge = float(_RIDGE >> shift)
        weights = self._weights
        for j, (row, start) in enumerate(zip(sums, self._start)):
            # The products, which end with the weights, add up to less than 2**51 with the ridge, and the divisor is
            # below 2**29. So either all of this is exact in doubles, or the last sum is 2**36 and more, and takes
            # the weight to its limit.
            rest = row[-1] * _ONE + ridge * (start - weights[j]) - sum(map(mul, row, weights))
            moved = weights[j] + rest // (row[j] + ridge + 1)
            weights[j] = _MOST_WEIGHT if moved > _MOST_WEIGHT else max(moved, -_MOST_WEIGHT)
