"""Version 5: a small file that leaves names to a model has no sections and one checksum."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.container import codebooks
from secateur.container import format as sct
from secateur.container.compact_writer import CompactWriter
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.save_options import SaveOptions
from secateur.container.scalar_streams import ScalarStreams
from secateur.errors import FormatError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import hostile


def resealed(data: bytes, at: int, new: bytes) -> bytes:
    """The file with other bytes at a place, and a checksum that fits."""
    return hostile.reseal(data[:at] + new + data[at + len(new) :])


def small() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 0.0], [-0.25, 0.5], [0.0, 0.0]]))
        model[0].bias.zero_()
        model[1].weight.zero_()
        model[1].bias.fill_(3.0)
    return model


def test_every_byte_of_a_compact_file(tmp_path: Path) -> None:
    data = sc.save(small(), tmp_path / "a.sct", names="model").path.read_bytes()
    entries = [
        Entry("0.weight", "F32", (3, 2)),
        Entry("0.bias", "F32", (3,)),
        Entry("1.weight", "F32", (1, 3)),
        Entry("1.bias", "F32", (1,)),
    ]
    assert data[:5] == b"\x89SCT\x05"
    assert data[5:11] == b"\x01\x04" + sct.digest(entries)[:4]  # names are the model's, four tensors
    assert data[11] == 0  # no lanes
    assert data[12:17] == bytes(
        [4, sct.RAW, sct.ZERO, sct.ZERO, sct.CONST]
    )  # four methods, which do not repeat
    weight = np.array([0.5, 0, -0.25, 0.5, 0, 0], dtype="<f4").tobytes()
    assert data[17:-8] == bytes([24]) + weight + bytes([4]) + np.float32(3).tobytes()
    assert len(data) == 55


def test_a_compact_file_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 30))
    shared = sc.share(model, bits=2)
    options = SaveOptions(biases=4, batch_norm=6, codebook_bits=6, coder="strong")
    saved = sc.save(shared.model, tmp_path / "a.sct", shared, names="model", options=options)
    again = sc.load(
        saved.path, into=nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 30))
    )
    whole = sc.save(shared.model, tmp_path / "b.sct", shared, options=options)  # with names, in sections
    for name, value in sc.load(whole.path).items():
        assert torch.equal(again.state_dict()[name], value)
    report = inspect(saved.path, into=again)
    assert (report.version, report.accounted, report.parts["checksums"]) == (5, saved.size, 8)
    assert [row.distinct for row in report.rows if row.way == "indexed"] == [4, 4]
    assert inspect(saved.path).accounted == saved.size


def test_a_large_model_keeps_its_sections(tmp_path: Path) -> None:
    saved = sc.save(nn.Linear(1024, 1024), tmp_path / "a.sct", names="model")
    with open(saved.path, "rb") as file:
        assert Archive(file).version < sct.COMPACT


@pytest.mark.parametrize(
    ("values", "book"),
    [
        ([-0.25, 0.0, 0.5], [1 << 4 | 1, 126 - 2, 127, 130]),
        ([0.0, 3.0], [1, 126, 131]),
        ([-128.0, 0.0], [1 << 4, 126 + 7, 127]),
        ([0.0, 1 / 3], None),  # no multiples of a power of two
        ([0.5, 1.0], None),  # without zero
        ([0.0], None),
        (list(range(17)), None),  # more than fifteen on a side
    ],
)
def test_short_codebooks(values: list[float], book: list[int] | None) -> None:
    words = np.array(values, dtype=np.float32).view(np.uint32)
    entry = Entry("w", "F32", (9,))
    found = codebooks.short_codebook(words, entry)
    assert found == (None if book is None else bytes(book))
    if found is not None:
        assert codebooks.read_multiples(memoryview(found), entry, "w").tolist() == words.tolist()


@pytest.mark.parametrize(
    ("book", "dtype", "message"),
    [
        ([0x11, 126, 127, 127], "F32", "do not ascend"),
        ([0x11, 126, 128, 129], "F32", "do not ascend"),
        ([0x00, 126], "F32", "0 and 0 values"),
        ([0x11, 250, 127, 129], "F32", "exponent 124"),
        ([0x11, 126, 127, 129], "I32", "for dtype I32"),
    ],
)
def test_short_codebooks_that_are_refused(book: list[int], dtype: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        codebooks.read_multiples(memoryview(bytes(book)), Entry("w", dtype, (9,)), "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "checksum of the file does not fit"),
        (lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:], "checksum of the file does not fit"),
        (lambda d: d[:12], "before its checksums"),
        (lambda d: resealed(d, 5, b"\0"), "leaves its names to a model"),
        (lambda d: resealed(d, 5, b"\10"), "flags 8 are not known to version 5"),
        (lambda d: resealed(d, 6, b"\5"), "another model"),
        (lambda d: resealed(d, 7, b"\0"), "another model"),
        (lambda d: resealed(d, 12, b"\0"), "expected at least one"),
        (lambda d: resealed(d, 12, b"\5"), "the number of methods is 5, expected at most 4"),
        (lambda d: resealed(d, 13, b"\16"), "method 14, known methods are 0..13"),
        (lambda d: hostile.reseal(d[:-8] + b"\0" + d[-8:]), "left over"),
        (lambda d: resealed(d, len(d) - 8, b"\0\0\0\0"), "decoded content has checksum"),
        (lambda d: d + bytes(sct.MOST_COMPACT), "has at most 8,388,608"),
    ],
)
def test_damaged_compact_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    file = sc.save(small(), tmp_path / "a.sct", names="model").path
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        sc.load(file, into=small())


def test_a_file_cannot_claim_more_tensors_than_it_has_bytes() -> None:
    entries = [Entry(f"w{n}", "F32", ()) for n in range(300)]
    file = io.BytesIO()
    writer = CompactWriter(file, entries)
    for entry in entries:
        writer.add(entry, bytes(4), sct.ZERO, [])
    writer.finish()
    data = file.getvalue()
    assert data[6:8] == b"\xac\x02"
    with pytest.raises(FormatError, match=r"the number of tensors is 300, expected at most \d\d"):
        Archive(io.BytesIO(data))


def test_lanes_of_a_compact_file() -> None:
    lanes = ScalarStreams(hostile.LANES)
    payload = lanes.compact()
    assert payload[0] == 0b10_01_01_10
    again = ScalarStreams.read_compact(payload)
    for lane, (grid, drawn) in enumerate(hostile.LANES):
        assert again.take(lane, len(drawn), "w").tolist() == grid.values(drawn).view(np.uint32).tolist()
    with pytest.raises(FormatError, match="lane of kind 2"):
        ScalarStreams.read_compact(b"\3" + payload[1:])
    with pytest.raises(FormatError, match="more than the 20 numbers"):
        ScalarStreams.read_compact(payload, most=20)


def test_no_damage_breaks_the_promise() -> None:
    data = hostile.compact_sample()
    content = hostile.read(data)
    assert list(content) == [entry.name for entry in hostile.COMPACT_ENTRIES]
    assert hostile.reseal(data) == data
    rng = random.Random(5)
    seen = [hostile.judge(hostile.mutate(data, rng), content) for _ in range(150)]
    assert set(seen) <= {"refused", "same"}
    seen = [hostile.judge(hostile.mutate_within(data, rng), content, resealed=True) for _ in range(400)]
    assert seen.count("refused") > 300
