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
...     forecast.learn(features, features[0] * 2, np.full(4, 30000.0))
>>> forecast.predict(features).tolist()
[199.0, 40.0, 119.0, 20.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

import numpy as np

__all__ = ["MOST", "Forecast"]

MOST = 2047  # features and targets stay within +-MOST
_ONE = 65536  # a weight of 1
_WEIGHT = 1 << 20  # weights stay within +-16
_ENOUGH = 512  # so many columns of a block, at least, are learnt from
_RIDGE = 1 << 28  # how strongly the weights are held to their start
_SUMS = 1 << 50  # sums are halved beyond this
_STEP_BITS = 26  # sums are cut to so many bits for the step, so that its products are exact


class Forecast:
    """A weighted sum of so many features as `start` has weights (in 65536ths)."""

    def __init__(self, start: Sequence[int]):
        self._start = [int(w) for w in start]
        self.weights = np.array(start, dtype=np.float64)
        self._squares = np.zeros((len(start), len(start)))
        self._products = np.zeros(len(start))

    def next_tensor(self) -> None:
        """What was seen before counts a quarter."""
        self._squares = np.floor(self._squares / 4)
        self._products = np.floor(self._products / 4)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The weighted sums of the columns of `features`, rounded down."""
        return np.floor((self.weights @ features) * (1 / _ONE))

    def learn(self, features: np.ndarray, target: np.ndarray, trust: np.ndarray) -> None:
        """Take a block into account; columns count by their `trust`. Of many columns every so manieth is enough."""
        every = slice(None, None, max(1, len(target) // _ENOUGH))
        features = features[:, every]
        trusted = features * trust[every]
        self._squares += trusted @ features.T
        self._products += trusted @ target[every]
        while max(float(np.abs(self._squares).max()), float(np.abs(self._products).max())) >= _SUMS:
            self._squares = np.floor(self._squares / 2)
            self._products = np.floor(self._products / 2)
        self._step()

    def _step(self) -> None:
        shift = max(0, int(self._squares.diagonal().max()).bit_length() - _STEP_BITS)
        squares = np.floor(self._squares / (1 << shift)).astype(np.int64).tolist()
        products = np.floor(self._products / (1 << shift)).tolist()
        ridge = _RIDGE >> shift
        weights = self.weights.astype(np.int64).tolist()
        for j, (row, product, start) in enumerate(zip(squares, products, self._start)):
            old = weights[j]
            rest = int(product) * _ONE + ridge * (start - old) - sum(map(mul, row, weights))
            weights[j] = min(max(old + rest // (row[j] + ridge + 1), -_WEIGHT), _WEIGHT)
        self.weights[:] = weights
