"""Write a compact file: version 5, without sections, for a small model that supplies names and shapes itself.

In a file of three kilobytes every byte beside the weights counts. So there is one checksum in place of one a section,
the methods of the tensors are written once where they repeat, and codebooks of few values take a byte a value.

>>> import io
>>> file = io.BytesIO()
>>> writer = CompactWriter(file, [Entry("w", "F32", (2,))])
>>> writer.add(Entry("w", "F32", (2,)), bytes(8), sct.ZERO, [])
>>> writer.finish()
>>> writer.written == len(file.getvalue()) == 22
True
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import BinaryIO

from secateur.coding import varint
from secateur.coding.indices import MixerBank
from secateur.container import codebooks
from secateur.container import format as sct
from secateur.container.format import Entry
from secateur.container.scalar_streams import ScalarStreams

__all__ = ["CompactWriter", "compact_enough"]


def compact_enough(entries: Sequence[Entry]) -> bool:
    """Whether a file of these tensors may be compact: they are not empty, and decode to no more than one section.

    Args:
        entries: Names, dtypes and shapes.

    >>> compact_enough([Entry("w", "F32", (1000, 1000))]), compact_enough([Entry("w", "F32", (2000, 2000))])
    (True, False)
    """
    return len(entries) > 0 and sum(entry.nbytes for entry in entries) < sct.SECTION_SIZE


class CompactWriter:
    """Writes a file of version 5 at once, when it is finished.

    Args:
        file: The open file to write to.
        names_from: The tensors that a reader must supply, for which `compact_enough`.
        folded: The statistics of batch norm are not among the tensors.
        widths: The widths that a reader cuts a freshly built model to.
    """

    def __init__(
        self,
        file: BinaryIO,
        names_from: Sequence[Entry],
        folded: bool = False,
        widths: bytes | None = None,
    ):
        self._file = file
        flags = sct.NAMELESS | (sct.FOLDED if folded else 0) | (0 if widths is None else sct.WIDTHS)
        self._head = bytes([flags]) + varint.write(len(names_from)) + sct.digest(names_from)[:4]
        if widths is not None:
            self._head += varint.write(len(widths)) + widths
        self._lanes = b""
        self._methods: list[int] = []
        self._parts: list[bytes] = []
        self._content = 0
        self.written = 0
        self.memory = MixerBank()

    def lanes(self, lanes: ScalarStreams) -> None:
        """Keep the lanes that tensors refer to."""
        self._lanes = lanes.compact()

    def add(self, entry: Entry, decoded: bytes | memoryview, method: int, parts: Sequence[bytes]) -> None:
        """Keep one tensor.

        Args:
            entry: Its name, dtype and shape.
            decoded: The bytes a reader will decode, for the checksum of the content.
            method: The storage method.
            parts: The parts of the method.
        """
        short = _short(entry, parts[0]) if method == sct.INDEXED else None
        if short is not None:
            method, parts = sct.SHORT, [short, *parts[1:]]
        self._methods.append(method)
        for name, part in zip(sct.METHODS[method][1], parts, strict=True):
            self._parts += [part] if name == "multiples" else [varint.write(len(part)), part]
        self._content = zlib.crc32(decoded, self._content)

    def finish(self) -> None:
        """Write the file."""
        period = _period(self._methods)
        out = sct.MAGIC + bytes([sct.COMPACT]) + self._head + varint.write(len(self._lanes)) + self._lanes
        out += varint.write(period) + bytes(self._methods[:period]) + b"".join(self._parts)
        out += self._content.to_bytes(4, "little")
        out += zlib.crc32(out).to_bytes(4, "little")
        self.written = len(out)
        self._file.write(out)
        self._file.flush()


def _short(entry: Entry, book: bytes) -> bytes | None:
    """The short codebook in place of another one, where it takes fewer bytes with what tells the other one's length."""
    values = codebooks.read_codebook(memoryview(book), entry, entry.name)
    short = codebooks.short_codebook(values, entry)
    return short if short is not None and len(short) <= len(book) else None


def _period(methods: list[int]) -> int:
    """The shortest start of the list that, repeated, gives all of it.

    >>> _period([5, 11, 5, 11, 5]), _period([1, 2, 3])
    (2, 3)
    """
    return next(
        p for p in range(1, len(methods) + 1) if all(m == methods[k % p] for k, m in enumerate(methods))
    )
