"""pack, unpack, inspect: any checkpoint, the same bytes back, every byte accounted for."""

from __future__ import annotations

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.coding.room import Room
from secateur.container import format as sct
from secateur.container import reading, worker_pool
from secateur.container.archive import save
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.pack import _sections, pack, unpack
from secateur.container.reading import words_of
from secateur.container.save_options import SaveOptions
from secateur.container.worker_pool import TensorWorkers
from secateur.errors import DataError, FormatError, NonFiniteError, NothingToDoError, OptionError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import hostile


def checkpoint(path: Path, metadata: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=generator) * 0.1,
        "conv.bias": torch.zeros(16),
        "fc.weight": torch.randn(20, 64, generator=generator).bfloat16(),
        "half": torch.randn(30, 30, generator=generator).half(),
        "steps": torch.tensor(17),
        "empty": torch.zeros(0, 3),
        "mask": torch.rand(40, generator=generator) > 0.5,
    }
    save_file(state, path, metadata)
    return state


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "übung": 'ä\n"quoted"'}])
@pytest.mark.parametrize("fast", [False, True])
def test_lossless_gives_the_same_file(metadata: dict[str, str] | None, fast: bool, tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors", metadata)
    packed = pack(tmp_path / "a.safetensors", tmp_path / "a.sct", lossless=True, fast=fast)
    assert packed.size == (tmp_path / "a.sct").stat().st_size < packed.source
    unpack(tmp_path / "a.sct", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_header_of_another_writer_comes_back(tmp_path: Path) -> None:
    head = (
        json.dumps(
            {
                "b": {"shape": [2], "dtype": "F32", "data_offsets": [4, 12]},
                "a": {"data_offsets": [0, 4], "dtype": "F32", "shape": []},
            },
            indent=1,
        ).encode()
        + b"   "
    )
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(range(12)))
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    unpack(tmp_path / "a.sct", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("bits", [1, 4])
def test_bits_share_the_weights(bits: int, tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "a.safetensors")
    state["conv.weight"][state["conv.weight"].abs() < 0.1] = 0
    save_file(state, tmp_path / "a.safetensors")
    seen: list[tuple[int, int, str]] = []
    packed = pack(
        tmp_path / "a.safetensors", tmp_path / "a.sct", bits=bits, progress=lambda *a: seen.append(a)
    )
    unpack(tmp_path / "a.sct", tmp_path / "b.safetensors")
    back = load_file(tmp_path / "b.safetensors")
    for name in ("conv.weight", "fc.weight", "half"):
        kept = back[name][state[name] != 0]
        assert len(torch.unique(kept.float())) <= 2**bits
        assert torch.equal(back[name] == 0, state[name] == 0)
        assert back[name].dtype == state[name].dtype
    assert torch.equal(back["conv.bias"], state["conv.bias"])
    assert packed.ratio > 2
    assert seen[-1][:2] == (seen[-1][1], seen[-1][1])
    assert [name for *_, name in seen] != []


def test_a_pt_file_is_read_with_weights_only(tmp_path: Path) -> None:
    state = {"model": {"a.weight": torch.randn(30, 20)}, "epoch": 3, "moments": [torch.ones(5)]}
    torch.save(state, tmp_path / "a.pt")
    packed = pack(tmp_path / "a.pt", tmp_path / "a.sct", lossless=True)
    assert packed.left_out == ("epoch",)
    back = load(tmp_path / "a.sct")
    assert list(back) == ["model.a.weight", "moments.0"]
    assert torch.equal(back["model.a.weight"], state["model"]["a.weight"])


def test_a_pt_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"f": os.getcwd}, tmp_path / "a.pt")
    with pytest.raises(
        DataError, match=r"weights_only \(it holds a (posix|nt)\.getcwd, and to make one would run"
    ):
        pack(tmp_path / "a.pt", tmp_path / "a.sct")
    assert not (tmp_path / "a.sct").exists()


