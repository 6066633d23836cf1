"""The .sct format, versions 1 to 6: its constants, and what a file says of each tensor. It needs no torch.

A file is a magic number, a version, and sections; each section has a kind, a length, its payload and a CRC-32
that continues the one before, so that sections cannot be moved, dropped or repeated. A file of version 5, a compact
one, has no sections: it has one checksum of all its bytes and leaves names to a model. docs/format.md has every field;
`frame` reads and checks them, `writer` writes them.

>>> Entry("w", "F32", (2, 3)).nbytes, METHODS[RAW]
(24, ('raw', ('raw',)))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from secateur.coding import varint
from secateur.coding.indices import MixerBank
from secateur.errors import OptionError

__all__ = [
    "CAST",
    "COMPACT",
    "CONST",
    "DRAWN",
    "DTYPES",
    "GRID",
    "INDEXED",
    "MAGIC",
    "METHODS",
    "MOST_COMPACT",
    "PACKED",
    "RAW",
    "SAME",
    "SECTION_SIZE",
    "SHORT",
    "SLICED",
    "SPARSE",
    "VERSION",
    "VERSIONS",
    "ZERO",
    "Entry",
    "Record",
    "check_entries",
    "digest",
    "problem_of",
]

MAGIC = b"\x89SCT"
VERSIONS = (1, 2, 3, 4, 5, 6)  # a file may hold nothing that came with a later version than its own
VERSION = VERSIONS[-1]
COMPACT = 5  # the version of a file without sections

# Section kinds, in the only order they may come in: HEAD, then TEXT, NUMBERS, TENSORS and PAD, then END.
HEAD, TENSORS, TEXT, PAD, END, NUMBERS = 1, 2, 3, 4, 5, 6

# Flags of the head.
NAMELESS, FOLDED, WIDTHS = 1, 2, 4

# The storage methods of a tensor, and the parts of each.
RAW, ZERO, SAME, CONST, PACKED, INDEXED, SPARSE, CAST, GRID = range(9)
METHODS: dict[int, tuple[str, tuple[str, ...]]] = {
    RAW: ("raw", ("raw",)),
    ZERO: ("zero", ()),
    SAME: ("same", ("back",)),
    CONST: ("const", ("value",)),
    PACKED: ("packed", ("packed",)),
    INDEXED: ("indexed", ("codebook", "indices")),
    SPARSE: ("sparse", ("mask", "packed")),
    CAST: ("cast", ("dtype", "packed")),
    GRID: ("grid", ("grid", "packed")),
}
DRAWN = GRID + 1  # and the three after it: the tensor's numbers come from lane 0..3 of the numbers section
METHODS |= {DRAWN + lane: (f"lane {lane}", ()) for lane in range(4)}
SHORT = DRAWN + 4  # indexed, with a codebook of few bytes whose length its first byte tells
METHODS[SHORT] = ("indexed", ("multiples", "indices"))
SLICED = SHORT + 1  # indexed, with a codebook for every slice along an axis
METHODS[SLICED] = ("sliced", ("slices", "values", "indices"))

# dtype name as safetensors writes it -> (code in the file, bytes of an element, is a float)
DTYPES: dict[str, tuple[int, int, bool]] = {
    "F32": (0, 4, True),
    "F16": (1, 2, True),
    "BF16": (2, 2, True),
    "F64": (3, 8, True),
    "I64": (4, 8, False),
    "I32": (5, 4, False),
    "I16": (6, 2, False),
    "I8": (7, 1, False),
    "U8": (8, 1, False),
    "BOOL": (9, 1, False),
    "U16": (10, 2, False),
    "U32": (11, 4, False),
    "U64": (12, 8, False),
    "F8_E4M3": (13, 1, True),
    "F8_E5M2": (14, 1, True),
    "C64": (15, 8, False),
}

MOST_NAME = 4096  # bytes of a name
MOST_DIMS = 32
FREE_BYTES = 1 << 25  # decoded bytes any file may ask for ...
BYTES_PER_BYTE = 4096  # ... and how many more each of its own bytes allows
# What reading a file may cost unless its user raises `max_bytes`: bytes of memory, and of all decoded tensors one after
# the other; `limits` has the others.
FREE_MEMORY, MEMORY_PER_BYTE = 64 << 20, 8
FREE_TOTAL, TOTAL_PER_BYTE = 64 << 20, 64
SECTION_SIZE = 1 << 22  # a writer closes a section of tensors when it decodes to this many bytes
MOST_COMPACT = 1 << 23  # bytes of a file of version 5, which is read as a whole


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's name, dtype (in safetensors' spelling) and shape.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its shape.
        numel: How many elements it has.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int = field(init=False, repr=False, compare=False)  # asked for again and again

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", prod(self.shape))

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype][1]

    @property
    def floating(self) -> bool:
        """Whether the elements are floats."""
        return DTYPES[self.dtype][2]

    @property
    def nbytes(self) -> int:
        """Decoded bytes."""
        return self.numel * self.width


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor in the file: its storage method, its parts, and the bytes of each."""

    index: int
    entry: Entry
    method: int
    parts: dict[str, memoryview]
    offset: int
    name_bytes: int
    frame_bytes: int
    section: int
    memory: MixerBank
    version: int = VERSION

    @property
    def where(self) -> str:
        """For messages."""
        return f"tensor {self.entry.name!r} at byte {self.offset}"

    @property
    def nbytes(self) -> int:
        """All bytes of the record."""
        return self.name_bytes + self.frame_bytes + sum(len(part) for part in self.parts.values())


