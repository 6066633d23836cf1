"""Tensors out of an open archive, one after the other, and the checksum of the content at the end. No torch.

>>> import io
>>> import numpy as np
>>> from secateur.container.format import ZERO, Archive, Entry, Writer
>>> file = io.BytesIO()
>>> writer = Writer(file)
>>> writer.add(Entry("w", "F32", (2,)), bytes(8), ZERO, [])
>>> writer.finish()
>>> [(record.entry.name, words.tolist()) for record, words in words_of(Archive(file))]
[('w', [0, 0])]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.lanes import Lanes
from secateur.errors import FormatError

__all__ = ["words_of"]


def words_of(archive: sct.Archive) -> Iterator[tuple[sct.Record, np.ndarray]]:
    """Every record with its decoded words; raises at the end unless together they are what was written."""
    content = 0
    kept: dict[int, np.ndarray | None] = {}
    for record in archive:
        if record.method == sct.SAME:
            kept[tensors.same_as(record)] = None
    lanes = Lanes([]) if archive.numbers is None else Lanes.read(archive.numbers)
    for record in archive:
        words = tensors.decode(record, kept, lanes)
        if record.index in kept:
            kept[record.index] = words
        content = zlib.crc32(np.ascontiguousarray(words).data, content)
        yield record, words
    lanes.end()
    if content != archive.content:
        raise FormatError(
            f"the decoded content has checksum {content:08x}, the file promises {archive.content:08x}: it "
            f"was "
            "written by a faulty encoder, or this machine decodes wrongly"
        )
