"""Code symbols by one table of frequencies, which is written first: the fast coder.

>>> import numpy as np
>>> symbols = np.array([0] * 900 + [1] * 90 + [2] * 10)
>>> len(encode(symbols, 3)) * 8 / 1000 < entropy(symbols) + 0.1
True
"""

from __future__ import annotations

from ctypes import CDLL

import numpy as np

from secateur.coding import native, varint
from secateur.coding.range_coder import TOTAL, Decoder, Encoder
from secateur.errors import FormatError

__all__ = ["MOST_SYMBOLS", "decode", "encode", "entropy", "frequencies", "histogram"]

MOST_SYMBOLS = 1 << 16
_PIECE = 1 << 18  # symbols counted at a time
_FINEST = 1 << 12  # counts are scaled so that their sum stays near this before they are written


def entropy(symbols: np.ndarray) -> float:
    """Bits per symbol of an ideal code that knows only how often each symbol occurs.

    >>> entropy(np.array([0, 1, 0, 1]))
    1.0
    """
    if symbols.size == 0:
        return 0.0
    if (library := _library(symbols)) is None:
        counts = histogram(symbols)
    else:
        counts = np.empty(256, dtype=np.int64)
        library.secateur_count(symbols.ctypes.data, symbols.size, counts.ctypes.data)
    share = counts[counts > 0] / symbols.size
    return float(-(share * np.log2(share)).sum()) + 0.0


def _library(symbols: np.ndarray, size: int = 256) -> CDLL | None:
    """The compiled passes over bytes (`tables.c`), which do what is done here; None where this process has none, or
    for more bytes than they count.
    """
    plain = symbols.dtype == np.uint8 and symbols.flags.c_contiguous and size == 256
    plain = plain and symbols.size < native.COUNTABLE
    return native.load() if plain and symbols.size and native.is_loaded() else None


def histogram(symbols: np.ndarray, size: int = 0) -> np.ndarray:
    """How often each symbol occurs, for `size` symbols or as many as there are; counted by pieces to save memory.

    >>> histogram(np.array([0, 2, 2], dtype=np.int16), 4).tolist()
    [1, 0, 2, 0]
    """
    flat = symbols.reshape(-1)
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(flat), _PIECE):
        more = np.bincount(flat[start : start + _PIECE], minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts to integers that sum to `TOTAL - K`; the remainder of rounding goes to the largest."""
    free = TOTAL - len(counts)
    counts = counts.astype(np.int64)
    total = int(counts.sum())
    out = counts * free // total
    out[int(np.argmax(counts))] += free - int(out.sum())
    return out


def encode(symbols: np.ndarray, size: int) -> bytes:
    """Symbols 0..size-1 as a table (each symbol's coarse count) and one range-coded stream.

    A single symbol only needs no stream at all.
    """
    flat = symbols.reshape(-1)
    if (library := _library(flat, size)) is not None:
        out = np.empty(2 * flat.size + 1024, dtype=np.uint8)
        length = library.secateur_table_encode(flat.ctypes.data, flat.size, out.ctypes.data)
        return out[:length].tobytes()
    counts = histogram(flat, size)
    total = int(counts.sum())
    if total == 0:
        return b""
    if size > 1:
        finest = max(_FINEST, 8 * size)
        if total > finest:
            counts = np.where(counts > 0, np.maximum(counts * finest // total, 1), 0)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        # the last byte is never zero, because zeros at the end may be filling
        return varint.write(int(used[0])) + b"\0\1"
    first, last = int(used[0]), int(used[-1])
    table = varint.write_all(counts[first : last + 1].tolist())
    encoder = Encoder()
    encoder.symbols(flat - first, frequencies(counts[first : last + 1]))
    return varint.write(first) + varint.write(last - first) + table + encoder.finish()


def decode(data: bytes | memoryview, count: int, size: int) -> np.ndarray:
    """The inverse of `encode`: `count` symbols, all below `size`, as whole numbers that hold them."""
    if count == 0:
        if len(data):
            raise FormatError("a table of symbols: expected nothing for no symbols")
        return np.zeros(0, dtype=np.int32)
    if size == 256 and native.is_loaded():
        plane, stream = np.empty(count, dtype=np.uint8), np.frombuffer(data, dtype=np.uint8)
        library = native.load()
        assert library is not None
        if library.secateur_table_decode(stream.ctypes.data, stream.size, plane.ctypes.data, count):
            return plane
    reader = varint.Reader(data, "a table of symbols")
    first = reader.varint(size - 1, "the first symbol")
    spread = reader.varint(size - 1 - first, "the number of symbols")
    if spread == 0:
        if reader.byte() != 1:
            raise reader.fail("expected a one after a single symbol")
        reader.end()
        return np.full(count, first, dtype=np.int32)
    counts = reader.varints(spread + 1, 1 << 32, "a frequency")
    total = int(counts.sum())
    if counts[0] == 0 or counts[-1] == 0 or total > 1 << 38:
        raise reader.fail("the table's first and last frequency must not be zero, and their sum below 2**38")
    decoder = Decoder(reader.take(reader.left))
    symbols = decoder.symbols(count, frequencies(counts))
    decoder.finish()
    if first:
        symbols += first
    return symbols
