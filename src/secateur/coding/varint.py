"""Integers in as few bytes as they need, and a reader that never runs past the end of its data.

>>> write(300).hex()
'ac02'
>>> Reader(b"\\xac\\x02\\x07", "example").varint()
300
>>> Reader(b"\\xac", "example").varint()
Traceback (most recent call last):
...
secateur.errors.FormatError: example, byte 1: expected 1 more byte, found the end
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from secateur.errors import FormatError

__all__ = ["LARGEST", "Reader", "signed", "unsigned", "write", "write_all"]

LARGEST = (1 << 63) - 1


def write(value: int) -> bytes:
    """Encode an integer: seven bits a byte, lowest first, the top bit set on every byte but the last."""
    if not 0 <= value <= LARGEST:
        raise ValueError(f"a varint holds 0..2**63-1, got {value}")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_all(values: Iterable[int]) -> bytes:
    """Encode integers one after another, each as `write` does.

    >>> write_all([3, 300]) == write(3) + write(300)
    True
    """
    each = list(values)
    if min(each, default=0) >= 0 and max(each, default=0) < 128:  # a byte each, as almost always
        return bytes(each)
    return b"".join(map(write, each))


def unsigned(value: int) -> int:
    """Map a signed integer to an unsigned one of about twice its size: 0, -1, 1, -2 become 0, 1, 2, 3.

    >>> [unsigned(v) for v in (0, -1, 1, -2)]
    [0, 1, 2, 3]
    """
    return value * 2 if value >= 0 else -value * 2 - 1


def signed(value: int) -> int:
    """The inverse of `unsigned`."""
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


class Reader:
    """Reads fields from bytes in order; every failure is a `FormatError` that says where.

    Args:
        data: The bytes.
        what: The name of what is read, for messages.
        base: Where `data` starts in the file.
    """

    def __init__(self, data: bytes | memoryview, what: str, base: int = 0):
        self.data = memoryview(data)
        self.what = what
        self.base = base
        self.at = 0

    def fail(self, message: str) -> FormatError:
        """The error to raise for what was found here."""
        return FormatError(f"{self.what}, byte {self.base + self.at}: {message}")

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        self.skip(count)
        return self.data[self.at - count : self.at]

    def ahead(self, count: int) -> bytes:
        """Up to `count` bytes from here on, which stay to be read."""
        return bytes(self.data[self.at : self.at + count])

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes."""
        if count > self.left:
            missing = count - self.left
            raise self.fail(f"expected {missing} more byte{'s' if missing > 1 else ''}, found the end")
        self.at += count

    def byte(self) -> int:
        """The next byte as a number."""
        at = self.at
        if at >= len(self.data):
            self.skip(1)  # raises
        self.at = at + 1
        return self.data[at]

    def varint(self, most: int = LARGEST, of: str = "a number") -> int:
        """The next varint: at most `most`, in its shortest form; `of` says what it counts."""
        byte = value = self.byte()
        shift = 7
        if byte > 127:
            value &= 127
        while byte > 127:
            if shift >= 63:
                raise self.fail(f"{of} has more than 63 bits")
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
        if byte == 0 and shift > 7:
            raise self.fail(f"{of} is written with needless bytes")
        if value > most:
            raise self.fail(f"{of} is {value}, expected at most {most}")
        return value

    def varints(self, count: int, most: int = LARGEST, of: str = "a number") -> np.ndarray:
        """The next `count` varints, each at most `most`."""
        ahead = np.frombuffer(self.data[self.at : self.at + count], dtype=np.uint8)
        if len(ahead) == count and ahead.max(initial=0) <= min(most, 127):  # a byte each, as almost always
            self.at += count
            return ahead.astype(np.int64)
        return np.array([self.varint(most, of) for _ in range(count)], dtype=np.int64)

    def part(self, of: str = "a part") -> memoryview:
        """A varint length and that many bytes."""
        return self.take(self.varint(self.left, f"the length of {of}"))

    def end(self) -> None:
        """Raise unless everything has been read."""
        if self.left:
            raise self.fail(f"{self.left} bytes are left over")
