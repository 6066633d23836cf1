"""The range coder: constriction's, with probabilities that are exact in binary floating point.

constriction takes floating-point probabilities and converts them to integers of 24 bits. Both kinds of probability used
here are chosen so that this conversion is exact on every machine and compiler:

- a bit's probability of being 1 is `p / 65536` with whole `p` in 1..65535: all products fit in 53 bits, and
  the 0 gets `floor((65536 - p) * (2**24 - 2) / 65536) + 1` of 2**24 parts;
- a table of frequencies sums to `2**24 - K` for K symbols, so that the scale is exactly 1 and symbol j gets
  `frequency[j] + 1` of 2**24 parts.

docs/format.md defines the decoder in whole numbers; the tests hold constriction to that definition.

>>> import numpy as np
>>> encoder = Encoder()
>>> encoder.bits(np.array([1, 0, 1, 1]), np.array([60000, 5000, 60000, 32768]))
>>> data = encoder.finish()
>>> Decoder(data).bits(np.array([60000, 5000, 60000, 32768])).tolist()
[1, 0, 1, 1]
"""

from __future__ import annotations

import constriction
import numpy as np

from secateur.errors import FormatError

__all__ = ["TOTAL", "BitReader", "Decoder", "Encoder"]

TOTAL = 1 << 24  # parts a probability is divided into
_WIDE = (1 << 64) - 1
# A table of two symbols for every bit: the same shares as constriction's Bernoulli model, in half its time.
_BIT = constriction.stream.model.Categorical(perfect=False)


class Encoder:
    """Writes bits and symbols; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def bits(self, bits: np.ndarray, ones: np.ndarray) -> None:
        """Append bits, each with its own probability `ones / 65536` of being 1."""
        self.coins(bits, _pairs(ones))

    def coins(self, bits: np.ndarray, pairs: np.ndarray) -> None:
        """Append bits with a row each of `pairs`: the probabilities of 0 and of 1, whole 65536ths that add up to 1."""
        if bits.size:
            self._coder.encode(bits.astype(np.int32, copy=False), _BIT, pairs)

    def symbols(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        """Append symbols that share one table of frequencies, which sum to `TOTAL - len(frequencies)`."""
        if symbols.size:
            self._coder.encode(symbols.astype(np.int32), _table(frequencies))

    def finish(self) -> bytes:
        """All bytes written: big-endian words, without the zero bytes at the end, which the decoder adds."""
        return self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class Decoder:
    """Reads the bytes of an `Encoder`, in the same order with the same probabilities."""

    def __init__(self, data: bytes | memoryview):
        whole = bytes(data) + bytes(-len(data) % 4)
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(whole, dtype=">u4").astype(np.uint32)
        )

    def bits(self, ones: np.ndarray) -> np.ndarray:
        """As many bits as there are probabilities `ones / 65536` of a 1."""
        return self.coins(_pairs(ones))

    def coins(self, pairs: np.ndarray) -> np.ndarray:
        """As many bits as there are rows of `pairs`: the probabilities of 0 and of 1, as for the encoder."""
        if not pairs.size:
            return np.zeros(0, dtype=np.int32)
        try:
            return self._coder.decode(_BIT, pairs)
        except AssertionError:
            raise FormatError("a coded stream holds a value outside the coder's range") from None

    def symbols(self, count: int, frequencies: np.ndarray) -> np.ndarray:
        """`count` symbols of one table."""
        if not count:
            return np.zeros(0, dtype=np.int32)
        try:
            return self._coder.decode(_table(frequencies), count)
        except AssertionError:
            raise FormatError("a coded stream holds a value outside the coder's range") from None

    def finish(self) -> None:
        """Raise unless the bytes end where the symbols do."""
        if not self._coder.maybe_exhausted():
            raise FormatError("a coded stream has bytes after its last symbol")


class BitReader:
    """The decoder in plain integers, for single bits: several times as fast as a call of `Decoder` for each.

    docs/format.md, section 5, is this code in words. `found` and `odds` collect what was read, so that `Decoder` can
    check all of it, and the end of the stream, in one call.

    >>> encoder = Encoder()
    >>> encoder.bits(np.array([1, 0, 1]), np.array([60000, 5000, 32768]))
    >>> reader = BitReader(encoder.finish())
    >>> [reader.bit(odds) for odds in (60000, 5000, 32768)]
    [1, 0, 1]
    """

    def __init__(self, data: bytes):
        whole = data + bytes(-len(data) % 4)
        self._words = np.frombuffer(whole, dtype=">u4").tolist()
        self._words.reverse()
        self._low, self._range, self._point = 0, _WIDE, 0
        self._point = self._next() << 32 | self._next()
        self.found: list[int] = []
        self.odds: list[int] = []

    def _next(self) -> int:
        return self._words.pop() if self._words else 0

    def bit(self, ones: int) -> int:
        """The next bit, which is 1 with probability `ones / 65536`."""
        scale = self._range >> 24
        left = ((65536 - ones) * (TOTAL - 2) >> 16) + 1
        place = (self._point - self._low & _WIDE) // scale
        if place >= TOTAL:
            raise FormatError("a coded stream holds a value outside the coder's range")
        if place < left:
            found, size = 0, scale * left
        else:
            found, size = 1, scale * (TOTAL - left)
            self._low = self._low + scale * left & _WIDE
        if size <= 0xFFFFFFFF:
            self._low, size = self._low << 32 & _WIDE, size << 32
            self._point = (self._point << 32 & _WIDE) | self._next()
        self._range = size
        self.found.append(found)
        self.odds.append(ones)
        return found


def _pairs(ones: np.ndarray) -> np.ndarray:
    pairs = np.empty((len(ones), 2))
    np.multiply(ones, 1 / 65536, out=pairs[:, 1])
    np.subtract(1.0, pairs[:, 1], out=pairs[:, 0])
    return pairs


def _table(frequencies: np.ndarray) -> object:
    if int(frequencies.sum()) != TOTAL - len(frequencies) or int(frequencies.min()) < 0:
        raise ValueError(f"frequencies must sum to {TOTAL - len(frequencies)}, got {int(frequencies.sum())}")
    return constriction.stream.model.Categorical(frequencies.astype(np.float64), perfect=False)
