"""`Skimming`: a section of a .sct file read on demand, without its long parts: names and shapes cost no memory.

>>> import io
>>> found = Skimming(io.BytesIO(b"\\1a" + b"\\x40" + bytes(64)), 0, 67, "section")
>>> bytes(found.part()), bytes(found.part()), found.left
(b'a', b'', 0)
"""

from __future__ import annotations

from typing import Protocol

from secateur.coding import varint

__all__ = ["SctFile", "Skimming"]

_NUMBER = 16  # bytes of a part that is a number
_WINDOW = 40  # bytes that are read at a time, where single ones are asked for: a name, a shape


class SctFile(Protocol):
    """The methods of an open file that are used here."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Put the next bytes into a buffer; how many there were."""


class Skimming(varint.Reader):
    """A section that is read from the file on demand; parts longer than a number are skipped."""

    def __init__(self, file: SctFile, start: int, length: int, what: str):
        super().__init__(b"", what, start)
        self._file, self._length = file, length
        self._window, self._begin = b"", 0

    @property
    def left(self) -> int:
        """Bytes of the section that are still to come."""
        return self._length - self.at

    def take(self, count: int) -> memoryview:
        """The next bytes, read from the file."""
        self.skip(count)
        place = self.at - count - self._begin
        if place < 0 or place + count > len(self._window):
            return memoryview(self._read(self.at - count, count))
        return memoryview(self._window)[place : place + count]

    def byte(self) -> int:
        """The next byte as a number; those after it are read with it."""
        place = self.at - self._begin
        if not 0 <= place < len(self._window):
            self.skip(1)
            self.at -= 1
            self._fill()
            place = 0
        self.at += 1
        return self._window[place]

    def ahead(self, count: int) -> bytes:
        """Up to `count` bytes from here on, or the rest of a window that was read."""
        place = self.at - self._begin
        if not 0 <= place <= len(self._window) - _WINDOW * 3 // 4:
            self._fill()
            place = 0
        return self._window[place : place + count]

    def _fill(self) -> None:
        """Let the window begin here."""
        self._window = self._read(self.at, min(_WINDOW, self.left))
        self._begin = self.at

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(self.base + at)
        found = self._file.read(count)
        if len(found) < count:
            raise self.fail("the file got shorter while it was read")
        return found

    def part(self, of: str = "a part") -> memoryview:
        """The next part where it is a number; nothing in place of a longer one."""
        length = self.varint(self.left, f"the length of {of}")
        if length <= _NUMBER:
            return self.take(length)
        self.skip(length)
        return memoryview(b"")
