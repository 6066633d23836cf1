"""Probabilities of bits learnt from many contexts at once, in whole numbers, a batch at a time.

A `Mixer` knows a bit by its node (which decision of a symbol it is) and by several contexts. The node's own
share of ones gives log-odds; every context adds what it has seen beyond that, times a weight; the weights
follow the gradient of the coded length after every batch. Coder and decoder see the same batches, so nothing
of this is written to the file.

Sums of products are taken in float64 where numpy is fastest, and are exact there: every term and every sum is
a whole number below 2**53.

>>> import numpy as np
>>> mixer = Mixer(nodes=1, sizes=(2,))
>>> context = np.array([[0, 1] * 500])
>>> node = np.zeros(1000, dtype=np.int64)
>>> for _ in range(8):
...     odds = mixer.predict(node, context)
...     mixer.learn(context[0])
>>> bool(odds[0] < 4000), bool(odds[1] > 61000)
(True, True)
"""

from __future__ import annotations

import numpy as np

from secateur.coding.logistic import LIMIT, SQUASH, STRETCH

__all__ = ["EXACT", "Mixer"]

_ONE = 65536
_LEAST = 24  # the smallest probability of either bit, in 65536ths
_PRIOR = 6  # how many bits the node's own share counts for in every context
_START = 14000  # the first weight of every context: about 0.21
_CALM = 1 << 29  # damps the steps of the weights
_MOST_CONTEXT, _MOST_NODE = 25, 4  # counts carried from one tensor to the next
EXACT = 1 << 14  # products summed at a time
_WEIGHT = 1 << 20  # weights stay within +-16
_PROBABILITY = SQUASH.clip(_LEAST, _ONE - _LEAST)


class Mixer:
    """One set of decisions that share contexts: `nodes` of them, each context j with values below `sizes[j]`."""

    def __init__(self, nodes: int, sizes: tuple[int, ...]):
        self.nodes = nodes
        self.sizes = np.array(sizes, dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(self.sizes * nodes)])
        self._starts = starts[:-1, None]
        self._cells = int(starts[-1])
        self._zeros = np.zeros(self._cells, dtype=np.int64)
        self._ones = np.zeros(self._cells, dtype=np.int64)
        self._node_zeros = np.zeros(nodes, dtype=np.int64)
        self._node_ones = np.zeros(nodes, dtype=np.int64)
        self._node_of = np.concatenate([np.repeat(np.arange(nodes), size) for size in sizes])
        self._weights = np.full(len(sizes), _START, dtype=np.int64)
        self._energy = _CALM
        self._table = np.zeros(self._cells)
        self._odds = np.zeros(nodes)

    def next_tensor(self) -> None:
        """Keep what was learnt, as a hint: counts shrink, so that a new tensor soon has its own say."""
        _shrink(self._zeros, self._ones, _MOST_CONTEXT)
        _shrink(self._node_zeros, self._node_ones, _MOST_NODE)

    def predict(self, node: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """The probability of a one of every bit, in 65536ths; `node` is [n], `contexts` [how many, n]."""
        share = ((2 * self._node_ones + 1) * _ONE) // (2 * (self._node_zeros + self._node_ones) + 2)
        own = STRETCH[share]
        seen = self._zeros + self._ones + _PRIOR
        cells = (self._ones * _ONE + _PRIOR * share[self._node_of]) // seen
        table = (STRETCH[cells] - own[self._node_of]).astype(np.float64)
        index = contexts + self._starts
        if self.nodes > 1:
            index += node * self.sizes[:, None]
        beyond = table[index]
        total = self._weights.astype(np.float64) @ beyond + own[node] * float(_ONE)
        odds = np.floor(total * (1 / _ONE))
        np.maximum(odds, -LIMIT, out=odds)
        np.minimum(odds, LIMIT, out=odds)
        probability = _PROBABILITY[odds.astype(np.int64) + LIMIT]
        self._last = (node, index, beyond, probability)
        return probability

    def learn(self, bits: np.ndarray) -> None:
        """Count the bits that were predicted last, and move the weights towards what would have been shorter."""
        node, index, beyond, probability = self._last
        index *= 2
        index += bits
        seen = np.bincount(index.reshape(-1), minlength=2 * self._cells)
        self._zeros += seen[0::2]
        self._ones += seen[1::2]
        seen = np.bincount(node * 2 + bits, minlength=2 * self.nodes)
        self._node_zeros += seen[0::2]
        self._node_ones += seen[1::2]
        error = bits * float(_ONE) - probability
        doubt = ((probability * (_ONE - probability)) >> 20).astype(np.float64)
        self._energy = max(self._energy - (self._energy >> 3), _CALM)
        slope = [0] * len(self._weights)
        for start in range(0, len(bits), EXACT):  # longer sums could lose their last digits
            part = beyond[:, start : start + EXACT]
            self._energy += int(np.vdot(part * doubt[start : start + EXACT], part)) >> 4
            slope = [a + int(b) for a, b in zip(slope, part @ error[start : start + EXACT])]
        step = [s * _ONE // self._energy for s in slope]
        moved = self._weights + np.array(step, dtype=np.int64)
        self._weights = np.minimum(np.maximum(moved, -_WEIGHT), _WEIGHT)


def _shrink(zeros: np.ndarray, ones: np.ndarray, most: int) -> None:
    total = zeros + ones
    big = total > most
    zeros[big] = zeros[big] * most // total[big]
    ones[big] = ones[big] * most // total[big]
