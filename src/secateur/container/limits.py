"""`Limits`: what reading a .sct file may cost, in memory and in work, before its content is believed.

A file may ask for some bytes and numbers for nothing, and for more by each of its own bytes. Its user raises that with
`max_bytes`. docs/SECURITY.md states the limits.

>>> Limits(1000).memory, Limits(1000, max_bytes=5000).memory
(67116864, 5000)
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.container.format import (
    FREE_MEMORY,
    FREE_TOTAL,
    MEMORY_PER_BYTE,
    TOTAL_PER_BYTE,
    Record,
)
from secateur.errors import FormatError, OptionError

__all__ = ["Limits"]

# Weights that are coded by learnt contexts, scalars in lanes, bytes of a text, and sections.
_FREE_WEIGHTS, _WEIGHTS_PER_BYTE = 1 << 21, 64
_FREE_SCALARS, _SCALARS_PER_BYTE = 1 << 18, 2
_FREE_TEXT, _TEXT_PER_BYTE = 4 << 20, 4
_FREE_SECTIONS, _BYTES_PER_SECTION = 1024, 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file of this size may ask for.

    Attributes:
        size: The bytes of the file.
        max_bytes: The most bytes of decoded tensors; by default one tensor (and all that are kept at a time) may have
            64 MiB and eight times the bytes of the file, and all of them 64 times.
    """

    size: int
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 0:
            raise OptionError(f"max_bytes: expected a number of bytes, got {self.max_bytes}")

    @property
    def memory(self) -> int:
        """The most bytes that tensors may take in memory at a time."""
        return FREE_MEMORY + MEMORY_PER_BYTE * self.size if self.max_bytes is None else self.max_bytes

    @property
    def scalars(self) -> int | None:
        """The most scalars that the lanes may hold; None for no other limit than the format's."""
        return _FREE_SCALARS + _SCALARS_PER_BYTE * self.size if self.max_bytes is None else None

    @property
    def text(self) -> int:
        """The most bytes that a text may decode to."""
        least = _FREE_TEXT + _TEXT_PER_BYTE * self.size
        return least if self.max_bytes is None else max(least, self.max_bytes)

    @property
    def sections(self) -> int:
        """The most sections."""
        return _FREE_SECTIONS + self.size // _BYTES_PER_SECTION

    def too_large(self, what: str, needed: int, allowed: int) -> FormatError:
        """The error of a file that asks for more bytes than it may.

        Args:
            what: What asks for them.
            needed: How many.
            allowed: How many it may ask for.
        """
        return FormatError(
            f"{what} would take {needed:,} bytes, more than the {allowed:,} that a file of {self.size:,} bytes may "
            f"ask for; if you trust the file, allow it with max_bytes={needed} (--max-bytes {needed})"
        )

    def check(self, record: Record, decoded: int, weights: int, held: int) -> None:
        """Raise where a tensor, or the tensors up to it, would cost more than the file may ask for.

        Args:
            record: The tensor's record.
            decoded: Decoded bytes of all tensors up to it.
            weights: Weights coded by learnt contexts up to it.
            held: Memory of the records up to it, and of their names.
        """
        nbytes, name = record.entry.nbytes, record.entry.name[:80]
        what = f"tensor {name!r} of shape {list(record.entry.shape)}"
        if nbytes > self.memory:
            raise self.too_large(what, nbytes, self.memory)
        if held > self.memory:
            raise self.too_large(f"{record.index + 1:,} tensors and their names", held, self.memory)
        total = FREE_TOTAL + TOTAL_PER_BYTE * self.size if self.max_bytes is None else self.max_bytes
        if decoded > total:
            raise self.too_large(f"the tensors up to {name!r}", decoded, total)
        if self.max_bytes is None and weights > _FREE_WEIGHTS + _WEIGHTS_PER_BYTE * self.size:
            raise FormatError(
                f"{what}: {weights:,} coded weights are more than a file of {self.size:,} bytes may ask for; if you "
                f"trust the file, allow it with max_bytes={decoded} (--max-bytes {decoded})"
            )
