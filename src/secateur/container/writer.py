"""Write a .sct file section by section; needs no torch.

>>> import io
>>> file = io.BytesIO()
>>> writer = Writer(file)
>>> writer.add(Entry("w", "F32", (2,)), b"12345678", sct.RAW, [b"12345678"])
>>> writer.finish()
>>> writer.written, file.getvalue()[1:4]
(46, b'SCT')
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from secateur.coding import digits, varint
from secateur.coding.crc import crc32
from secateur.coding.indices import MixerBank
from secateur.coding.room import Pieces
from secateur.container import format as sct
from secateur.container.checksums import carried
from secateur.container.format import Entry
from secateur.core.json_text import Json, are_counts, is_count
from secateur.errors import OptionError

__all__ = ["Writer"]

_USUAL = 2  # the version written unless something in the file needs a later one


class Writer:
    """Writes a file, with one section in memory at a time.

    The file gets the lowest version that knows everything it holds. That is known at the end only, so `file` must be
    seekable.

    Args:
        file: The open file to write to.
        names_from: Leave names, dtypes and shapes out of the file; a reader must supply exactly these entries.
        folded: The statistics of batch norm are not among the tensors.
        widths: The widths that a reader cuts a freshly built model to; only with `names_from`.
    """

    def __init__(
        self,
        file: BinaryIO,
        names_from: Sequence[Entry] | None = None,
        folded: bool = False,
        widths: bytes | None = None,
    ):
        self._file = file
        self._version = _USUAL if widths is None else 4
        self._crc = zlib.crc32(sct.MAGIC + bytes([_USUAL]))
        self._sections: list[tuple[int, int]] = []  # bytes and checksum of each
        self._content = 0
        self._named = names_from is None
        self._count = 0
        self._decoded = 0
        self._pending: list[bytes | memoryview] = []
        self._pending_size = self._pending_count = 0
        self._last_name = b""
        self.written = len(sct.MAGIC) + 1
        self.memory = MixerBank()  # of the section being written: the models are reset with every section
        file.write(sct.MAGIC + bytes([_USUAL]))
        flags = (0 if self._named else sct.NAMELESS) | (sct.FOLDED if folded else 0)
        head = bytes([flags | (0 if widths is None else sct.WIDTHS)])
        if names_from is not None:
            head += varint.write(len(names_from)) + sct.digest(names_from)
        if widths is not None:
            head += varint.write(len(widths)) + widths
        self._section(sct.HEAD, head)
        self._names: set[str] = set()

    def resume(self, state: Mapping[str, Json], entries: Sequence[Entry]) -> None:
        """Continue a file whose writer gave `state()`, as a new writer of that file; later bytes are cut off.

        Args:
            state: A result of `state`.
            entries: The tensors that are in the file.

        Raises:
            ValueError: The file is not the one whose state this is.

        >>> import io
        >>> file, words = io.BytesIO(), [bytes(sct.SECTION_SIZE), b"12345678"]
        >>> one = Writer(file)
        >>> one.add(Entry("a", "U8", (sct.SECTION_SIZE,)), words[0], sct.ZERO, [])
        >>> state = one.state()
        >>> one.add(Entry("b", "F32", (2,)), words[1], sct.RAW, [words[1]]); one.finish()
        >>> other = io.BytesIO(file.getvalue())
        >>> again = Writer(other); again.resume(state, [Entry("a", "U8", (sct.SECTION_SIZE,))])
        >>> again.add(Entry("b", "F32", (2,)), words[1], sct.RAW, [words[1]]); again.finish()
        >>> other.getvalue() == file.getvalue()
        True
        """
        numbers = {key: value for key, value in state.items() if isinstance(value, int) and is_count(value)}
        flat = state["sections"]
        if not isinstance(flat, list) or self._file.seek(0, os.SEEK_END) < numbers["written"]:
            raise ValueError("the file is shorter than its state says")
        if not are_counts(flat) or numbers["count"] != len(entries) or numbers["version"] not in sct.VERSIONS:
            raise ValueError("its state is that of another file")
        if numbers["decoded"] != sum(entry.nbytes for entry in entries):
            raise ValueError("its state has another number of bytes than these tensors")
        if max(numbers["crc"], numbers["content"]) >= 1 << 32:
            raise ValueError("its state holds a checksum of more than 32 bits")
        self._version, self._crc, self._content = (numbers[key] for key in ("version", "crc", "content"))
        self._count, self._decoded, self.written = (numbers[key] for key in ("count", "decoded", "written"))
        self._sections = [(int(str(a)), int(str(b))) for a, b in zip(flat[::2], flat[1::2], strict=True)]
        self._names = {entry.name for entry in entries}
        self._file.truncate(self.written)
        self._file.seek(self.written)

    @property
    def at_boundary(self) -> bool:
        """Whether every tensor added so far is in the file, and the next one begins a section."""
        return not self._pending

    def state(self) -> dict[str, Json]:
        """The state from which `resume` continues, as JSON; only at the end of a section."""
        assert self.at_boundary
        assert self._named
        self._file.flush()
        with contextlib.suppress(io.UnsupportedOperation):  # a file in memory
            os.fsync(self._file.fileno())
        flat: list[Json] = [number for section in self._sections for number in section]
        return {
            "version": self._version,
            "crc": self._crc,
            "sections": flat,
            "content": self._content,
            "count": self._count,
            "decoded": self._decoded,
            "written": self.written,
        }

    def text(self, key: str, value: bytes) -> None:
        """Write a named text (a shrink plan, a header), already coded."""
        self._flush()
        name = key.encode()
        self._section(sct.TEXT, varint.write(len(name)) + name + value)

    def numbers(self, payload: bytes, version: int = _USUAL) -> None:
        """Write the lanes that later tensors refer to.

        Args:
            payload: The result of `ScalarStreams.payload`.
            version: The lowest version that can read the payload.
        """
        self._flush()
        self._version = max(self._version, version)
        self._section(sct.NUMBERS, payload)

    def add(
        self, entry: Entry, decoded: bytes | memoryview, method: int, parts: Sequence[bytes | Pieces]
    ) -> None:
        """Write one tensor.

        Args:
            entry: Its name, dtype and shape.
            decoded: The bytes a reader will decode, for the checksum of the content.
            method: The storage method.
            parts: The parts of the method; they are not needed any more when this returns.
        """
        problem = sct.problem_of(entry) or ("comes twice" if entry.name in self._names else "")
        if problem:
            raise OptionError(f"tensor {entry.name[:80]!r}: {problem}, so no .sct file can hold it")
        self._names.add(entry.name)
        pieces: list[bytes | memoryview] = [(self._name(entry) if self._named else b"") + bytes([method])]
        for name, part in zip(sct.METHODS[method][1], parts, strict=True):
            buffers = part.buffers if isinstance(part, Pieces) else [memoryview(part)]
            pieces += [varint.write(len(part)), *buffers]
            if name == "packed" and buffers and bytes(buffers[0][:1]) == bytes([digits.MARK]):
                self._version = max(self._version, 3)
        if method == sct.SLICED:
            self._version = max(self._version, 6)
        self._content = crc32(decoded, self._content)
        self._decoded += entry.nbytes
        self._count += 1
        self._pending_count += 1
        self._pending_size += entry.nbytes
        if self._pending_size >= sct.SECTION_SIZE:
            self._pending += pieces
            self._flush()
        else:
            self._pending.append(b"".join(pieces))

    def finish(self) -> None:
        """Close the last section and write the end."""
        self._flush()
        allowed = sct.FREE_BYTES + sct.BYTES_PER_BYTE * self.written
        if self._decoded > allowed:
            self._section(sct.PAD, bytes(-(-(self._decoded - allowed) // sct.BYTES_PER_BYTE)))
        self._section(sct.END, varint.write(self._count) + self._content.to_bytes(4, "little"))
        if self._version != _USUAL:
            self._set_version(self._version)
        self._file.flush()

    def _set_version(self, version: int) -> None:
        """Set the version of the whole file, and update the checksum of every section."""
        begin = self._file.tell() - self.written
        old, new = (sct.MAGIC + bytes([number]) for number in (_USUAL, version))
        self._file.seek(begin)
        self._file.write(new)
        difference, at = zlib.crc32(old) ^ zlib.crc32(new), begin + len(new)
        for length, checksum in self._sections:
            difference, at = carried(difference, length), at + length
            self._file.seek(at)
            at += self._file.write((checksum ^ difference).to_bytes(4, "little"))

    def _name(self, entry: Entry) -> bytes:
        name = entry.name.encode()
        pairs = zip(name, self._last_name)
        shared = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(name), len(self._last_name)))
        self._last_name = name
        out = varint.write(shared) + varint.write(len(name) - shared) + name[shared:]
        out += bytes([sct.DTYPES[entry.dtype][0]]) + varint.write(len(entry.shape))
        return out + b"".join(varint.write(size) for size in entry.shape)

    def _flush(self) -> None:
        if self._pending:
            self._section(sct.TENSORS, varint.write(self._pending_count), *self._pending)
            self._pending, self._last_name = [], b""
            self._pending_size = self._pending_count = 0
            self.memory = MixerBank()

    def _section(self, kind: int, *payload: bytes | memoryview) -> None:
        length = sum(map(len, payload))
        head = bytes([kind]) + varint.write(length)
        for piece in (head, *payload):
            self._crc = crc32(piece, self._crc)
            self._file.write(piece)
        self._file.write(self._crc.to_bytes(4, "little"))
        self.written += len(head) + length + 4
        self._sections.append((len(head) + length, self._crc))
