"""Online least squares in exact integers: encoder and decoder compute the same weights.

A `Forecast` predicts a number as a weighted sum of others. After every block it adds the block to the sums of a
least-squares fit and takes one step of coordinate descent towards the solution. Nothing of it is stored in the file.

Integers are held in float64, where matrix products are fastest and exact: features and targets are at most `MOST` in
size, trusts below 2**15, at most 1024 columns are summed at a time, and sums stay below 2**53.

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

__all__ = ["LOOP_LIMITS", "MOST", "Forecast", "subsample"]

MOST = 2047  # features and targets stay within +-MOST
_ONE = 65536  # a weight of 1
_MOST_WEIGHT = float(1 << 20)  # weights stay within +-16
_ENOUGH = 512  # columns of a block that are used for the fit, at least
_RIDGE = 1 << 28  # the strength of the pull towards the start weights
_SUMS = 1 << 50  # sums are halved beyond this
LOOP_LIMITS = (MOST, _RIDGE, _MOST_WEIGHT, _SUMS)  # for compiled loops
_TRUST = 1 << 15  # trusts stay below
_STEP_BITS = 26  # sums are shortened to this many bits for the step, so that its products are exact


def subsample(count: int) -> slice:
    """The subsample of a block's columns that is used for the fit.

    >>> subsample(3000)
    slice(None, None, 5)
    """
    return slice(None, None, max(1, count // _ENOUGH))


class Forecast:
    """A weighted sum of features; `start` are the first weights, in 65536ths."""

    def __init__(self, start: Sequence[int]):
        self._start = [float(w) for w in start]
        self._weights = list(self._start)  # whole numbers
        # Of products of two features, and of one and the target.
        self._sums = np.zeros((len(start), len(start) + 1))
        self._squares = self._sums.reshape(-1)[:: len(start) + 2]  # of one feature each
        self._room = _SUMS  # how much can be added before the largest sum has to be checked

    @property
    def weights(self) -> np.ndarray:
        """The weights, in 65536ths."""
        return np.array(self._weights)

    @property
    def state(self) -> tuple[list[float], list[float], np.ndarray, int]:
        """The weights at the start and now, the sums, and how much can be added to them unchecked."""
        return self._start, self._weights, self._sums, self._room

    def take(self, weights: np.ndarray, sums: np.ndarray, room: int) -> None:
        """Continue from the state of the compiled loops."""
        self._weights = weights.tolist()
        self._sums[:] = sums
        self._room = room

    def next_tensor(self) -> None:
        """Divide all sums by four: earlier tensors count less."""
        np.floor(self._sums / 4, out=self._sums)

    def sums(self, features: np.ndarray) -> np.ndarray:
        """The weighted sums of the columns of `features`."""
        return (self.weights * (1 / _ONE)).dot(features)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The weighted sums, rounded down."""
        return np.floor(self.sums(features))

    def learn(self, features: np.ndarray, trust: np.ndarray) -> None:
        """Add columns to the fit, and move the weights one step.

        Args:
            features: The features of the (`subsample`d) columns; the last row is the target.
            trust: The weight of each column.
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
