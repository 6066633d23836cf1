"""Damaged and hostile files end in a FormatError that says what and where, soon and in little memory."""

from __future__ import annotations

import io
import random
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from secateur.coding import floats, indices, varint
from secateur.coding.mixed import CodingMode
from secateur.container import codebooks
from secateur.container import format as sct
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.writer import Writer
from secateur.errors import FormatError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import hostile


@pytest.fixture(scope="module")
def honest() -> tuple[bytes, dict[str, bytes]]:
    data = hostile.sample()
    return data, hostile.read(data)


@pytest.fixture(scope="module")
def strong() -> tuple[bytes, dict[str, bytes]]:
    data = hostile.strong_sample()
    return data, hostile.read(data)


@pytest.fixture(scope="module")
def framed() -> tuple[bytes, dict[str, bytes]]:
    if not hostile.frames.available():
        pytest.skip("needs Python 3.14 or zstandard")
    data = hostile.framed_sample()
    return data, hostile.read(data)


def test_the_sample_uses_every_way_of_storing(honest: tuple[bytes, dict[str, bytes]]) -> None:
    records = Archive(io.BytesIO(honest[0])).records()
    assert {record.method for record in records} == set(sct.METHODS) - {sct.SHORT, sct.SLICED}
    models = {bytes(r.parts["indices"])[0] for r in records if r.method == sct.INDEXED}
    assert {min(model, 2) for model in models} == {0, 2}  # from 2 on: the second context model


def test_the_other_sample_has_strong_streams_and_deflated_planes(
    strong: tuple[bytes, dict[str, bytes]],
) -> None:
    records = Archive(io.BytesIO(strong[0])).records()
    firsts = [
        bytes(part)[0] for r in records for name, part in r.parts.items() if name in ("indices", "mask")
    ]
    assert [CodingMode.of(first, old=False).kind for first in firsts] == ["rich"] * 3
    assert [bytes(r.parts["packed"])[0] for r in records if "packed" in r.parts] == [2] * 3


def test_the_framed_sample_has_every_way_of_a_plane(framed: tuple[bytes, dict[str, bytes]]) -> None:
    archive = Archive(io.BytesIO(framed[0]))
    packed = [bytes(r.parts["packed"]) for r in archive.records()]
    assert archive.version == 3
    assert [part[:2] for part in packed] == [b"\3\3"] * len(packed)
    widths = {r.entry.width for r in archive.records()}
    assert widths == {1, 2, 4, 8}


@pytest.mark.parametrize("pad", [b"\0\0", b"\0\1", b"\x80" + bytes(3)])
def test_a_pad_that_is_not_zero_is_refused(pad: bytes) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.add(Entry("w", "F32", (2,)), b"12345678", sct.RAW, [b"12345678"])
    writer._flush()
    writer._section(sct.PAD, pad)
    writer.finish()
    if not any(pad):
        assert hostile.read(file.getvalue()) == {"w": b"12345678"}
        return
    with pytest.raises(FormatError, match="expected zeros in a pad section, found other bytes"):
        Archive(io.BytesIO(file.getvalue()))