def test_a_pt_file_from_before_zip_archives(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    pack(tmp_path / "a.pt", tmp_path / "a.sct")
    assert torch.equal(load(tmp_path / "a.sct")["w"], torch.arange(6.0))
    (tmp_path / "b.pt").write_bytes(b"junk" * 99)
    with pytest.raises(
        DataError, match=r"b\.pt: could not be read with weights_only \(\w+Error: .*save its state"
    ):
        pack(tmp_path / "b.pt", tmp_path / "b.sct")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(3).to_sparse(), r"'s': layout torch\.sparse_coo cannot be stored; .*to_dense\(\)"),
        (torch.empty(3, device="meta"), "'s': is on the meta device and has no values"),
        (torch.zeros(2, dtype=torch.complex128), r"'s': dtype torch\.complex128 cannot be stored"),
    ],
)
def test_tensors_that_a_file_has_no_place_for(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        save({"s": tensor}, tmp_path / "a.sct")
    torch.save({"s": tensor}, tmp_path / "a.pt")
    with pytest.raises(OptionError, match=message):
        pack(tmp_path / "a.pt", tmp_path / "a.sct")
    assert not (tmp_path / "a.sct").exists()


def test_places_that_nothing_can_be_written_to(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    packed = (tmp_path / "a.sct").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "a.safetensors")
    for verb, source, target, message in (
        (pack, "a.safetensors", "a.safetensors", "is the file that is read; name another one"),
        (pack, "a.safetensors", "link", "is the file that is read"),
        (unpack, "a.sct", "a.sct", "is the file that is read"),
        (pack, "a.safetensors", "none/a.sct", "there is no folder .*none; create it first"),
        (unpack, "a.sct", "none/a.safetensors", "there is no folder"),
        (pack, "a.safetensors", ".", "is a folder; name a file in it"),
    ):
        with pytest.raises(OptionError, match=message):
            verb(tmp_path / source, tmp_path / target)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert (tmp_path / "a.sct").read_bytes() == packed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "a.sct", "link"]


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.ckpt"])
def test_safetensors_are_not_written_under_a_name_of_torchs(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    with pytest.raises(
        OptionError, match=rf"{name}: unpack writes safetensors, .*name it 'x\.safetensors', or"
    ):
        unpack(tmp_path / "a.sct", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "a.sct"]


def test_wrong_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"got '\.txt'"):
        pack(tmp_path / "a.txt", tmp_path / "a.sct")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match="expected a safetensors file"):
        pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    checkpoint(tmp_path / "b.safetensors")
    with pytest.raises(OptionError, match="exclude each other"):
        pack(tmp_path / "b.safetensors", tmp_path / "a.sct", bits=3, lossless=True)
    with pytest.raises(OptionError, match="from 1 to 8"):
        pack(tmp_path / "b.safetensors", tmp_path / "a.sct", bits=9)
    save_file({"w": torch.ones(4)}, tmp_path / "c.safetensors")
    with pytest.raises(NothingToDoError, match="leave bits out"):
        pack(tmp_path / "c.safetensors", tmp_path / "a.sct", bits=3)
    save_file({"w": torch.full((40, 40), float("nan"))}, tmp_path / "c.safetensors")
    with pytest.raises(NonFiniteError, match="'w': holds NaN"):
        pack(tmp_path / "c.safetensors", tmp_path / "a.sct", bits=3)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "a.txt", "b.safetensors", "c.safetensors"]


def test_a_file_without_names_cannot_be_unpacked(tmp_path: Path) -> None:
    save({"w": torch.ones(3)}, tmp_path / "a.sct", names="model")
    with pytest.raises(FormatError, match="leaves its names to a model"):
        unpack(tmp_path / "a.sct", tmp_path / "b.safetensors")


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    one = 1_000_000
    drawn = np.random.default_rng(1).normal(size=one).astype(np.float32)
    save_file({f"w{i}": torch.from_numpy(np.roll(drawn, i)) for i in range(20)}, tmp_path / "a.safetensors")
    tracemalloc.start()
    try:
        pack(tmp_path / "a.safetensors", tmp_path / "a.sct", lossless=True)
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unpack(tmp_path / "a.sct", tmp_path / "b.safetensors")
        unpacking = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(packing, unpacking) < 9 * 4 * one  # the whole file is 20 tensors


