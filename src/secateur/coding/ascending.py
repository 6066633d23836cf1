"""Code ascending integers by bisection: the middle one first, then the middles of both halves.

A number between two known ones needs only the bits of its place between them, so the more numbers there are, the fewer
bits each takes.

>>> import numpy as np
>>> numbers = np.array([3, 7, 8, 20, 1000, 1001, 70000], dtype=np.uint32)
>>> data = encode(numbers)
>>> len(data), decode(data, 7, 4).tolist() == numbers.tolist()
(15, True)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from secateur.errors import FormatError

__all__ = ["decode", "encode"]


def encode(numbers: np.ndarray) -> bytes:
    """Code strictly ascending unsigned numbers: the first and the last in full, the others between them."""
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    if len(numbers) < 2:
        return little.tobytes()
    between = _bits(numbers.astype(np.int64)) if numbers.itemsize < 8 else _bits_of_long(numbers)
    return little[[0, -1]].tobytes() + np.packbits(between).tobytes()


def _bits(known: np.ndarray) -> np.ndarray:
    """The bits of all numbers between the ends, in coding order; numbers of at most 32 bits."""
    middle, first, last = _places(len(known))
    low = known[first] + middle - first
    count = known[last] - (last - middle) - low + 1
    # The exponent of a whole number is its bit length.
    short = np.frexp(count.astype(np.float64))[1].astype(np.int64) - 1
    spare = (2 << short) - count
    value = known[middle] - low
    longer = value >= spare
    value, length = np.where(longer, value + spare, value), short + longer
    column = np.arange(length.max(initial=0))
    bits = value[:, None] >> np.maximum(length[:, None] - 1 - column, 0) & 1
    return bits[column < length[:, None]].astype(np.uint8)


def _bits_of_long(numbers: np.ndarray) -> np.ndarray:
    """As `_bits`, for numbers of 64 bits, whose differences numpy cannot hold."""
    known = [int(x) for x in numbers]
    text = ""
    for middle, low, high in _order(known):
        short, spare = _split(high - low + 1)
        value = known[middle] - low
        if value >= spare:
            text += format(value + spare, f"0{short + 1}b")
        elif short:
            text += format(value, f"0{short}b")
    return np.frombuffer(text.encode(), dtype=np.uint8) - ord("0")


def _places(count: int) -> np.ndarray:
    """What `_order` goes through, all at once: the index of every number, and those of its two known neighbours."""
    known = {2: np.empty((3, 0), dtype=np.int64)}  # by the numbers of a part, its ends included

    def part(size: int) -> np.ndarray:
        if size not in known:
            middle = (size - 1) // 2
            one = np.array([[middle], [0], [size - 1]])
            # The numbers of the first half come next, then those of the second.
            known[size] = np.concatenate((one, part(middle + 1), part(size - middle) + middle), axis=1)
        return known[size]

    return part(count)


def decode(data: bytes | memoryview, count: int, width: int) -> np.ndarray:
    """The inverse of `encode`: `count` numbers of `width` bytes."""
    ends = min(count, 2) * width
    if len(data) < ends or count < 1:
        raise FormatError(f"ascending numbers: expected at least {ends} bytes, got {len(data)}")
    known = [int(x) for x in np.frombuffer(data[:ends], dtype=f"<u{width}")]
    known = [known[0]] * (count - 1) + [known[-1]]
    if known[-1] - known[0] < count - 1:
        raise FormatError(f"ascending numbers: {count} of them do not fit between {known[0]} and {known[-1]}")
    text = "".join(format(byte, "08b") for byte in bytes(data[ends:]))
    at = 0
    for middle, low, high in _order(known):
        short, spare = _split(high - low + 1)
        value = int(text[at : at + short] or "0", 2)
        at += short
        if value >= spare:
            value = value * 2 + int(text[at : at + 1] or "0") - spare
            at += 1
        known[middle] = low + value
    if not 0 <= len(text) - at < 8 or "1" in text[at:]:
        raise FormatError("ascending numbers: the bits do not end where the numbers do")
    return np.array(known, dtype=f"u{width}")


def _order(known: list[int]) -> Iterator[tuple[int, int, int]]:
    """(index, lowest, highest) of every number between the ends, in coding order; reads known numbers only."""
    waiting = [(0, len(known) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        middle = (first + last) // 2
        yield middle, known[first] + middle - first, known[last] - (last - middle)
        waiting += [(middle, last), (first, middle)]


def _split(count: int) -> tuple[int, int]:
    """The bits of a short code word for one of `count` numbers, and how many numbers have a short one."""
    short = count.bit_length() - 1
    return short, (2 << short) - count
