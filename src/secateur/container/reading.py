"""Decode the tensors of an open archive in order, and check the checksum of the content. It needs no torch.

>>> import io
>>> import numpy as np
>>> from secateur.container.format import ZERO, Entry
>>> from secateur.container.frame import Archive
>>> from secateur.container.writer import Writer
>>> file = io.BytesIO()
>>> writer = Writer(file)
>>> writer.add(Entry("w", "F32", (2,)), bytes(8), ZERO, [])
>>> writer.finish()
>>> [(record.entry.name, words.tolist()) for record, words in words_of(Archive(file))]
[('w', [0, 0])]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np

from secateur.coding.crc import crc32
from secateur.coding.indices import MixerBank
from secateur.coding.room import Room
from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.frame import Archive
from secateur.container.scalar_streams import ScalarStreams
from secateur.container.worker_pool import TensorWorkers
from secateur.errors import FormatError

__all__ = ["LEARNT", "ReadingPoint", "can_skip", "lanes_of", "words_of"]


# Methods that depend neither on the coder's earlier state nor on other tensors: a thread decodes one of them.
_ALONE = frozenset({sct.RAW, sct.ZERO, sct.CONST, sct.PACKED, sct.CAST, sct.GRID})
# Methods that learn from tensor to tensor within a section: one process decodes the whole section.
LEARNT = frozenset({sct.INDEXED, sct.SPARSE, sct.SHORT, sct.SLICED})
_ENOUGH = 1 << 16  # weights of a section from which sending it to another process pays off

_Words = tuple[sct.Record, np.ndarray]
_Waiting = tuple[sct.Record, Callable[[], np.ndarray]]


@dataclass
class ReadingPoint:
    """How far the tensors of an archive are decoded.

    Attributes:
        first: The number of the next tensor. A reader can begin with the first tensor of a section, if `can_skip`.
        content: The checksum of the tensors before it.
    """

    first: int = 0
    content: int = 0


def can_skip(archive: Archive) -> bool:
    """Whether tensors can be decoded without those of earlier sections.

    Args:
        archive: The open file.
    """
    return archive.numbers is None and all(record.method != sct.SAME for record in archive.heads)


def lanes_of(archive: Archive) -> ScalarStreams:
    """The lanes of a file, decoded and checked.

    Args:
        archive: The open file.
    """
    if archive.numbers is None:
        return ScalarStreams([])
    if archive.version == sct.COMPACT:
        return ScalarStreams.read_compact(archive.numbers, archive.limits.scalars)
    return ScalarStreams.read(archive.numbers, most=archive.limits.scalars, version=archive.version)


def words_of(
    archive: Archive, workers: int = 1, at: ReadingPoint | None = None, room: Room | None = None
) -> Iterator[_Words]:
    """Every record with its decoded words; raises at the end unless the checksum of all of them is that of the file.

    Args:
        archive: The open file.
        workers: How many decode at a time: threads what is packed, processes what is shared. At most workers + 1
            sections are in memory.
        at: Where to begin; it moves with every tensor that is given.
        room: Memory for one section at a time, used with one worker: the words of a tensor, which have a room of
            their own, are valid until the next one is asked for. None takes new memory.
    """
    at = at or ReadingPoint()
    kept: dict[int, np.ndarray | None] = {}
    for record in archive.heads:
        if record.method == sct.SAME:
            kept[tensors.same_as(record)] = None
    lanes = lanes_of(archive)
    for record, words in _decoded(archive, kept, lanes, workers, at.first, room):
        if record.index in kept:
            kept[record.index] = words
        at.content = crc32(np.ascontiguousarray(words).data, at.content)
        at.first = record.index + 1
        yield record, words
    lanes.end()
    if at.content != archive.content:
        raise FormatError(
            f"the decoded content has checksum {at.content:08x}, the file promises {archive.content:08x}: it "
            f"was "
            "written by a faulty encoder, or this machine decodes wrongly"
        )


def _decoded(
    archive: Archive,
    kept: Mapping[int, np.ndarray | None],
    lanes: ScalarStreams,
    workers: int,
    first: int,
    room: Room | None,
) -> Iterator[_Words]:
    """The records from `first` on, in order; `kept` fills with the words that later records refer to."""
    if workers == 1:
        # A section may hold many tensors: its own room is cleared too late for their words.
        mine = None if room is None else Room()
        for record in archive.walk(room):
            if record.index >= first:
                if mine is not None:
                    mine.clear()
                # What later records refer to must outlast the record.
                yield record, tensors.decode(record, kept, lanes, None if record.index in kept else mine)
        return
    records = (record for record in archive if record.index >= first)
    with TensorWorkers(workers) as pool:
        waiting: deque[list[_Waiting]] = deque()
        for _, group in groupby(records, lambda record: record.section):
            waiting.append(_submitted(list(group), pool, kept, lanes))
            if len(waiting) > workers:
                yield from ((record, words()) for record, words in waiting.popleft())
        while waiting:
            yield from ((record, words()) for record, words in waiting.popleft())


def _submitted(
    records: list[sct.Record],
    pool: TensorWorkers,
    kept: Mapping[int, np.ndarray | None],
    lanes: ScalarStreams,
) -> list[_Waiting]:
    """The records of a section, each with a function that gives its words; jobs for the pool have been submitted."""
    learnt = [record for record in records if record.method in LEARNT]
    pending: dict[int, Callable[[], np.ndarray]] = {}
    if sum(record.entry.numel for record in learnt) >= _ENOUGH:
        whole = pool.submit(True, _section, [_portable(record) for record in learnt])
        for place, record in enumerate(learnt):
            pending[record.index] = partial(_one_of, whole, place)
    for record in records:
        if record.method in _ALONE:
            pending[record.index] = pool.submit(False, tensors.decode, record, {}, None).result
    # The others read lanes or refer to earlier tensors, or are small: they are decoded here, in order.
    return [
        (record, pending.get(record.index, partial(tensors.decode, record, kept, lanes)))
        for record in records
    ]


def _one_of(whole: Future[list[np.ndarray]], place: int) -> np.ndarray:
    return whole.result()[place]


_Portable = tuple[sct.Record, dict[str, bytes]]


def _portable(record: sct.Record) -> _Portable:
    """A record that can be pickled: its views of the file copied to bytes, its memory left out."""
    parts = {name: bytes(part) for name, part in record.parts.items()}
    return replace(record, parts={}, memory=MixerBank(record.version)), parts


def _section(sent: list[_Portable]) -> list[np.ndarray]:
    """Decode the records of a section that learn from each other, with a fresh memory."""
    memory = MixerBank(sent[0][0].version)
    found = []
    for record, parts in sent:
        views = {name: memoryview(part) for name, part in parts.items()}
        found.append(tensors.decode(replace(record, parts=views, memory=memory), {}))
    return found