def test_a_section_of_many_tensors_takes_the_memory_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sct, "SECTION_SIZE", 1 << 40)
    drawn = np.random.default_rng(1).normal(size=1 << 18).astype(np.float32)  # 1 MiB
    save_file({f"w{i}": torch.from_numpy(np.roll(drawn, i)) for i in range(20)}, tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct", lossless=True)
    rooms: list[Room] = []

    class Watched(Room):
        def __init__(self) -> None:
            super().__init__()
            rooms.append(self)

    monkeypatch.setattr(reading, "Room", Watched)
    section = Watched()
    with (tmp_path / "a.sct").open("rb") as file:
        archive = Archive(file)
        assert {(record.method, record.section) for record in archive.heads} == {
            (sct.PACKED, archive.heads[0].section)
        }
        for _ in words_of(archive, room=section):
            held = sum(len(block) for room in rooms for block in room._blocks)
            assert held < (tmp_path / "a.sct").stat().st_size + (3 << 20)


def test_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "one.sct", bits=3)
    pack(tmp_path / "a.safetensors", tmp_path / "two.sct", bits=3, workers=2)
    assert (tmp_path / "one.sct").read_bytes() == (tmp_path / "two.sct").read_bytes()
    with pytest.raises(OptionError, match="workers: expected at least 1"):
        pack(tmp_path / "a.safetensors", tmp_path / "c.sct", workers=0)


