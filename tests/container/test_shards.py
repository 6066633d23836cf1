"""Checkpoints in several files: the same folder back, the same bytes as from one file, lies refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur as sc
from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.frame import Archive
from secateur.container.pack import pack, unpack
from secateur.container.writer import Writer
from secateur.errors import DataError, FormatError, OptionError

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def folder(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint in two files, with an index and a file that holds no tensors."""
    generator = torch.Generator().manual_seed(3)
    state = {
        "embed.weight": torch.randn(40, 64, generator=generator).bfloat16(),
        "layers.0.weight": torch.randn(64, 64, generator=generator).bfloat16(),
        "layers.1.weight": torch.randn(64, 64, generator=generator).half(),
        "norm.weight": torch.ones(64),
    }
    path.mkdir()
    parts = {FIRST: list(state)[:2], SECOND: list(state)[2:]}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, path / file, {"format": "pt"})
    where = {name: file for file, names in parts.items() for name in names}
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}, indent=2))
    (path / "config.json").write_text("{}")
    return state


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def test_a_folder_comes_back_byte_for_byte(tmp_path: Path) -> None:
    state = folder(tmp_path / "in")
    packed = pack(tmp_path / "in", tmp_path / "m.sct", lossless=True)
    before = files(tmp_path / "in")
    assert packed.source == len(before[FIRST]) + len(before[SECOND])
    assert packed.left_out == ("config.json",)
    assert packed.tensors == len(state)
    done = unpack(tmp_path / "m.sct", tmp_path / "out")
    del before["config.json"]
    assert files(tmp_path / "out") == before
    assert done.size == packed.source
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in", "m.sct", "out"]


@pytest.mark.parametrize("bits", [None, 3])
def test_the_tensors_are_coded_as_from_one_file(bits: int | None, tmp_path: Path) -> None:
    """The sections of tensors have the same bytes whether the checkpoint is one file or two."""
    state = folder(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "m.sct", bits=bits)
    unpack(tmp_path / "m.sct", tmp_path / "one.safetensors")
    if bits is None:
        assert all(
            torch.equal(value, state[name]) for name, value in load_file(tmp_path / "one.safetensors").items()
        )
    pack(tmp_path / "one.safetensors", tmp_path / "one.sct", lossless=True)
    found = []
    for name in ("m.sct", "one.sct"):
        with open(tmp_path / name, "rb") as file:
            archive = Archive(file)
            found.append(
                [archive._read(s.start, s.length) for s in archive.sections if s.kind == sct.TENSORS]
            )
    assert found[0] == found[1]


def test_several_workers_write_the_same_bytes(tmp_path: Path) -> None:
    folder(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "one.sct")
    pack(tmp_path / "in", tmp_path / "two.sct", workers=2)
    assert (tmp_path / "one.sct").read_bytes() == (tmp_path / "two.sct").read_bytes()


