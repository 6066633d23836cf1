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

__all__ = ["Mixer"]

_ONE = 65536
_LEAST = 24  # the smallest probability of either bit, in 65536ths
_PRIOR = 6  # how many bits the node's own share counts for in every context
_START = 9830  # the first weight of every context: 0.15
_CALM = 1 << 28  # damps the first steps of the weights
_MOST_CONTEXT, _MOST_NODE = 100, 4  # counts carried from one tensor to the next
_WEIGHT = 1 << 20  # weights stay within +-16


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
        """The probability of a one, in 65536ths, of every bit: `node` [n] and `contexts` [number of contexts,
        n].
        """
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
        odds = (total * (1 / _ONE)).clip(-LIMIT, LIMIT)
        probability = SQUASH[np.floor(odds).astype(np.int64) + LIMIT].clip(_LEAST, _ONE - _LEAST)
        self._last = (node, index, beyond, probability)
        return probability

    def learn(self, bits: np.ndarray) -> None:
        """Count the bits that were predicted last, and move the weights towards what would have been shorter."""
        node, index, beyond, probability = self._last
        ones = np.flatnonzero(bits)
        number = np.bincount(index.reshape(-1), minlength=self._cells)
        number_ones = np.bincount(index[:, ones].reshape(-1), minlength=self._cells)
        self._ones += number_ones
        self._zeros += number - number_ones
        node_ones = np.bincount(node[ones], minlength=self.nodes)
        self._node_ones += node_ones
        self._node_zeros += np.bincount(node, minlength=self.nodes) - node_ones
        error = bits * float(_ONE) - probability
        doubt = (probability * (_ONE - probability)) >> 20
        self._energy += int((beyond * beyond).sum(axis=0) @ doubt.astype(np.float64)) >> 4
        slope = beyond @ error
        step = [int(s) * _ONE // self._energy for s in slope]
        self._weights = np.clip(self._weights + np.array(step, dtype=np.int64), -_WEIGHT, _WEIGHT)


def _shrink(zeros: np.ndarray, ones: np.ndarray, most: int) -> None:
    total = zeros + ones
    big = total > most
    zeros[big] = zeros[big] * most // total[big]
    ones[big] = ones[big] * most // total[big]
