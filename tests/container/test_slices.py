"""Tensors with few values in every slice: the same words again, in few bytes, and refused where they are not valid."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from attacks import hostile
from secateur.coding import floats, indices, varint
from secateur.container import format as sct
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.slices import few_in_slices, in_slices
from secateur.container.writer import Writer
from secateur.errors import FormatError


def channels(outputs: int, inputs: int, count: int, zeros: float = 0.0) -> torch.Tensor:
    """A weight with `count` values in every row, no two rows alike; a share of it is zero."""
    generator = torch.Generator().manual_seed(outputs + count)
    values = torch.randn(outputs, count, generator=generator)
    which = torch.randn(outputs, inputs, generator=generator).mul(count / 5).add(count / 2)
    weight = values.sort(1).values.gather(1, which.long().clamp(0, count - 1))
    return weight.masked_fill(torch.rand(outputs, inputs, generator=generator) < zeros, 0.0)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("transposed", [False, True])
def test_words_come_back_and_take_few_bytes(tmp_path: Path, zeros: float, transposed: bool) -> None:
    weight = channels(120, 512, 16, zeros)
    book = None
    if transposed:
        weight = weight.T.contiguous()
        values, where = weight.unique(return_inverse=True)
        # The slices of a codebook that a tool made: only its axis is asked for.
        offsets = tuple(range(0, 121))
        book = {"w": sc.Codebook("w", values, where, axis=1, offsets=offsets)}
    saved = sc.save({"w": weight}, tmp_path / "w.sct", book)
    assert torch.equal(sc.load(tmp_path / "w.sct")["w"], weight)
    archive = Archive(io.BytesIO((tmp_path / "w.sct").read_bytes()))
    assert archive.version == 6
    (record,) = archive.records()
    assert record.method == sct.SLICED
    bits = 8 * len(record.parts["indices"]) / weight.numel()
    assert bits < (3.0 if zeros else 3.8)  # the coder knows which level is zero
    assert len(record.parts["values"]) < 4 * 120 * 20
    assert saved.size < sum(map(len, record.parts.values())) + 100


def test_a_model_shared_by_channel_is_small_without_its_codebooks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 8)).eval()
    shared = sc.share(model, bits=3, per="channel", data=[torch.randn(300, 256)])
    saved = sc.save(shared.model, tmp_path / "m.sct")
    with_books = sc.save(shared.model, tmp_path / "n.sct", shared)
    assert saved.ratio > 6
    assert with_books.ratio > 6
    for path in ("m.sct", "n.sct"):
        again = sc.load(tmp_path / path, into=nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 8)))
        for one, two in zip(again.parameters(), shared.model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_what_is_not_in_slices_is_stored_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for weight in (
        torch.randn(64, 64),
        torch.randn(64, 64).round(),
        torch.randn(32, 4, 3, 3),
        torch.randn(50),
    ):
        sc.save({"w": weight}, tmp_path / "w.sct")
        assert (tmp_path / "w.sct").read_bytes()[4] < 6


def test_zero_has_one_level_in_all_slices() -> None:
    rows = np.array([[-1, 0, 0, 0, 0, 0, 0, -1], [0, 5, 0, 5, 0, 0, 0, 0]], dtype=np.float32)
    words = np.repeat(rows, 3, axis=1).view(np.uint32)
    found = few_in_slices(words, Entry("w", "F32", words.shape), 0)
    assert found is not None
    assert found.zero == 1
    assert found.values.view(np.float32).tolist() == [[-1, 0], [0, 0], [0, 5]]
    assert np.array_equal(found.values[found.levels, np.arange(2)[:, None]], words)


def one(head: tuple[int, int, int], values: np.ndarray, shape: tuple[int, ...] = (6, 40)) -> bytes:
    """A file with one tensor in slices, whatever its head says."""
    file = io.BytesIO()
    writer = Writer(file)
    entry = Entry("w", "F32", shape)
    levels = np.zeros(shape, dtype=np.int32)
    stream = indices.encode(levels, max(1, min(head[1], 256)), None, "mixed", writer.memory)
    parts = [b"".join(map(varint.write, head)), floats.encode(values, True), stream]
    writer.add(entry, bytes(entry.nbytes), sct.SLICED, parts)
    writer.finish()
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "count", "message"),
    [
        ((2, 3, 0), 18, "along axis 2"),
        ((0, 0, 0), 0, "with 0 values"),
        ((0, 3, 5), 18, "zero level 4"),
        ((0, 300, 0), 18, "300"),
        ((1, 7, 0), 280, "more than the tensor's 240"),
        ((0, 3, 2), 18, "not zero"),
        ((0, 4, 0), 18, "w"),
    ],
)
def test_invalid_slices_are_refused(head: tuple[int, int, int], count: int, message: str) -> None:
    values = np.arange(1, count + 1, dtype=np.float32).view(np.uint32)
    with pytest.raises(FormatError, match=message):
        hostile.read(one(head, values))


@pytest.mark.parametrize("shape", [(1 << 60, 2), (1 << 30, 1 << 30), (1 << 24, 4), (0, 1 << 62)])
def test_claims_of_endless_slices_are_refused(shape: tuple[int, ...]) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    entry = Entry("w", "F32", (2, 2))
    writer.add(entry, bytes(16), sct.SLICED, [b"\0\2\0", b"\1\2\0\0", b"\1\1"])
    writer.finish()
    data = file.getvalue()
    start, begin, end = next(s for s in hostile.sections(data) if data[s[0]] == sct.TENSORS)
    claimed = b"w\0\2" + b"".join(map(varint.write, shape))
    payload = data[begin:end].replace(b"w\0\2\2\2", claimed)
    with pytest.raises(FormatError, match="w"):
        hostile.read(hostile.reseal(data[: start + 1] + varint.write(len(payload)) + payload + data[end:]))


def test_older_versions_do_not_hold_slices() -> None:
    data = hostile.sliced_sample()
    assert data[4] == 6
    for version in (1, 2, 3, 4):
        with pytest.raises(FormatError, match="method 14, known methods are"):
            hostile.read(hostile.reseal(data[:4] + bytes([version]) + data[5:]))
    older = hostile.sample()
    assert hostile.read(hostile.reseal(older[:4] + b"\6" + older[5:])) == hostile.read(older)


def test_other_workers_and_pack_read_the_same(tmp_path: Path) -> None:
    weight = channels(600, 700, 8)
    sc.save({"w": weight, "v": weight.flip(0)}, tmp_path / "w.sct")
    assert "sliced" in sc.inspect(tmp_path / "w.sct").table()
    from secateur.container.reading import words_of

    with (tmp_path / "w.sct").open("rb") as file:
        archive = Archive(file)
        found = [words.tobytes() for _, words in words_of(archive, workers=2)]
    assert found == [weight.numpy().tobytes(), weight.flip(0).numpy().tobytes()]


def test_weights_in_slices_count_as_coded_weights() -> None:
    """Those of a small file are limited: a stream of a few bytes may stand for millions of them."""
    file = io.BytesIO()
    writer = Writer(file)
    entry = Entry("w", "F32", (4, 1_400_000))
    words = np.repeat(np.arange(1, 5, dtype=np.float32)[:, None], 1_400_000, axis=1)
    words[:, ::50_000] = 9.0
    found = few_in_slices(words.view(np.uint32), entry, 0)
    assert found is not None
    writer.add(entry, words.tobytes(), *in_slices(entry, found, "fast", writer.memory))
    writer.finish()
    with pytest.raises(FormatError, match="5,600,000 coded weights are more than"):
        hostile.read(file.getvalue())