def test_a_header_of_another_writer_and_one_file_without_index(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    head = b'{ "b": {"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    raw = len(head).to_bytes(8, "little") + head + b"xy"
    (tmp_path / "in" / "a.safetensors").write_bytes(raw)
    pack(tmp_path / "in", tmp_path / "m.sct")
    unpack(tmp_path / "m.sct", tmp_path / "out")
    assert files(tmp_path / "out") == {"a.safetensors": raw}


def _map(change: Callable[[dict[str, str]], object]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        index = json.loads(text)
        change(index["weight_map"])
        return json.dumps(index)

    return changed


LIES: dict[str, tuple[Callable[[str], str], str]] = {
    "escapes": (_map(lambda m: m.update({"norm.weight": "../secret.safetensors"})), "the plain name of a"),
    "absolute": (_map(lambda m: m.update({"norm.weight": "/secret.safetensors"})), "the plain name of a"),
    "windows": (_map(lambda m: m.update({"norm.weight": "..\\secret.safetensors"})), "the plain name of a"),
    "hidden": (_map(lambda m: m.update({"norm.weight": ".secret.safetensors"})), "the plain name of a"),
    "not safetensors": (_map(lambda m: m.update({"norm.weight": "config.json"})), "the plain name of a"),
    "missing file": (
        _map(lambda m: m.update({"norm.weight": "x.safetensors"})),
        "which is not in the folder",
    ),
    "wrong file": (_map(lambda m: m.update({"norm.weight": FIRST})), "but the index says"),
    "one too few": (_map(lambda m: m.pop("norm.weight")), "the index does not name it"),
    "one too many": (_map(lambda m: m.update({"more": FIRST})), "holds tensor 'more', which it does not"),
    "a key twice": (lambda text: text.replace('"metadata"', '"weight_map": {}, "metadata"'), "comes twice"),
    "a number": (_map(lambda m: m.update({"norm.weight": 3})), "expected an index"),  # type: ignore[dict-item]
    "no map": (lambda text: "[]", "expected an index"),
    "no JSON": (lambda text: text[:-2], "expected JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    folder(tmp_path / "in")
    save_file({"norm.weight": torch.ones(64)}, tmp_path / "secret.safetensors")
    change, message = LIES[lie]
    index = tmp_path / "in" / INDEX
    index.write_text(change(index.read_text()))
    with pytest.raises(DataError, match=message):
        pack(tmp_path / "in", tmp_path / "m.sct")
    assert not (tmp_path / "m.sct").exists()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    state = folder(tmp_path / "in")
    save_file({name: state[name] for name in list(state)[1:]}, tmp_path / "in" / SECOND)
    with pytest.raises(DataError, match=r"'layers\.0\.weight' lies in .*00002"):
        pack(tmp_path / "in", tmp_path / "m.sct")


def test_folders_without_or_with_two_indices(tmp_path: Path) -> None:
    folder(tmp_path / "in")
    (tmp_path / "in" / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(DataError, match="expected one index"):
        pack(tmp_path / "in", tmp_path / "m.sct")
    for each in (tmp_path / "in").glob("*.index.json"):
        each.unlink()
    with pytest.raises(DataError, match="found 2 files and no index"):
        pack(tmp_path / "in", tmp_path / "m.sct")


LAYOUTS: dict[str, tuple[object, str]] = {
    "escapes": (
        {"files": [{"file": "../a.safetensors", "tensors": 2, "metadata": {}}]},
        "the plain name of a",
    ),
    "too many": ({"files": [{"file": "a.safetensors", "tensors": 3, "metadata": {}}]}, "2 are left for it"),
    "too few": ({"files": [{"file": "a.safetensors", "tensors": 1, "metadata": {}}]}, "the file holds 2"),
    "same name": (
        {"files": [{"file": f"{a}.safetensors", "tensors": 1, "metadata": {}} for a in "aA"]},
        "but for capitals",
    ),
    "header": (
        {"files": [{"file": "a.safetensors", "tensors": 2, "header": "{}"}]},
        "does not fit tensor 'v'",
    ),
    "metadata": (
        {"files": [{"file": "a.safetensors", "tensors": 2, "metadata": {"a": 1}}]},
        "object of texts",
    ),
    "index escapes": (
        {
            "files": [{"file": "a.safetensors", "tensors": 2, "metadata": {}}],
            "index": {"file": "../m.safetensors.index.json", "text": "{}"},
        },
        "the plain name of a",
    ),
    "index lies": (
        {
            "files": [{"file": "a.safetensors", "tensors": 2, "metadata": {}}],
            "index": {"file": INDEX, "text": '{"weight_map": {"v": "a.safetensors"}}'},
        },
        "'w' lies in 'a.safetensors'",
    ),
    "a list": ([], "expected a JSON object"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    layout, message = LAYOUTS[kind]
    with open(tmp_path / "m.sct", "wb+") as file:
        writer = Writer(file)
        writer.text("shards", tensors.text(json.dumps(layout).encode()))
        for name in "vw":
            writer.add(sct.Entry(name, "U8", (2,)), b"xy", sct.RAW, [b"xy"])
        writer.finish()
    with pytest.raises(FormatError, match=message):
        unpack(tmp_path / "m.sct", tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["m.sct"]


def test_a_damaged_file_leaves_no_folder(tmp_path: Path) -> None:
    """The checksum of the content is compared before the folder gets its name."""
    folder(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "m.sct")
    with open(tmp_path / "m.sct", "rb") as file:
        archive = Archive(file)
        records = [(r.entry, r.method, list(map(bytes, r.parts.values()))) for r in archive]
        text = archive.texts["shards"]
    with open(tmp_path / "bad.sct", "wb+") as out:
        writer = Writer(out)
        writer.text("shards", text)
        for entry, method, parts in records:
            writer.add(entry, b"other bytes", method, parts)
        writer.finish()
    with pytest.raises(FormatError, match="the decoded content has checksum"):
        unpack(tmp_path / "bad.sct", tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.sct", "in", "m.sct"]


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    folder(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "m.sct")
    with pytest.raises(OptionError, match="expected a new or an empty folder"):
        unpack(tmp_path / "m.sct", tmp_path / "in")
    (tmp_path / "empty").mkdir()
    unpack(tmp_path / "m.sct", tmp_path / "empty")
    assert (tmp_path / "empty" / INDEX).is_file()


def test_the_benchmark_of_large_checkpoints_runs_small() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bench_scale.py", "--size", "2e6"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "every file the same: True" in done.stdout


def test_a_file_of_a_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    folder(tmp_path / "in")
    before = files(tmp_path / "in")
    pack(tmp_path / "in" / FIRST, tmp_path / "one.sct")
    with pytest.raises(OptionError, match=f"{SECOND}: is one of the files of a checkpoint, as {INDEX} says"):
        unpack(tmp_path / "one.sct", tmp_path / "in" / SECOND)
    with pytest.raises(OptionError, match="is one of the files of a checkpoint"):
        sc.prune_checkpoint(tmp_path / "in" / FIRST, tmp_path / "in" / SECOND)
    assert files(tmp_path / "in") == before
    unpack(tmp_path / "one.sct", tmp_path / "in" / "other.safetensors")  # no index names it
