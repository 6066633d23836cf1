"""Context mixing in integers: probabilities of bits learnt from several contexts, a batch of bits at a time.

A `Mixer` knows a bit by its node (which decision of a symbol it is) and by several contexts. The share of ones at the
node gives log-odds; every context adds the difference of its own log-odds from those, times a weight; the weights
follow the gradient of the coded length after every batch. Encoder and decoder see the same batches, so nothing of this
is stored in the file.

Sums of products are taken in float64, where numpy is fastest, and are exact: every term and every sum is an integer
below 2**53.

>>> import numpy as np
>>> mixer = Mixer(nodes=1, sizes=(2,))
>>> context = np.array([[0, 1] * 500])
>>> for _ in range(8):
...     odds = mixer.predict(None, places((2,), context))
...     mixer.learn(context[0])
>>> bool(odds[0, 1] < 0.06), bool(odds[1, 1] > 0.94)
(True, True)
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from secateur.coding.logistic import LIMIT, SQUASH, STRETCH

__all__ = ["EXACT", "LOOP_LIMITS", "LOOP_TABLES", "Mixer", "places", "starts"]

_ONE = 65536
_SCALE = 1 << 32  # of errors as probabilities, for weights in 65536ths
_LEAST = 24  # the smallest probability of either bit, in 65536ths
_PRIOR = 6  # the number of bits the node's own share counts as in every context
_START = 14000  # the first weight of every context: about 0.21
_CALM = 1 << 29  # damps the steps of the weights (the least energy)
_MOST_CONTEXT, _MOST_NODE = 25, 4  # counts carried from one tensor to the next
EXACT = 1 << 14  # products summed at a time
_WEIGHT = 1 << 20  # weights stay within +-16

# Indexed by log-odds + LIMIT: the probabilities of a zero and a one, and the expected square of an error.
_ONES = SQUASH.clip(_LEAST, _ONE - _LEAST).astype(np.float64)
_PAIRS = np.stack([_ONE - _ONES, _ONES], axis=1) / _ONE
_DOUBT = np.floor(_ONES * (_ONE - _ONES) / (1 << 20))
_PLACE = (STRETCH + LIMIT).astype(np.int16)  # the index of a probability's log-odds in the tables above
LOOP_TABLES = (_PLACE, _ONES.astype(np.int64), _DOUBT.astype(np.int64))  # for compiled loops
LOOP_LIMITS = (_PRIOR, _CALM, _WEIGHT)


class Mixer:
    """One set of decisions that share contexts: `nodes` of them, each context j with values below `sizes[j]`.

    Counts lie node by node, and within a node context by context, with the node itself as its last cell. A cell
    begins with the counts of its prior: `_PRIOR` zeros, of which the node's own share become ones when they are looked
    at; half a zero and half a one for the node.
    """

    def __init__(self, nodes: int, sizes: tuple[int, ...]):
        self._stride = sum(sizes) + 1  # cells of a node
        self._cells = nodes * self._stride
        self._prior = np.array([_PRIOR * 1.0] * (self._stride - 1) + [0])
        self._most = np.array([_MOST_CONTEXT + _PRIOR] * (self._stride - 1) + [_MOST_NODE + 1])
        self._counts = np.empty((2, nodes, self._stride))  # of zeros and of ones, in every cell
        self._counts[0], self._counts[1] = _PRIOR, 0
        self._counts[:, :, -1] = 0.5
        self._zeros, self._ones = self._counts
        self._flat = self._counts.reshape(-1)
        self._whole = [_START] * len(sizes)  # weights in 65536ths
        self._weights = np.full(len(sizes) + 1, _START / _ONE)
        self._weights[-1] = 1  # the node's own, and stays
        self._energy = _CALM
        self._stale = False

    def next_tensor(self) -> None:
        """Reduce the counts of the last tensor, so that the mixer adapts to a new one quickly."""
        self._stale = True  # reducing twice is the same as once, so it can wait until the mixer is used

    def move_counts(self, there: np.ndarray) -> None:
        """Keep the counts in `there`, an array of `2 * cells` numbers."""
        if self._stale:
            self._freshen()
        there[:] = self._flat
        self._flat = there
        self._counts = there.reshape(self._counts.shape)
        self._zeros, self._ones = self._counts

    @property
    def cells(self) -> int:
        """How many cells there are in all."""
        return self._cells

    @property
    def stride(self) -> int:
        """How many cells a node has."""
        return self._stride

    @property
    def state(self) -> tuple[list[int], int]:
        """The weights in 65536ths, and the energy."""
        return self._whole, self._energy

    @state.setter
    def state(self, moved: tuple[list[int], int]) -> None:
        self._whole, self._energy = moved
        self._weights[:-1] = [weight / _ONE for weight in self._whole]

    def _freshen(self) -> None:
        self._stale = False
        total = self._zeros + self._ones
        many = (total > self._most).reshape(-1).nonzero()[0]
        total = total.reshape(-1)[many]
        node = many % self._stride == self._stride - 1
        most = np.where(node, _MOST_NODE, _MOST_CONTEXT)
        total -= np.where(node, 1, _PRIOR)
        for counts, prior in zip((self._flat[: self._cells], self._flat[self._cells :]), (_PRIOR, 0)):
            first = np.where(node, 0.5, prior)
            counts[many] = np.floor((counts[many] - first) * most / total) + first

    def predict(self, node: np.ndarray | None, places: np.ndarray) -> np.ndarray:
        """The probabilities of a zero and of a one of every bit, [n, 2].

        Args:
            node: The node of each bit, [n]; None if the mixer has one node only.
            places: The cells of each bit's contexts, [contexts + 1, n] (see `places`); changed if `node` is None.
        """
        if self._stale:
            self._freshen()
        if node is not None:
            places = places + node * self._stride
        # Computed for all cells, or for those the bits use, whichever are fewer.
        # Quotients of integers below 2**53, rounded down, are exact: a double is far finer than their fractions.
        if few := 2 * self._cells > 3 * places.size:
            cells = self._ones.take(places)
            below = self._zeros.take(places)
            below += cells
            cells *= _ONE
            share = np.floor(cells[-1] / below[-1])
            share *= _PRIOR
            cells[:-1] += share
        else:
            below = self._zeros + self._ones
            cells = self._ones * _ONE
            share = np.floor(cells[:, -1:] / below[:, -1:])
            cells += share * self._prior
        cells /= below
        odds = _PLACE.take(cells.astype(np.intp))
        if not few:
            odds = odds.take(places)
        odds[:-1] -= odds[-1]
        beyond = odds.astype(np.float64)
        place = self._weights.dot(beyond).astype(np.intp)
        pairs = _PAIRS.take(place, axis=0, mode="clip")
        self._last = (places, beyond, pairs, place)
        return pairs

    def learn(self, bits: np.ndarray) -> None:
        """Count the bits (intp) that were predicted last, and move the weights towards a shorter code for them."""
        index, beyond, pairs, place = self._last
        index += bits * self._cells
        if 3 * self._cells > index.size:
            np.add.at(self._flat, index.reshape(-1), 1.0)
        else:
            self._flat += np.bincount(index.reshape(-1), minlength=2 * self._cells)
        error = bits.astype(np.float64)
        error -= pairs[:, 1]
        doubt = _DOUBT.take(place, mode="clip")
        squares = beyond * beyond
        energy = self._energy - (self._energy >> 3)
        if energy < _CALM:
            energy = _CALM
        if len(bits) <= EXACT:
            energy += int(sum(squares.dot(doubt)[:-1].tolist())) >> 4
            slope = beyond.dot(error).tolist()
        else:  # longer sums might not be exact
            slope = [0.0] * len(beyond)
            for start in range(0, len(bits), EXACT):
                part = slice(start, start + EXACT)
                energy += int(sum(squares[:, part].dot(doubt[part])[:-1].tolist())) >> 4
                slope = [a + b for a, b in zip(slope, beyond[:, part].dot(error[part]).tolist())]
        self._energy = energy
        whole = [weight + int(s * _SCALE) // energy for weight, s in zip(self._whole, slope)]
        if max(whole) > _WEIGHT or min(whole) < -_WEIGHT:
            whole = [min(max(weight, -_WEIGHT), _WEIGHT) for weight in whole]
        self._whole = whole
        self._weights[:-1] = [weight / _ONE for weight in whole]


def starts(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The first cell of each context within a node, and last, the node's own cell.

    >>> starts((3, 2))
    (0, 3, 5)
    """
    return (0, *accumulate(sizes))


def places(sizes: tuple[int, ...], contexts: np.ndarray) -> np.ndarray:
    """The cells of contexts [contexts, n] within a node, and the node's own cell as the last row.

    >>> places((3, 2), np.array([[0, 2], [1, 0]])).tolist()
    [[0, 2], [4, 3], [5, 5]]
    """
    out = np.empty((len(sizes) + 1, contexts.shape[1]), dtype=np.intp)
    out[:-1] = contexts
    out[-1] = 0
    out += np.array(starts(sizes))[:, None]
    return out
