"""Files with long tensors of floats: version 3 and Zstandard frames where there is Zstandard, version 2 where not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.coding import frames
from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.archive import save
from secateur.container.arrays import to_words
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.pack import pack, unpack
from secateur.container.save_options import SaveOptions
from secateur.errors import MissingExtraError

LONG = (300, 250)


def state() -> dict[str, torch.Tensor]:
    """Tensors that every way of packing numbers has a frame for, short ones between them."""
    generator = torch.Generator().manual_seed(3)

    def drawn() -> torch.Tensor:
        return torch.randn(*LONG, generator=generator) * 0.02

    return {
        "a.weight": drawn(),
        "a.bias": torch.randn(300, generator=generator),
        "bf16": drawn().bfloat16(),
        "fp16": drawn().half(),
        "fp64": drawn().double(),
        "sparse": torch.randn(400, 400, generator=generator)
        * (torch.rand(400, 400, generator=generator) > 0.4),
        "noise": torch.randint(-(1 << 63), (1 << 63) - 1, LONG, generator=generator),
        "counts": torch.poisson(torch.full(LONG, 1e6), generator=generator).int(),
        "steps": torch.tensor(5),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(state(), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


needs_zstandard = pytest.mark.skipif(not frames.available(), reason="needs Python 3.14 or zstandard")


@needs_zstandard
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bytes_by_way_of_version_3(
    source: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sct, "SECTION_SIZE", 1 << 18)  # several sections, whose checksums follow the version
    pack(source, tmp_path / "a.sct", lossless=True, workers=workers)
    unpack(tmp_path / "a.sct", tmp_path / "b.safetensors", workers=workers)
    assert source.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with (tmp_path / "a.sct").open("rb") as file:
        archive = Archive(file)
        ways = {r.entry.name: bytes(r.parts.get("packed", b""))[:1] for r in archive}
        assert archive.version == inspect(tmp_path / "a.sct").version == 3
    framed = {"a.weight", "bf16", "fp16", "fp64", "sparse", "counts"}
    assert {name for name, first in ways.items() if first == b"\3"} == framed


@needs_zstandard
def test_narrower_floats_are_saved_in_version_3(tmp_path: Path) -> None:
    values = {"w": state()["a.weight"]}
    for precision, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        save(values, tmp_path / "a.sct", options=SaveOptions(precision=precision))
        assert (tmp_path / "a.sct").read_bytes()[4] == 3
        assert torch.equal(load(tmp_path / "a.sct")["w"], values["w"].to(kind).float())


def test_short_tensors_and_the_strong_coder_stay_with_version_2(tmp_path: Path) -> None:
    values = state()
    save({"w": values["a.weight"][:200]}, tmp_path / "short.sct")
    save({"w": values["a.weight"]}, tmp_path / "strong.sct", options=SaveOptions(coder="strong"))
    for name, count in (("short", 200), ("strong", 300)):
        assert (tmp_path / f"{name}.sct").read_bytes()[4] == 2
        assert torch.equal(load(tmp_path / f"{name}.sct")["w"], values["a.weight"][:count])


def test_without_zstandard(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what version 2 wrote, and a file with frames says what it takes to be read."""
    if frames.available():
        pack(source, tmp_path / "three.sct", lossless=True)
    monkeypatch.setattr(frames, "_tools", lambda: ())
    pack(source, tmp_path / "two.sct", lossless=True)
    assert (tmp_path / "two.sct").read_bytes()[4] == 2
    unpack(tmp_path / "two.sct", tmp_path / "b.safetensors")
    assert all(torch.equal(v, state()[k]) for k, v in load_file(tmp_path / "b.safetensors").items())
    if (tmp_path / "three.sct").exists():
        for read in (load, lambda path: unpack(path, tmp_path / "c.safetensors")):
            with pytest.raises(MissingExtraError, match="pip install zstandard"):
                read(tmp_path / "three.sct")
        assert not (tmp_path / "c.safetensors").exists()


def test_only_dense_floats_of_eight_bits_are_never_tried_as_indices():
    torch.manual_seed(0)
    dense = torch.randn(512, 256) * 60
    sparse = dense * (torch.rand(512, 256) < 0.5)
    found = []
    for tensor, coder in ((dense, "mixed"), (dense, "strong"), (sparse, "mixed"), (dense.sign(), "mixed")):
        entry, words = to_words("w", tensor.to(torch.float8_e4m3fn))
        found.append(tensors.dense_bytes(entry, words.reshape(-1), coder))
    assert found == [True, False, False, False]
    entry, words = to_words("w", dense.to(torch.float8_e4m3fn))
    assert sct.METHODS[tensors.encode(entry, words)[0]][0] == "packed"


def test_minor_tensors_of_a_large_checkpoint_are_packed_at_once():
    entries = [
        sct.Entry("w", "F32", (2048, 2048)),
        sct.Entry("b", "BF16", (384,)),
        sct.Entry("c", "BF16", (9000,)),
    ]
    minor = tensors.minor_bytes(entries)
    assert minor == 18_000
    assert tensors.minor_bytes([*entries, sct.Entry("d", "BF16", (9000,))]) == 768  # two of them are too much
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(384, generator=generator).bfloat16()
    shared = torch.linspace(-1, 1, 16)[torch.randint(0, 16, (384,), generator=generator)].bfloat16()
    pruned = dense * (torch.rand(384, generator=generator) > 0.5)

    def method(tensor: torch.Tensor, minor: int) -> int:
        entry, words = to_words("b", tensor)
        found, parts = tensors.pieces_of(entry, words, minor=minor)
        assert sum(map(len, parts)) < entry.nbytes
        return found

    rounded = (dense * 4).round() / 4 + torch.linspace(0.03, 0.21, 5)[torch.arange(384) % 5].bfloat16()
    few = len(rounded.unique())
    assert 64 < few < 200
    assert [method(rounded, minor) for minor in (0, minor)] == [sct.INDEXED, sct.PACKED]
    for tensor in (shared, pruned):
        assert method(tensor, minor) == method(tensor, 0) != sct.PACKED
