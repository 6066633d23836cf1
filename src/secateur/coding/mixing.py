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
>>> for _ in range(8):
...     odds = mixer.predict(None, context)
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

# By log-odds + LIMIT: the probability of a one, and what the square of an error is expected to be.
_PROBABILITY = SQUASH.clip(_LEAST, _ONE - _LEAST).astype(np.float64)
_DOUBT = np.floor(_PROBABILITY * (_ONE - _PROBABILITY) / (1 << 20))
_PLACE = (STRETCH + LIMIT).astype(np.int16)  # where the log-odds of a probability lie in the tables above


class Mixer:
    """One set of decisions that share contexts: `nodes` of them, each context j with values below `sizes[j]`.

    Counts lie node by node, and within a node context by context.
    """

    def __init__(self, nodes: int, sizes: tuple[int, ...]):
        self.nodes = nodes
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self._starts = starts[:-1, None]
        self._stride = int(starts[-1])  # cells of a node
        self._cells = nodes * self._stride
        self._counts = np.zeros((2, self._cells))  # of zeros and of ones, in every cell
        self._node_counts = np.zeros((2, nodes))
        self._weights = np.full(len(sizes), _START / _ONE)
        self._energy = _CALM
        self._stale = False

    def next_tensor(self) -> None:
        """Keep what was learnt, as a hint: counts shrink, so that a new tensor soon has its own say."""
        self._stale = True  # shrinking twice is shrinking once: it can wait until the mixer is used

    def _freshen(self) -> None:
        if self._stale:
            _shrink(self._counts, _MOST_CONTEXT)
            _shrink(self._node_counts, _MOST_NODE)
            self._stale = False

    def predict(self, node: np.ndarray | None, contexts: np.ndarray) -> np.ndarray:
        """The probability of a one of every bit, in 65536ths; `node` is [n] (None if there is but one),
        `contexts` [how many, n].
        """
        self._freshen()
        index = contexts + self._starts
        if node is not None:
            index += node * self._stride
        zeros, ones = self._node_counts
        share = np.floor((2 * ones + 1) * _ONE / (2 * (zeros + ones) + 2))
        own = _PLACE.take(share.astype(np.intp)).astype(np.float64)
        base = own if node is None else own.take(node)
        # Quotients of whole numbers below 2**53, rounded down: a double is far finer than their fractions.
        share *= _PRIOR
        zeros, ones = self._counts
        if self._cells <= index.size:
            cells = ones * _ONE
            below = zeros + ones
            below += _PRIOR
            by_node = cells.reshape(self.nodes, self._stride)
            by_node += share[:, None]
            cells /= below
            beyond = _PLACE.take(cells.astype(np.intp)).take(index)
        else:  # few bits: only the cells they ask for
            cells = ones.take(index)
            below = zeros.take(index)
            below += cells
            below += _PRIOR
            cells *= _ONE
            cells += share if node is None else share.take(node)
            cells /= below
            beyond = _PLACE.take(cells.astype(np.intp))
        beyond = np.subtract(beyond, base)
        odds = self._weights @ beyond
        odds += base
        np.maximum(odds, 0, out=odds)
        np.minimum(odds, 2 * LIMIT, out=odds)
        place = odds.astype(np.intp)
        probability = _PROBABILITY.take(place)
        self._last = (node, index, beyond, probability, place)
        return probability

    def learn(self, bits: np.ndarray) -> None:
        """Count the bits that were predicted last, and move the weights towards what would have been shorter."""
        node, index, beyond, probability, place = self._last
        if node is None:
            ones = int(np.count_nonzero(bits))
            self._node_counts[:, 0] += (len(bits) - ones, ones)
        else:
            seen = np.bincount(node + bits * self.nodes, minlength=2 * self.nodes)
            self._node_counts += seen.reshape(2, -1)
        index += bits * self._cells
        self._counts += np.bincount(index.reshape(-1), minlength=2 * self._cells).reshape(2, -1)
        error = bits * float(_ONE)
        error -= probability
        weighed = beyond * _DOUBT.take(place)
        self._energy = max(self._energy - (self._energy >> 3), _CALM)
        slope = [0] * len(self._weights)
        for start in range(0, len(bits), EXACT):  # longer sums could lose their last digits
            part = slice(start, start + EXACT)
            self._energy += int(np.vdot(weighed[:, part], beyond[:, part])) >> 4
            slope = [a + int(b) for a, b in zip(slope, (beyond[:, part] @ error[part]).tolist())]
        for j, s in enumerate(slope):
            moved = int(self._weights[j] * _ONE) + s * _ONE // self._energy
            self._weights[j] = min(max(moved, -_WEIGHT), _WEIGHT) / _ONE


def _shrink(counts: np.ndarray, most: int) -> None:
    total = counts.sum(axis=0)
    np.copyto(counts, np.floor(counts * most / np.maximum(total, 1)), where=total > most)
