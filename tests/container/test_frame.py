"""The frame's reader: the quick way to a tensor's entry, and the second walk over records whose heads are known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.container import format as sct
from secateur.container import frame
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.writer import Writer
from secateur.errors import FormatError

NAMES = st.text(st.sampled_from("ab.0é\u4e00"), min_size=1, max_size=60)
SHAPES = st.lists(st.sampled_from([0, 1, 5, 127, 128, 300, 70_000]), max_size=10).map(tuple)


def file_of(entries: list[Entry]) -> bytes:
    """A file of zeros with these tensors."""
    out = io.BytesIO()
    writer = Writer(out)
    for entry in entries:
        writer.add(entry, b"", sct.ZERO, [])
    writer.finish()
    return out.getvalue()


def heads_of(data: bytes) -> list[Entry] | str:
    try:
        archive = Archive(io.BytesIO(data), max_bytes=1 << 62)
        return [record.entry for record in archive.heads]
    except FormatError as error:
        return str(error)


def both_ways(data: bytes):
    """What the quick way gives, and what is read without it."""
    found = heads_of(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "_usual_entry", lambda head, last: None)
        return found, heads_of(data)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(NAMES, st.sampled_from(sorted(sct.DTYPES)), SHAPES),
        max_size=5,
        unique_by=lambda one: one[0],
    )
)
def test_the_quick_way_to_an_entry_is_the_long_one(given):
    entries = [
        entry
        for entry in (Entry(*one) for one in given)
        if not sct.problem_of(entry) and entry.nbytes < 1 << 20
    ]
    found, reference = both_ways(file_of(entries))
    assert found == reference == entries


@settings(deadline=None, max_examples=200)
@given(at=st.integers(12, 44), value=st.integers(0, 255))
def test_a_changed_head_is_refused_or_read_alike(at, value):
    data = bytearray(
        file_of([Entry("layer.0.weight", "F32", (130, 3)), Entry("layer.0.bias", "BF16", (130,))])
    )
    data[at] = value
    with pytest.MonkeyPatch.context() as patch:  # the head is looked at behind its checksum
        patch.setattr(Archive, "_scan_payload", _unchecked)
        found, reference = both_ways(bytes(data))
    assert found == reference


def _unchecked(self: Archive, kind: int, at: int, start: int, length: int, crc: int) -> tuple[bytes, int]:
    self.file.seek(start)
    return self.file.read(length), crc


def test_most_entries_are_read_the_quick_way(monkeypatch):
    taken = []
    quick = frame._usual_entry
    monkeypatch.setattr(
        frame, "_usual_entry", lambda head, last: taken.append(quick(head, last)) or taken[-1]
    )
    assert isinstance(
        heads_of(
            file_of([Entry(f"encoder.layer.{i}.attention.weight", "F32", (384, 384)) for i in range(9)])
        ),
        list,
    )
    assert len(taken) == 9
    assert taken.count(None) == 2  # the first of a section has a long name


def test_the_second_walk_has_the_parts_and_sees_a_changed_file(monkeypatch):
    monkeypatch.setattr(sct, "SECTION_SIZE", 4000)
    words = np.arange(3000, dtype=np.uint32)
    out = io.BytesIO()
    writer = Writer(out)
    for i in range(5):
        writer.add(Entry(f"w{i}", "U32", (3000,)), words.data, sct.RAW, [words.tobytes()])
    writer.add(Entry("z", "U32", (4,)), bytes(16), sct.CONST, [b"\0\1\0\0"])
    writer.finish()
    plain = list(Archive(io.BytesIO(out.getvalue())))
    archive = Archive(out)
    assert len(archive.heads) == 6
    monkeypatch.setattr(Archive, "_record", None)  # names and shapes are not read again
    again = list(archive)
    assert [(one.entry, one.parts, one.offset, one.frame_bytes, one.section) for one in again] == [
        (one.entry, one.parts, one.offset, one.frame_bytes, one.section) for one in plain
    ]
    place = archive.heads[1].offset + archive.heads[1].name_bytes + 1
    out.getbuffer()[place] ^= 32  # the length of its only part
    with pytest.raises(FormatError, match="the file was changed while it was read"):
        list(archive)
