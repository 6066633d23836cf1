"""Tensors out of an open archive, one after the other, and the checksum of the content at the end. No torch.

>>> import io
>>> import numpy as np
>>> from secateur.container.format import ZERO, Archive, Entry
>>> from secateur.container.writer import Writer
>>> file = io.BytesIO()
>>> writer = Writer(file)
>>> writer.add(Entry("w", "F32", (2,)), bytes(8), ZERO, [])
>>> writer.finish()
>>> [(record.entry.name, words.tolist()) for record, words in words_of(Archive(file))]
[('w', [0, 0])]
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.lanes import Lanes
from secateur.errors import FormatError

__all__ = ["words_of"]


# Ways that need neither what the coder learnt before nor other tensors.
_ALONE = frozenset({sct.RAW, sct.ZERO, sct.CONST, sct.PACKED, sct.CAST, sct.GRID})

_Words = tuple[sct.Record, np.ndarray]


def words_of(archive: sct.Archive, workers: int = 1) -> Iterator[_Words]:
    """Every record with its decoded words; raises at the end unless together they are what was written.

    More `workers` are threads that decode packed tensors beside each other, so many of them in memory at once.
    """
    content = 0
    kept: dict[int, np.ndarray | None] = {}
    for record in archive:
        if record.method == sct.SAME:
            kept[tensors.same_as(record)] = None
    lanes = Lanes([]) if archive.numbers is None else Lanes.read(archive.numbers)
    for record, words in _decoded(archive, kept, lanes, workers):
        content = zlib.crc32(np.ascontiguousarray(words).data, content)
        yield record, words
    lanes.end()
    if content != archive.content:
        raise FormatError(
            f"the decoded content has checksum {content:08x}, the file promises {archive.content:08x}: it "
            f"was "
            "written by a faulty encoder, or this machine decodes wrongly"
        )


def _decoded(
    archive: sct.Archive, kept: dict[int, np.ndarray | None], lanes: Lanes, workers: int
) -> Iterator[_Words]:
    """All records in order; those in `kept` are put there for the ones that say they equal them."""
    waiting: deque[tuple[sct.Record, Future[np.ndarray] | np.ndarray]] = deque()

    def oldest() -> _Words:
        record, found = waiting.popleft()
        words = found.result() if isinstance(found, Future) else found
        if record.index in kept:
            kept[record.index] = words
        return record, words

    with ThreadPoolExecutor(workers) as pool:
        for record in archive:
            while waiting and (len(waiting) >= workers or record.method == sct.SAME):
                yield oldest()
            if workers > 1 and record.method in _ALONE:
                waiting.append((record, pool.submit(tensors.decode, record, kept, lanes)))
            else:
                waiting.append((record, tensors.decode(record, kept, lanes)))
        while waiting:
            yield oldest()
