"""`Archive`: a .sct file open for reading, the only reader and validator of its frame. It needs no torch.

The frame is everything but the coded words of tensors: magic number, version, sections and their checksums, and for
each tensor its name, dtype, shape, storage method and parts. Every length and count is checked against the size of the
file before anything is allocated for it.

>>> import io
>>> from secateur.container.format import RAW
>>> from secateur.container.writer import Writer
>>> file = io.BytesIO()
>>> writer = Writer(file)
>>> writer.add(Entry("w", "F32", (2,)), b"12345678", RAW, [b"12345678"])
>>> writer.finish()
>>> Archive(file).records()[0].entry
Entry(name='w', dtype='F32', shape=(2,))
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import numpy as np

from secateur.coding import varint
from secateur.coding.crc import crc32
from secateur.coding.indices import MixerBank
from secateur.coding.room import Room
from secateur.container.format import (
    BYTES_PER_BYTE,
    COMPACT,
    DRAWN,
    DTYPES,
    END,
    FOLDED,
    FREE_BYTES,
    GRID,
    HEAD,
    INDEXED,
    MAGIC,
    METHODS,
    MOST_COMPACT,
    MOST_DIMS,
    MOST_NAME,
    NAMELESS,
    NUMBERS,
    PAD,
    SHORT,
    SLICED,
    SPARSE,
    TENSORS,
    TEXT,
    VERSION,
    VERSIONS,
    WIDTHS,
    Entry,
    Record,
    digest,
    problem_of,
)
from secateur.container.limits import Limits
from secateur.container.skimming import SctFile, Skimming
from secateur.errors import FormatError

__all__ = ["Archive"]

_SECTIONS = {HEAD: "head", TENSORS: "tensors", TEXT: "text", PAD: "pad", END: "end", NUMBERS: "numbers"}
_LAST_SECTION = {1: END, 2: NUMBERS, 3: NUMBERS, 4: NUMBERS, 6: NUMBERS}
_LAST_FLAGS = {1: NAMELESS, 2: NAMELESS | FOLDED, 3: NAMELESS | FOLDED, 4: NAMELESS | FOLDED | WIDTHS}
_LAST_FLAGS[COMPACT] = _LAST_FLAGS[6] = _LAST_FLAGS[4]
_LAST_METHOD = {1: GRID, 2: DRAWN + 3, 3: DRAWN + 3, 4: DRAWN + 3, COMPACT: SHORT, 6: SLICED}
_NAMES = {code: name for name, (code, _, _) in DTYPES.items()}

_USUAL_HEAD = 40  # bytes that tell name, dtype and shape of most tensors
_RECORD_COST, _NAME_COST = 1024, 4  # memory of a record, and of each byte of its name
_BLOCK = 1 << 20  # bytes read at a time for their checksum


def _multiples(reader: varint.Reader) -> memoryview:
    """A codebook of method `SHORT`: its first byte counts the values below and above zero, a byte each."""
    first = reader.take(1)
    rest = reader.take(1 + (first[0] >> 4) + (first[0] & 15))
    return memoryview(bytes(first) + bytes(rest))


def _usual_entry(head: bytes, last: bytes) -> tuple[Entry, bytes, int] | None:
    """A tensor's entry, its name's bytes and how many bytes tell it; None unless all is as usual.

    It reads what `Archive._entry` reads in a third of the time, and leaves it to that to say what is wrong.
    """
    if len(head) < 4 or head[0] > len(last) or max(head[0], head[1]) > 127:
        return None
    at = 2 + head[1]
    raw = last[: head[0]] + head[2:at]
    if at + 2 > len(head) or head[at] not in _NAMES or head[at + 1] > 8 or not raw.isascii() or b"\0" in raw:
        return None
    dtype, dims, at, shape = _NAMES[head[at]], head[at + 1], at + 2, []
    for _ in range(dims):
        size = shift = 0
        for byte in head[at : at + 4]:
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        else:
            return None
        if shift > 7 and size >> (shift - 7) == 0:
            return None
        at += shift // 7
        shape.append(size)
    entry = Entry(raw.decode("ascii"), dtype, tuple(shape))
    return None if problem_of(entry) else (entry, raw, at)


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    offset: int  # of the section's first byte
    start: int  # of its payload
    length: int


@dataclass
class Archive:
    """A .sct file open for reading: the checksum of every section is checked before its content is used.

    Attributes:
        file: The open file.
        names_from: Names, dtypes and shapes, for a file that was written without them.
        max_bytes: The most bytes of decoded tensors to accept. By default one tensor (and all that are kept at a
            time) may have 64 MiB and eight times the bytes of the file, and all of them 64 times.
        size: The bytes of the file.
        version: Its version.
        texts: The texts it holds, still coded, by key.
        sections: Where its sections are.
        count: How many tensors it has.
        content: The checksum of the decoded bytes of all tensors.
        named: Whether it has the names of its tensors.
        folded: Whether the statistics of batch norm are left out.
        widths: The widths that the axes of a freshly built model keep, still coded; None where it keeps all.
        numbers: The lanes of scalars, still coded.
    """

    file: SctFile
    names_from: Sequence[Entry] | None = None
    max_bytes: int | None = None
    size: int = 0
    version: int = VERSION
    texts: dict[str, bytes] = field(default_factory=dict)
    sections: list[_Section] = field(default_factory=list)
    count: int = 0
    content: int = 0
    named: bool = True
    folded: bool = False
    widths: bytes | None = None
    numbers: bytes | None = None
    _methods: bytes = b""  # of a compact file: how its tensors are stored, again and again in this order
    # One buffer for all blocks: fresh memory for each would take as long as reading it.
    _room: bytearray = field(default_factory=lambda: bytearray(_BLOCK), repr=False)

    def __post_init__(self) -> None:
        self.size = self.file.seek(0, os.SEEK_END)
        self._scan()

    # -- limits ----------------------------------------------------------------------------------------------
    @property
    def limits(self) -> Limits:
        """What reading the file may cost."""
        return Limits(self.size, self.max_bytes)

    def allow(self, nbytes: int) -> None:
        """Accept this many decoded bytes at least: the size of a model that the user has built.

        Args:
            nbytes: The bytes of the model's tensors.
        """
        self.max_bytes = max(self.limits.memory, nbytes)

    def check_total(self, more: int = 0) -> None:
        """Raise unless all tensors of the file may be in memory at the same time.

        Args:
            more: Bytes that they take besides, as INT8 weights do that become floats.
        """
        total = more + sum(record.entry.nbytes for record in self.heads)
        if total > self.limits.memory:
            raise self.limits.too_large("its tensors", total, self.limits.memory)

    def _kind_hint(self) -> str:
        """What to do with a file of another kind that can be told by its first bytes; empty for all others."""
        head = self._read(0, 9)
        if head[:2] == b"PK":
            return "; it looks like a checkpoint of torch.save: secateur pack makes a .sct file of it"
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < self.size:
            return "; it looks like a safetensors file: sc.load_shrunk reads what small.save wrote"
        return ""

    # -- sections --------------------------------------------------------------------------------------------
    def _read(self, start: int, count: int) -> bytes:
        self.file.seek(start)
        return self.file.read(count)

    def _scan(self) -> None:
        """Walk all sections once: frame, order and checksum of each."""
        most = self.limits.sections
        head = self._read(0, len(MAGIC) + 1)
        if not head:
            raise FormatError("not a .sct file: it is empty (0 bytes); save or copy it again")
        if head[: len(MAGIC)] != MAGIC:
            raise FormatError(
                f"not a .sct file: expected it to start with {MAGIC!r}, found {head[: len(MAGIC)]!r}"
                f"{self._kind_hint()}"
            )
        if len(head) <= len(MAGIC):
            raise FormatError(f"the file ends at byte {self.size}, before its version")
        self.version = head[len(MAGIC)]
        if self.version not in VERSIONS:
            raise FormatError(
                f"byte {len(MAGIC)}: the file has version {self.version}, this reader knows versions "
                f"{VERSIONS[0]} to {VERSION}; "
                "read it with the release of secateur that wrote it, or a later one"
            )
        if self.version == COMPACT:
            self._scan_compact(len(head))
            return
        crc, at = zlib.crc32(head), len(head)
        while at < self.size:
            section, crc = self._scan_section(at, crc)
            at = section.start + section.length + 4
            self.sections.append(section)
            if len(self.sections) > most:
                raise FormatError(
                    f"byte {at}: more than {len(self.sections) - 1} sections, which are too many"
                )
            if section.kind == END and at != self.size:
                raise FormatError(f"byte {at}: {self.size - at} bytes follow the end section")
        if not self.sections or self.sections[-1].kind != END:
            raise FormatError(f"the file ends at byte {self.size} without its end section: it was cut short")

    def _scan_compact(self, start: int) -> None:
        """Check the one checksum of a file without sections; read its head and lanes, and find its tensors."""
        end = self.size - 8
        if end <= start:
            raise FormatError(f"the file ends at byte {self.size}, before its checksums: it was cut short")
        if self.size > MOST_COMPACT:
            raise FormatError(
                f"the file has {self.size:,} bytes, one of version {COMPACT} has at most {MOST_COMPACT:,}"
            )
        whole = self._read(0, self.size)
        if whole[-4:] != zlib.crc32(whole[:-4]).to_bytes(4, "little"):
            raise FormatError("the checksum of the file does not fit: it is damaged or was cut short")
        reader = varint.Reader(whole[start:end], "file", start)
        self._head(reader)
        if self.named:
            raise reader.fail(f"a file of version {COMPACT} leaves its names to a model; expected flag 1")
        self.numbers = bytes(reader.part("the lanes")) or None
        period = reader.varint(min(reader.left, max(1, self._expected)), "the number of methods")
        self._methods = bytes(reader.take(period))
        if not period:
            raise reader.fail("no method of a tensor, expected at least one")
        self.count, self.content = self._expected, int.from_bytes(whole[-8:-4], "little")
        self.sections.append(_Section(TENSORS, start, start + reader.at, reader.left))

    @property
    def checksums(self) -> int:
        """Bytes of checksums: of every section, or of the file, and of the content."""
        return 4 + (4 if self.version == COMPACT else 4 * len(self.sections))

    def _scan_section(self, at: int, crc: int) -> tuple[_Section, int]:
        reader = varint.Reader(self._read(at, 11), "section", at)
        kind = reader.byte()
        length = reader.varint(of="a section's length")
        name = _SECTIONS.get(kind)
        last = _LAST_SECTION[self.version]
        if name is None or kind > last:
            raise FormatError(f"byte {at}: section of kind {kind}, known kinds are 1..{last}")
        if (kind == HEAD) != (at == len(MAGIC) + 1):
            raise FormatError(f"byte {at}: expected the head section first and once, found a {name} section")
        start = at + reader.at
        if start + length + 4 > self.size:
            raise FormatError(
                f"byte {at}: the {name} section claims {length} bytes, the file has "
                f"{max(0, self.size - start - 4)} "
                "left for it: it was cut short or damaged"
            )
        crc = zlib.crc32(bytes(reader.data[: reader.at]), crc)
        payload, crc = self._scan_payload(kind, at, start, length, crc)
        self._take_in(kind, varint.Reader(payload, f"{name} section", start), payload)
        return _Section(kind, at, start, length), crc

    def _scan_payload(self, kind: int, at: int, start: int, length: int, crc: int) -> tuple[bytes, int]:
        """Check the checksum of a section; gives the payload of a short kind of section, and the checksum."""
        name, payload = _SECTIONS[kind], bytearray()
        self.file.seek(start)
        left = length
        while left:
            block = memoryview(self._room)[: min(left, _BLOCK)]
            count = self.file.readinto(block)
            if not count:
                raise FormatError(f"byte {at}: the {name} section could not be read to its end")
            block = block[:count]
            crc = crc32(block, crc)
            left -= count
            if kind in (HEAD, TEXT, NUMBERS, END):
                payload += block
            elif kind == PAD and bytes(block).count(0) != count:
                raise FormatError(f"byte {at}: expected zeros in a pad section, found other bytes")
        if self.file.read(4) != crc.to_bytes(4, "little"):
            raise FormatError(
                f"byte {at}: the checksum of the {name} section does not fit: the file is damaged"
            )
        return bytes(payload), crc

    def _take_in(self, kind: int, reader: varint.Reader, payload: bytes) -> None:
        """Read a section other than one of tensors."""
        if kind == HEAD:
            self._head(reader)
            reader.end()
        elif kind == TEXT:
            self._text(reader)
        elif kind == NUMBERS:
            if self.numbers is not None or any(before.kind == TENSORS for before in self.sections):
                raise reader.fail("expected one numbers section, before all tensors")
            self.numbers = payload
        elif kind == END:
            self.count = reader.varint(of="the number of tensors")
            self.content = int.from_bytes(reader.take(4), "little")
            reader.end()

    def _head(self, reader: varint.Reader) -> None:
        flags = reader.byte()
        if flags > _LAST_FLAGS[self.version]:
            raise reader.fail(f"flags {flags} are not known to version {self.version}")
        self.named, self.folded = not flags & NAMELESS, bool(flags & FOLDED)
        if self.named and flags & WIDTHS:
            raise reader.fail("widths without flag 1, which only a file that leaves its names to a model has")
        if not self.named:
            compact = self.version == COMPACT
            # A record may take no byte in a compact file, so the file bounds how many there are.
            self._expected = reader.varint(self.size if compact else varint.LARGEST, "the number of tensors")
            self._digest = bytes(reader.take(4 if compact else 8))
            if self.names_from is not None and (
                len(self.names_from) != self._expected
                or digest(self.names_from)[: len(self._digest)] != self._digest
            ):
                raise FormatError(
                    f"the file leaves its names to the model, and this is another model: the names, dtypes "
                    f"and shapes "
                    f"of the {self._expected} tensors it was saved from differ from the "
                    f"{len(self.names_from)} given"
                )
        if flags & WIDTHS:
            self.widths = bytes(reader.part("the widths"))

    def _text(self, reader: varint.Reader) -> None:
        raw = bytes(reader.part("a key"))
        try:
            key = raw.decode()
        except UnicodeDecodeError:
            raise reader.fail("a key is not UTF-8") from None
        if key in self.texts or not key or len(raw) > MOST_NAME:
            raise reader.fail(f"the key {key[:80]!r} is empty, too long, or comes twice")
        self.texts[key] = bytes(reader.take(reader.left))

    # -- tensors ---------------------------------------------------------------------------------------------
    def records(self) -> list[Record]:
        """All records at once (their parts are views of the file's bytes)."""
        return list(self)

    def __iter__(self) -> Iterator[Record]:
        """The records in order, a section in memory at a time; limits are checked before decoding."""
        return self.walk()

    def walk(self, room: Room | None = None) -> Iterator[Record]:
        """As `iter`.

        Args:
            room: Memory for the sections: a record is valid until the first one of the next section is asked for.
        """

        def opened(one: _Section) -> varint.Reader:
            return varint.Reader(self._payload(one, room), "tensors section", one.start)

        if "heads" in self.__dict__ and not self._methods:  # names and shapes are read and checked already
            return self._filled(opened)
        return self._walk(opened)

    def _filled(self, opened: Callable[[_Section], varint.Reader]) -> Iterator[Record]:
        """The records of `heads` with their parts, which are all that is read here."""
        for number, group in groupby(self.heads, lambda head: head.section):
            reader, memory = opened(self.sections[number]), MixerBank(self.version)
            for head in group:
                reader.at = head.offset - reader.base + head.name_bytes + 1  # the byte of the method
                parts = {part: reader.part(part) for part in METHODS[head.method][1]}
                if reader.base + reader.at != head.offset + head.nbytes:  # a head's frame has its long parts
                    raise reader.fail("the file was changed while it was read")
                frame = head.nbytes - head.name_bytes - sum(map(len, parts.values()))
                at = head.offset, head.name_bytes, frame, number
                yield Record(head.index, head.entry, head.method, parts, *at, memory, self.version)

    def _payload(self, section: _Section, room: Room | None) -> bytes | memoryview:
        if room is None:
            return self._read(section.start, section.length)
        room.clear()
        block = room.array(section.length, np.dtype("u1")).data
        self.file.seek(section.start)
        return block[: self.file.readinto(block)]

    @cached_property
    def heads(self) -> list[Record]:
        """The records without their long parts, which are not read: names, shapes, methods and references."""
        return list(self._walk(lambda one: Skimming(self.file, one.start, one.length, "tensors section")))

    def _walk(self, opened: Callable[[_Section], varint.Reader]) -> Iterator[Record]:
        if not self.named and self.names_from is not None and len(self.names_from) != self._expected:
            raise FormatError("the number of tensors differs from the model's")
        index, decoded, weights, held = 0, 0, 0, 0
        limits = self.limits
        seen: set[str] = set()
        for number, section in enumerate(self.sections):
            if section.kind != TENSORS:
                continue
            reader = opened(section)
            last = b""
            memory = MixerBank(self.version)
            compact = self.version == COMPACT
            count = (
                self.count if compact else reader.varint(reader.left, "the number of tensors in a section")
            )
            for _ in range(count):
                record, last = self._record(reader, index, last, number, memory)
                if record.entry.name in seen:
                    raise reader.fail(f"tensor {record.entry.name!r} comes twice")
                seen.add(record.entry.name)
                nbytes = record.entry.nbytes
                decoded += nbytes
                if decoded > FREE_BYTES + BYTES_PER_BYTE * self.size:
                    raise reader.fail(
                        f"tensor {record.entry.name!r} of shape {list(record.entry.shape)} asks for more "
                        f"than "
                        f"{FREE_BYTES + BYTES_PER_BYTE * self.size} decoded bytes, which a file of "
                        f"{self.size} bytes "
                        "cannot hold"
                    )
                held += _RECORD_COST + _NAME_COST * len(record.entry.name)
                weights += record.entry.numel if record.method in (INDEXED, SPARSE, SHORT, SLICED) else 0
                if self.names_from is None:  # else the user's own model says how large the tensors are
                    limits.check(record, decoded, weights, held)
                index += 1
                yield record
            reader.end()
        if index != self.count:
            raise FormatError(f"the end section counts {self.count} tensors, the file holds {index}")

    def _record(
        self, reader: varint.Reader, index: int, last: bytes, number: int, memory: MixerBank
    ) -> tuple[Record, bytes]:
        offset = reader.base + reader.at
        begin = reader.at
        if self.named:
            entry, last = self._entry(reader, last)
        elif self.names_from is None:
            entry = Entry(f"#{index}", "U8", ())
        else:
            if index >= len(self.names_from):
                raise reader.fail(f"more tensors than the {len(self.names_from)} the model has")
            entry = self.names_from[index]
        name_bytes = reader.at - begin
        method = self._methods[index % len(self._methods)] if self._methods else reader.byte()
        if method > _LAST_METHOD[self.version] or (method == SHORT and self.version != COMPACT):
            raise reader.fail(
                f"tensor {entry.name!r} is stored by method {method}, known methods are "
                f"0..{_LAST_METHOD[self.version]}"
            )
        frame, parts = int(not self._methods), {}
        for part in METHODS[method][1]:
            before = reader.at
            if part == "multiples":
                parts[part] = _multiples(reader)
            else:
                parts[part] = reader.part(f"part {part!r} of tensor {entry.name!r}")
            frame += reader.at - before - len(parts[part])
        version = self.version
        return Record(index, entry, method, parts, offset, name_bytes, frame, number, memory, version), last

    def _entry(self, reader: varint.Reader, last: bytes) -> tuple[Entry, bytes]:
        quick = _usual_entry(reader.ahead(_USUAL_HEAD), last)
        if quick is not None:
            entry, raw, length = quick
            reader.skip(length)
            return entry, raw
        shared = reader.varint(len(last), "the part a name shares with the one before")
        fresh = reader.varint(MOST_NAME - shared, "the length of a name")
        raw = last[:shared] + bytes(reader.take(fresh))
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise reader.fail(f"a name is not UTF-8: {raw[:40]!r}") from None
        code = reader.byte()
        if code not in _NAMES:
            raise reader.fail(f"tensor {name[:80]!r} has dtype {code}, known dtypes are 0..{len(_NAMES) - 1}")
        dims = reader.varint(MOST_DIMS, f"the number of dimensions of {name[:80]!r}")
        shape = tuple(reader.varint(of=f"a dimension of {name[:80]!r}") for _ in range(dims))
        entry = Entry(name, _NAMES[code], shape)
        problem = problem_of(entry)
        if problem:
            raise reader.fail(problem)
        return entry, raw