def test_every_flipped_bit_is_found(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, _ = honest
    for at in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[at] ^= 1 << bit
            with pytest.raises(FormatError):
                hostile.read(bytes(bad))


def test_every_truncation_is_found(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, _ = honest
    for length in range(len(data)):
        with pytest.raises(FormatError):
            hostile.read(data[:length])


def test_bytes_after_the_end_are_found(honest: tuple[bytes, dict[str, bytes]]) -> None:
    with pytest.raises(FormatError, match="follow the end section"):
        hostile.read(honest[0] + b"\0")


def test_ten_thousand_mutations_are_refused(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, content = honest
    rng = random.Random(20)
    for _ in range(10_000):
        hostile.judge(hostile.mutate(data, rng), content)


def test_mutations_behind_mended_checksums(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, content = honest
    rng = random.Random(21)
    seen = []
    for _ in range(600):
        began = time.process_time()
        seen.append(hostile.judge(hostile.mutate_within(data, rng), content, resealed=True))
        assert time.process_time() - began < 5  # of processor time; one second is usual
    assert seen.count("refused") > 400


def test_strong_streams_and_deflated_planes_under_attack(strong: tuple[bytes, dict[str, bytes]]) -> None:
    data, content = strong
    rng = random.Random(23)
    seen = []
    for _ in range(300):
        hostile.judge(hostile.mutate(data, rng), content)
        began = time.process_time()
        seen.append(hostile.judge(hostile.mutate_within(data, rng), content, resealed=True))
        assert time.process_time() - began < 5  # of processor time; one second is usual
    assert seen.count("refused") > 200


def test_every_flipped_bit_and_truncation_of_a_file_with_frames(
    framed: tuple[bytes, dict[str, bytes]],
) -> None:
    data, _ = framed
    for at in range(8 * len(data)):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError):
            hostile.read(bytes(bad))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            hostile.read(data[:length])


def test_frames_under_attack(framed: tuple[bytes, dict[str, bytes]]) -> None:
    data, content = framed
    rng = random.Random(24)
    seen = []
    tracemalloc.start()
    try:
        for _ in range(300):
            hostile.judge(hostile.mutate(data, rng), content)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            began = time.process_time()
            seen.append(hostile.judge(hostile.mutate_within(data, rng), content, resealed=True))
            assert time.process_time() - began < 5  # of processor time; one second is usual
            assert tracemalloc.get_traced_memory()[1] - before < 64 << 20
    finally:
        tracemalloc.stop()
    assert seen.count("refused") > 200


def test_flipped_bits_of_a_frame_behind_mended_checksums() -> None:
    """The checksum of the content finds what Zstandard lets pass."""
    if not hostile.frames.available():
        pytest.skip("needs Python 3.14 or zstandard")
    words = np.tile(np.arange(9, dtype=np.uint8) % 5, 40)
    frame = hostile.frames.compress(words)
    file = io.BytesIO()
    writer = Writer(file)
    part = b"\3\3" + varint.write(len(frame)) + frame
    writer.add(Entry("w", "U8", words.shape), words.tobytes(), sct.PACKED, [part])
    writer.finish()
    data = file.getvalue()
    begin = data.index(frame)
    for at in range(8 * begin, 8 * (begin + len(frame))):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << at % 8
        assert hostile.judge(hostile.reseal(bytes(bad)), {"w": words.tobytes()}) in ("refused", "same")


def test_a_file_has_version_3_only_for_what_came_with_it(framed: tuple[bytes, dict[str, bytes]]) -> None:
    data, _ = framed
    assert hostile.reseal(data) == data  # the version is written last, and all checksums with it
    for version in (1, 2):
        with pytest.raises(FormatError, match="has coding 3, known codings are"):
            hostile.read(hostile.reseal(data[:4] + bytes([version]) + data[5:]))
    assert hostile.sample()[4] == hostile.strong_sample()[4] == 2
    older, same = hostile.sample(), hostile.read(hostile.sample())
    assert hostile.read(hostile.reseal(older[:4] + b"\3" + older[5:])) == same


def assert_cheaply_refused(data: bytes) -> None:
    """An error that names tensor w, in little memory and soon."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(FormatError, match="w"):
            hostile.read(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5


@pytest.mark.parametrize("count", [1 << 60, 1 << 31, 1 << 24])
def test_claims_of_endless_frames(count: int) -> None:
    frame = hostile.frame_of([(1, 1 << 17)] * 3, size=count & 0xFFFFFFFF)
    if count >> 32:
        frame = frame[:4] + b"\xe0" + count.to_bytes(8, "little") + frame[9:]
    data = one_tensor((count,), sct.PACKED, [b"\3\3" + varint.write(len(frame)) + frame], dtype="U8")
    assert data[4] == 3
    assert_cheaply_refused(data)


@pytest.mark.parametrize("model", ["mixed", "strong"])
@pytest.mark.parametrize("shape", [(3, 0), (1 << 40, 0), (2, 0, 3, 3)])
def test_levels_of_no_elements_that_go_on(model: str, shape: tuple[int, ...]) -> None:
    stream = indices.encode(np.abs(hostile.numbers(800, 3)).reshape(8, 100) % 2, 2, 0, model)
    packed = floats.encode(np.zeros(0, dtype=np.uint32), True)
    assert_cheaply_refused(one_tensor(shape, sct.SPARSE, [stream, packed]))


def test_memory_of_mended_mutations(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, content = honest
    rng = random.Random(22)
    tracemalloc.start()
    try:
        for _ in range(60):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            hostile.judge(hostile.mutate_within(data, rng), content, resealed=True)
            assert tracemalloc.get_traced_memory()[1] - before < 64 << 20
    finally:
        tracemalloc.stop()


def test_sections_cannot_trade_places_or_come_twice(honest: tuple[bytes, dict[str, bytes]]) -> None:
    data, _ = honest
    head, text, numbers, body, end = (data[start : stop + 4] for start, _, stop in hostile.sections(data))
    magic = data[:5]
    for order in (
        [head, numbers, text, body, end],
        [head, text, body, numbers, end],
        [head, text, numbers, body, body, end],
        [head, text, body, end],
        [head, text, numbers, end],
    ):
        with pytest.raises(FormatError, match="checksum"):
            hostile.read(magic + b"".join(order))


def one_tensor(shape: tuple[int, ...], method: int, parts: list[bytes], dtype: str = "F32") -> bytes:
    """A file with well-formed sections whose one tensor claims `shape`."""
    file = io.BytesIO()
    writer = Writer(file)
    writer.add(Entry("w", dtype, ()), b"", method, parts)
    writer.finish()
    data = file.getvalue()
    plain = varint.write(0) + varint.write(1) + b"w" + bytes([sct.DTYPES[dtype][0]])
    (_, _, _), (start, begin, end), _ = hostile.sections(data)
    claimed = plain + varint.write(len(shape)) + b"".join(map(varint.write, shape))
    payload = data[begin:end].replace(plain + b"\0", claimed)
    return hostile.reseal(data[: start + 1] + varint.write(len(payload)) + payload + data[end:])


@pytest.mark.parametrize(
    "shape", [(1 << 60,), (1 << 30, 1 << 30), (1 << 62, 1 << 62), (0, 1 << 62), (1 << 24, 4)]
)
@pytest.mark.parametrize("method", [sct.ZERO, sct.CONST, sct.PACKED, sct.INDEXED, sct.SPARSE, sct.RAW])
def test_claims_of_endless_tensors(shape: tuple[int, ...], method: int) -> None:
    parts = {
        sct.ZERO: [],
        sct.CONST: [bytes(4)],
        sct.PACKED: [b"\1\2\0\0"],
        sct.INDEXED: [b"\0\2" + bytes(8), b"\1\1"],
        sct.SPARSE: [b"\1\1", b""],
        sct.RAW: [bytes(40)],
    }[method]
    data = one_tensor(shape, method, parts)
    assert_cheaply_refused(data)


def test_a_short_stream_cannot_ask_for_much_work() -> None:
    stream = b"\1\1" + bytes(100)
    data = one_tensor(
        (1000, 1000),
        sct.INDEXED,
        [codebooks.codebook(np.array([0.0, 1.0], np.float32).view(np.uint32), Entry("w", "F32", ())), stream],
    )
    with pytest.raises(FormatError, match="at least 7781 bytes, got 102"):
        hostile.read(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"GIF89a" + d[6:], "not a .sct file"),
        (lambda d: b"", "not a .sct file"),
        (lambda d: d[:4], "before its version"),
        (lambda d: hostile.reseal(d[:4] + b"\7" + d[5:]), "version 7, this reader knows versions 1 to 6"),
        (lambda d: hostile.reseal(d[:5] + b"\x09" + d[6:]), "kind 9"),
        (lambda d: hostile.reseal(d[:7] + b"\x07" + d[8:]), "flags 7"),
    ],
)
def test_messages_of_wrong_beginnings(
    honest: tuple[bytes, dict[str, bytes]], change: object, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        hostile.read(change(honest[0]))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0b", "zero character"),
        (b"x" * 5000, "the length of a name is 5000, expected at most 4096"),
    ],
)
def test_hostile_names(name: bytes, message: str) -> None:
    data = one_tensor((), sct.ZERO, [])
    (_, _, _), (start, _, end), _ = hostile.sections(data)
    payload = b"\1\0" + varint.write(len(name)) + name + b"\0\0\1"
    bad = hostile.reseal(data[: start + 1] + varint.write(len(payload)) + payload + data[end:])
    with pytest.raises(FormatError, match=message):
        hostile.read(bad)


def test_names_that_look_like_paths_are_only_names() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    for name in ("../../etc/passwd", "C:\\x", "", "a/b", "é\n"):
        writer.add(Entry(name, "U8", (1,)), b"\0", sct.ZERO, [])
    writer.finish()
    assert list(hostile.read(file.getvalue())) == ["../../etc/passwd", "C:\\x", "", "a/b", "é\n"]


def test_a_name_twice_is_refused() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    for _ in range(2):
        writer.add(Entry("w", "U8", (1,)), b"\0", sct.ZERO, [])
        writer._names.clear()  # the writer refuses it as well
    writer.finish()
    with pytest.raises(FormatError, match="'w' comes twice"):
        hostile.read(file.getvalue())


def test_wrong_content_behind_right_checksums_is_refused() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.add(Entry("w", "U8", (1,)), b"\1", sct.ZERO, [])
    writer.finish()
    with pytest.raises(FormatError, match="the file promises"):
        hostile.read(file.getvalue())


def test_sections_that_overlap_are_refused(honest: tuple[bytes, dict[str, bytes]]) -> None:
    """A length that reaches into the next section: the checksum of what lies there cannot fit."""
    data, _ = honest
    (_, _, _), (start, begin, end), *_ = hostile.sections(data)
    longer = data[: start + 1] + varint.write(end - begin + 20) + data[begin:]
    with pytest.raises(FormatError):
        hostile.read(longer)
