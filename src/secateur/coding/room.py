"""`Room`: memory that one tensor after another uses, and `Pieces`: bytes in several buffers, not joined yet.

Memory that is new to a process costs more time than coding into it: the system clears every page when it is first
written. So whoever goes through many tensors, one at a time, keeps a room for them.

>>> room = Room()
>>> words = room.array(1000, np.dtype("u4"))
>>> words.size, words.dtype.itemsize
(1000, 4)
>>> room.clear()
>>> room.array(1000, np.dtype("u4")).ctypes.data == words.ctypes.data
True
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["Pieces", "Room", "array"]

_ALIGNED = 64  # bytes


class Room:
    """Arrays in memory that is used again after `clear`."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._used = 0  # bytes of the last block
        self._taken = False  # whether an array was taken since `clear`

    def array(self, count: int, kind: np.dtype) -> np.ndarray:
        """An array of `count` numbers, not initialised; valid until `clear`."""
        nbytes = count * kind.itemsize
        if not self._blocks or self._used + nbytes > len(self._blocks[-1]):
            if not self._taken:
                self._blocks.clear()  # too small, and in nobody's use
            self._blocks.append(np.empty(nbytes + _ALIGNED, dtype=np.uint8))
            self._used = -self._blocks[-1].ctypes.data % _ALIGNED
        taken = self._blocks[-1][self._used : self._used + nbytes]
        self._used += nbytes + -nbytes % _ALIGNED
        self._taken = True
        return taken.view(kind)

    def clear(self) -> None:
        """Give all memory back to the room; the arrays taken so far must not be used any more."""
        if len(self._blocks) > 1:
            size = sum(map(len, self._blocks))
            self._blocks.clear()  # before the block that replaces them is made
            self._blocks.append(np.empty(size, dtype=np.uint8))
        self._used = -self._blocks[0].ctypes.data % _ALIGNED if self._blocks else 0
        self._taken = False


def array(room: Room | None, count: int, kind: np.dtype) -> np.ndarray:
    """An array in a room, or a new one where there is none.

    >>> array(None, 3, np.dtype("u1")).size
    3
    """
    return np.empty(count, dtype=kind) if room is None else room.array(count, kind)


class Pieces:
    """Bytes in several buffers; those of a room are valid until it is cleared.

    >>> pieces = Pieces([b"ab", np.zeros(2, dtype=np.uint16).data])
    >>> len(pieces), bytes(pieces)
    (6, b'ab\\x00\\x00\\x00\\x00')
    """

    def __init__(self, buffers: Iterable[bytes | memoryview]):
        self.buffers = [memoryview(buffer).cast("B") for buffer in buffers]
        self._length = sum(map(len, self.buffers))

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)
