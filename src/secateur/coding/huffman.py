"""Canonical Huffman coding: code lengths, average bits, the table, encoding and decoding.

>>> import numpy as np
>>> symbols = np.array([0, 0, 0, 0, 1, 1, 2, 3])
>>> code = Huffman.of(symbols)
>>> code.lengths.tolist(), code.average(symbols)
([1, 2, 3, 3], 1.75)
>>> code.table()
{0: '0', 1: '10', 2: '110', 3: '111'}
>>> code.decode(code.encode(symbols), 8).tolist()
[0, 0, 0, 0, 1, 1, 2, 3]
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from secateur.errors import FormatError, NothingToDoError

__all__ = ["LONGEST", "Huffman"]

LONGEST = 16  # bits of the longest code word
_BLOCK = 1 << 16  # bits decoded at a time


@dataclass(frozen=True, eq=False)
class Huffman:
    """A canonical code, given by the length of each symbol's code word; 0 for symbols that do not occur."""

    lengths: np.ndarray

    @classmethod
    def of(cls, symbols: np.ndarray) -> Huffman:
        """The best code for these symbols; its words have at most 16 bits."""
        if symbols.size == 0:
            raise NothingToDoError("a Huffman code needs at least one symbol")
        counts = np.bincount(symbols.reshape(-1))
        lengths = _lengths(counts)
        while lengths.max() > LONGEST:  # flatten the counts until the tree is shallow enough
            counts = np.where(counts > 0, counts // 2 + 1, 0)
            lengths = _lengths(counts)
        return cls(lengths)

    def average(self, symbols: np.ndarray) -> float:
        """Bits per symbol."""
        return float(self.lengths[symbols.reshape(-1)].mean())

    def words(self) -> np.ndarray:
        """The code words as numbers: in order of length, then of symbol."""
        out = np.zeros(len(self.lengths), dtype=np.int64)
        word = last = 0
        for symbol in sorted(np.flatnonzero(self.lengths), key=lambda s: (self.lengths[s], s)):
            word <<= int(self.lengths[symbol]) - last
            last = int(self.lengths[symbol])
            out[symbol] = word
            word += 1
        return out

    def table(self) -> dict[int, str]:
        """Symbol to code word, as text of zeros and ones."""
        words = self.words()
        used = np.flatnonzero(self.lengths)
        return {int(s): format(int(words[s]), f"0{int(self.lengths[s])}b") for s in used}

    def encode(self, symbols: np.ndarray) -> bytes:
        """The words of all symbols one after the other, the last byte filled with zeros."""
        flat = symbols.reshape(-1)
        if flat.size and (flat.max() >= len(self.lengths) or (self.lengths[flat] == 0).any()):
            raise ValueError("a symbol that the code does not have")
        lengths, words = self.lengths[flat], self.words()[flat]
        ends = np.cumsum(lengths)
        bit_of = np.repeat(ends, lengths) - 1 - np.arange(int(ends[-1]) if flat.size else 0)
        return np.packbits(((np.repeat(words, lengths) >> bit_of) & 1).astype(np.uint8)).tobytes()

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """`count` symbols.

        Where a code word starts depends on the one before. The end of a word starting at each bit is looked up for all
        bits at once, and the chain from the first bit follows by pointer doubling: 1, 2, 4, 8 ... words ahead.
        """
        symbol_at, length_at = self._lookup()
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        bits = np.concatenate([bits, np.zeros(LONGEST + _BLOCK, dtype=np.uint8)]).astype(np.int64)
        out = np.empty(count, dtype=np.int64)
        done = start = 0
        while done < count:
            if start >= 8 * len(data):
                raise FormatError(f"a Huffman stream ends after {done} of {count} symbols")
            window = bits[start : start + _BLOCK + LONGEST]
            value = np.zeros(_BLOCK, dtype=np.int64)
            for k in range(LONGEST):
                value = value * 2 + window[k : k + _BLOCK]
            length = length_at[value]
            if length[0] == 0:
                raise FormatError(f"a Huffman stream holds a word at bit {start} that the code does not have")
            jump = np.minimum(np.arange(_BLOCK) + np.maximum(length, 1), _BLOCK)
            jump = np.append(jump, _BLOCK)
            at = np.zeros(1, dtype=np.int64)
            while at[-1] < _BLOCK and len(at) < count - done:
                at = np.concatenate([at, jump[at]])
                jump = jump[jump]
            at = at[at < _BLOCK][: count - done]
            if (length[at] == 0).any():
                raise FormatError("a Huffman stream holds a word that the code does not have")
            out[done : done + len(at)] = symbol_at[value[at]]
            done += len(at)
            start += int(at[-1] + length[at[-1]])
        if start > 8 * len(data):
            raise FormatError("a Huffman stream ends within its last word")
        return out

    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """(symbol, length) of the word that the next 16 bits start with."""
        symbol_at = np.zeros(1 << LONGEST, dtype=np.int64)
        length_at = np.zeros(1 << LONGEST, dtype=np.int64)
        words = self.words()
        for symbol in np.flatnonzero(self.lengths):
            free = LONGEST - int(self.lengths[symbol])
            first = int(words[symbol]) << free
            symbol_at[first : first + (1 << free)] = symbol
            length_at[first : first + (1 << free)] = self.lengths[symbol]
        return symbol_at, length_at


def _lengths(counts: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(counts), dtype=np.int64)
    used = [int(s) for s in np.flatnonzero(counts)]
    if len(used) == 1:
        lengths[used[0]] = 1
        return lengths
    heap: list[tuple[int, int, list[int]]] = [(int(counts[s]), s, [s]) for s in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        low, tie, left = heapq.heappop(heap)
        high, other, right = heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (low + high, min(tie, other), left + right))
    return lengths