def problem_of(entry: Entry) -> str:
    """Why no file can hold a tensor of this name, dtype and shape; empty where one can.

    Readers and writers ask the same question, so that nothing is written that cannot be read.

    Args:
        entry: Name, dtype and shape.

    >>> problem_of(Entry("w", "F32", (2, 3))), problem_of(Entry("w" * 5000, "F32", ()))[-38:]
    ('', ' has 5000 bytes, expected at most 4096')
    """
    try:
        size = len(entry.name.encode())
    except UnicodeEncodeError:
        return f"the name {entry.name[:80]!r} cannot be written as UTF-8"
    if size > MOST_NAME:
        return f"the name {entry.name[:40] + '...'!r} has {size} bytes, expected at most {MOST_NAME}"
    if "\0" in entry.name:
        return f"the name {entry.name[:80]!r} holds a zero character"
    if entry.dtype not in DTYPES:
        return f"tensor {entry.name[:80]!r} has dtype {str(entry.dtype)[:40]}, which .sct does not have"
    if len(entry.shape) > MOST_DIMS:
        return f"tensor {entry.name[:80]!r} has {len(entry.shape)} dimensions, expected at most {MOST_DIMS}"
    # An axis of no elements hides how long the others are.
    elements = entry.numel or prod(size for size in entry.shape if size)
    if elements > varint.LARGEST // 16:
        return f"tensor {entry.name[:80]!r} of shape {list(entry.shape)} has too many elements"
    return ""


def check_entries(entries: Iterable[Entry]) -> None:
    """Raise an `OptionError` unless a file can hold tensors of these names, dtypes and shapes.

    Args:
        entries: Names, dtypes and shapes.
    """
    seen: set[str] = set()
    for entry in entries:
        problem = problem_of(entry)
        if not problem and entry.name in seen:
            problem = f"the name {entry.name[:80]!r} comes twice"
        if problem:
            raise OptionError(f"{problem}, so no .sct file can hold it; rename or reshape it first")
        seen.add(entry.name)


def digest(entries: Sequence[Entry]) -> bytes:
    """Eight bytes that identify names, dtypes and shapes, for files that leave those to the model.

    >>> digest([Entry("w", "F32", (2,))]).hex()
    'b2d742144e923664'
    """
    text = "".join(f"{e.name}\0{e.dtype}\0{','.join(map(str, e.shape))}\0" for e in entries)
    return hashlib.sha256(text.encode()).digest()[:8]
