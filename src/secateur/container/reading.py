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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from secateur.coding.indices import MixerBank
from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.scalar_streams import ScalarStreams
from secateur.container.worker_pool import TensorWorkers
from secateur.errors import FormatError

__all__ = ["LEARNT", "words_of"]


# Ways that need neither what the coder learnt before nor other tensors: a thread decodes one of them.
_ALONE = frozenset({sct.RAW, sct.ZERO, sct.CONST, sct.PACKED, sct.CAST, sct.GRID})
# Ways that learn from tensor to tensor within a section: a process decodes all of one.
LEARNT = frozenset({sct.INDEXED, sct.SPARSE})
_WORTH = 1 << 16  # weights of a section that are worth sending to another process

_Words = tuple[sct.Record, np.ndarray]
_Waiting = tuple[sct.Record, Callable[[], np.ndarray]]


def words_of(archive: sct.Archive, workers: int = 1) -> Iterator[_Words]:
    """Every record with its decoded words; raises at the end unless together they are what was written.

    More `workers` decode beside each other: threads what is packed, processes what is shared, a section at a time;
    so many sections are then in memory, and one more.
    """
    content = 0
    kept: dict[int, np.ndarray | None] = {}
    for record in archive.heads:
        if record.method == sct.SAME:
            kept[tensors.same_as(record)] = None
    lanes = ScalarStreams([]) if archive.numbers is None else ScalarStreams.read(archive.numbers)
    for record, words in _decoded(archive, kept, lanes, workers):
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


def _decoded(
    archive: sct.Archive, kept: Mapping[int, np.ndarray | None], lanes: ScalarStreams, workers: int
) -> Iterator[_Words]:
    """All records in order; `kept` has, by the time they are asked for, those that later ones say they equal."""
    if workers == 1:
        for record in archive:
            yield record, tensors.decode(record, kept, lanes)
        return
    with TensorWorkers(workers) as crew:
        waiting: deque[list[_Waiting]] = deque()
        for _, group in groupby(archive, lambda record: record.section):
            waiting.append(_begun(list(group), crew, kept, lanes))
            if len(waiting) > workers:
                yield from ((record, words()) for record, words in waiting.popleft())
        while waiting:
            yield from ((record, words()) for record, words in waiting.popleft())


def _begun(
    records: list[sct.Record],
    crew: TensorWorkers,
    kept: Mapping[int, np.ndarray | None],
    lanes: ScalarStreams,
) -> list[_Waiting]:
    """The records of a section, with what gives the words of each; what others can do has been handed out."""
    learnt = [record for record in records if record.method in LEARNT]
    away: dict[int, Callable[[], np.ndarray]] = {}
    if sum(record.entry.numel for record in learnt) >= _WORTH:
        whole = crew.submit(True, _section, [_portable(record) for record in learnt])
        for place, record in enumerate(learnt):
            away[record.index] = partial(_one_of, whole, place)
    for record in records:
        if record.method in _ALONE:
            away[record.index] = crew.submit(False, tensors.decode, record, {}, None).result
    # The rest takes from the lanes, or from earlier tensors, or is too little: here, when its turn has come.
    return [
        (record, away.get(record.index, partial(tensors.decode, record, kept, lanes))) for record in records
    ]


def _one_of(whole: Future[list[np.ndarray]], place: int) -> np.ndarray:
    return whole.result()[place]


_Portable = tuple[sct.Record, dict[str, bytes]]


def _portable(record: sct.Record) -> _Portable:
    """A record that can be sent to another process: its views of the file made bytes, its memory left behind."""
    parts = {name: bytes(part) for name, part in record.parts.items()}
    return replace(record, parts={}, memory=MixerBank(record.version)), parts


def _section(sent: list[_Portable]) -> list[np.ndarray]:
    """The words of a section's records that learn from each other, from a fresh memory."""
    memory = MixerBank(sent[0][0].version)
    found = []
    for record, parts in sent:
        views = {name: memoryview(part) for name, part in parts.items()}
        found.append(tensors.decode(replace(record, parts=views, memory=memory), {}))
    return found