def test_processes_read_shared_tensors_a_section_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = {f"w{i}": torch.randn(40, 50) for i in range(5)}
    state |= {
        "same": state["w1"].clone(),
        "few": torch.randint(0, 2, (30, 30)).float(),
        "odd": torch.randn(7),
    }
    save_file(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(sct, "SECTION_SIZE", 20_000)  # some three tensors
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct", bits=3)
    unpack(tmp_path / "a.sct", tmp_path / "one.safetensors")
    asked = []
    submit = TensorWorkers.submit
    monkeypatch.setattr(
        TensorWorkers,
        "submit",
        lambda pool, slow, *job: asked.append((slow, job[0].__name__)) or submit(pool, slow, *job),
    )
    unpack(tmp_path / "a.sct", tmp_path / "few.safetensors", workers=2)
    assert (True, "_section") not in asked  # so few weights are not worth a process
    monkeypatch.setattr(reading, "_ENOUGH", 1)
    unpack(tmp_path / "a.sct", tmp_path / "two.safetensors", workers=2)
    assert asked.count((True, "_section")) == 2
    for name in ("few", "two"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_as_many_workers_as_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = torch.randint(0, 9, (300, 300)) / 8
    save_file({"w": torch.randn(300, 300), "few": few}, tmp_path / "a.safetensors")
    monkeypatch.setattr(reading, "_ENOUGH", 1 << 30)  # a pool, but no processes
    monkeypatch.setattr("secateur.container.pack._few", lambda *_: False)
    pools = []
    opened = TensorWorkers.__init__
    monkeypatch.setattr(
        TensorWorkers, "__init__", lambda self, count: pools.append(count) or opened(self, count)
    )
    monkeypatch.setattr(worker_pool, "cores", lambda: 5)

    def both(name: str) -> bytes:
        pack(tmp_path / "a.safetensors", tmp_path / f"{name}.sct", lossless=True, workers=None)
        unpack(tmp_path / f"{name}.sct", tmp_path / "b.safetensors", workers=None)
        assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
        return (tmp_path / f"{name}.sct").read_bytes()

    small = both("small")
    assert pools == []  # 720,000 bytes are one worker's
    monkeypatch.setattr(worker_pool, "_ENOUGH", 720_000)
    assert both("large") == small
    assert pools == [5]  # only half of what is read is shared
    monkeypatch.setattr(worker_pool, "_ENOUGH", 360_000)
    assert both("larger") == small
    assert pools == [5, 5, 5]


class _Watched(io.BytesIO):
    """A file that counts what is read of it."""

    seen = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.seen += len(found)
        return found

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self.seen += count
        return count


def test_a_file_is_read_twice_its_heads_hardly(tmp_path: Path) -> None:
    state = {f"w{i}": torch.randn(100, 100) for i in range(3)}
    save(state | {"same": state["w1"]}, tmp_path / "a.sct")
    data = (tmp_path / "a.sct").read_bytes()
    file = _Watched(data)
    archive = Archive(file)
    assert len(data) <= file.seen < len(data) + 100
    file.seen = 0
    found = [(record.entry, record.method, record.offset, record.section) for record in archive.heads]
    assert file.seen < 200
    assert found == [(record.entry, record.method, record.offset, record.section) for record in archive]
    file.seen = 0
    assert [record.entry.name for record, _ in words_of(archive)] == ["w0", "w1", "w2", "same"]
    assert file.seen < len(data) + 200
    again = Archive(file)
    file.truncate(50)
    with pytest.raises(FormatError, match="the file got shorter while it was read"):
        assert again.heads


@pytest.mark.parametrize("workers", [1, 3])
def test_content_that_is_not_what_was_written_is_found(tmp_path: Path, workers: int) -> None:
    save({f"w{i}": torch.randn(30, 20 + i) for i in range(4)}, tmp_path / "a.sct")
    data = bytearray((tmp_path / "a.sct").read_bytes())
    data[-5] ^= 1  # the last byte of the content's checksum; after it comes the section's own
    (tmp_path / "b.sct").write_bytes(hostile.reseal(bytes(data)))
    with pytest.raises(FormatError, match="the decoded content has checksum"):
        unpack(tmp_path / "b.sct", tmp_path / "b.safetensors", workers=workers)
    unpack(tmp_path / "a.sct", tmp_path / "a.safetensors", workers=workers)
    assert not (tmp_path / "b.safetensors").exists()


def test_what_a_process_finds_wrong_is_said_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.randn(40, 50)}, tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct", bits=3)
    monkeypatch.setattr(reading, "_ENOUGH", 1)
    portable = reading._portable
    monkeypatch.setattr(
        reading, "_portable", lambda record: (portable(record)[0], {"codebook": b"", "indices": b""})
    )
    with pytest.raises(FormatError, match="tensor 'w' at byte"):
        unpack(tmp_path / "a.sct", tmp_path / "b.safetensors", workers=2)
    assert not (tmp_path / "b.safetensors").exists()


def test_threads_read_and_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sct, "SECTION_SIZE", 3000)
    state = {f"w{i}": torch.randn(30, 20 + i) for i in range(8)}
    save_file(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(
        "secateur.container.worker_pool.ProcessPoolExecutor", None
    )  # not for tensors like these
    for workers in (1, 3):
        pack(tmp_path / "a.safetensors", tmp_path / f"{workers}.sct", lossless=True, workers=workers)
        unpack(tmp_path / "1.sct", tmp_path / f"{workers}.safetensors", workers=workers)
        assert (tmp_path / f"{workers}.sct").read_bytes() == (tmp_path / "1.sct").read_bytes()
        assert (tmp_path / f"{workers}.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(OptionError, match="workers: expected at least 1"):
        unpack(tmp_path / "1.sct", tmp_path / "b.safetensors", workers=0)


def test_threads_wait_for_what_later_tensors_are_made_of(tmp_path: Path) -> None:
    packed, few = torch.randn(5000), torch.randint(0, 3, (40, 40)).float()
    save(dict(zip("abcdef", (packed, few, packed, few, few, packed))), tmp_path / "a.sct")
    with (tmp_path / "a.sct").open("rb") as file:
        archive = Archive(file)
        assert {record.method for record in archive} == {sct.PACKED, sct.INDEXED, sct.SAME}
        one, three = ([words.tobytes() for _, words in words_of(archive, n)] for n in (1, 3))
    assert one == three == [t.numpy().tobytes() for t in (packed, few, packed, few, few, packed)]


def test_sections_are_cut_as_the_writer_cuts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sct, "SECTION_SIZE", 3000)
    state = {f"w{i}": torch.round(torch.randn(10 * i + 1, 12) * 4) for i in range(9)}
    save_file(state, tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct")
    with (tmp_path / "a.sct").open("rb") as file:
        records = Archive(file).records()
    entries = [record.entry for record in records]
    by_section: dict[int, list[int]] = {}
    for record in records:
        by_section.setdefault(record.section, []).append(record.index)
    assert list(by_section.values()) == list(_sections(entries))
    assert len(by_section) > 3
    assert all(torch.equal(load(tmp_path / "a.sct")[name], state[name]) for name in state)


def test_inspect_accounts_for_every_byte(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "a.safetensors", {"format": "pt"})
    state["conv.weight"][state["conv.weight"].abs() < 0.1] = 0
    save_file(state, tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.sct", bits=4)
    report = inspect(tmp_path / "a.sct")
    assert report.accounted == report.size == (tmp_path / "a.sct").stat().st_size
    assert report.dense == sum(t.numel() * t.element_size() for t in state.values())
    rows = {row.name: row for row in report.rows}
    assert rows["conv.weight"].way == "indexed"
    assert rows["conv.weight"].zeros == int((state["conv.weight"] == 0).sum())
    assert sum(row.size for row in report.rows) < report.size
    assert all(sum(row.parts.values()) <= row.size for row in report.rows)
    again = json.loads(report.to_json())
    assert again["file_bytes"] == report.size
    assert again["parts"] == report.parts
    table = str(report)
    for word in ("conv.weight", "16x8x3x3", "checksums", "entropy bound", "formula", "on disk"):
        assert word in table


def test_the_formula_is_the_published_one(tmp_path: Path) -> None:
    """32 bits a weight over the Huffman bits of the kept ones: 4 values of shares 1/2, 1/4, 1/8, 1/8, half pruned."""
    kept = torch.tensor([1.0, 1, 1, 1, 2, 2, 3, 4]).repeat(50)
    save({"w": torch.cat([kept, torch.zeros(400)]).reshape(20, 40)}, tmp_path / "a.sct")
    report = inspect(tmp_path / "a.sct")
    assert report.formula == pytest.approx(32 * 800 / (400 * 1.75))
    assert report.rows[0].entropy == pytest.approx(800 / 8 * (1 + 0.5 * 1.75), abs=1)


def test_inspect_of_a_file_without_names(tmp_path: Path) -> None:
    save({"w": torch.ones(40, 40), "v": torch.randn(300)}, tmp_path / "a.sct", names="model")
    report = inspect(tmp_path / "a.sct")
    assert report.accounted == report.size
    assert [row.name for row in report.rows] == ["#0", "#1"]
    assert (report.known, report.ratio) == (False, None)
    told = json.loads(report.to_json())
    assert (told["dense"], told["tensors"][0]["shape"]) == (None, None)
    assert "left to the model the file was saved from: give it (--model NAME" in str(report)
    assert "scalar" not in str(report)


def test_inspect_with_the_model_a_file_leaves_its_names_to(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 10), torch.nn.BatchNorm1d(10))
    save(model, tmp_path / "a.sct", names="model", options=SaveOptions(batch_norm=8))
    report = inspect(tmp_path / "a.sct", into=model)
    assert [row.name for row in report.rows] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert report.rows[0].shape == (10, 40)
    assert report.dense == 4 * (400 + 10 + 10 + 10)
    assert report.ratio == report.dense / report.size
    with pytest.raises(FormatError, match="this is another model"):
        inspect(tmp_path / "a.sct", into=torch.nn.Linear(3, 2))
