"""JSON, headers, masks, scans and checkpoints from strangers; temporary files; names on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks.tiny_recipe import tiny
from torch import nn

from secateur import data as datasets
from secateur.adapters.promises import serve_check
from secateur.container.archive import save
from secateur.container.checkpoint import open_checkpoint
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.pack import pack, unpack
from secateur.container.save_options import SaveOptions
from secateur.core import atomic_files
from secateur.core.atomic_files import atomic_open, atomic_path
from secateur.core.masks import Masks
from secateur.core.measurement import Measurements
from secateur.core.terminal import printable
from secateur.errors import DataError, FormatError, OptionError, SecateurError
from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.training.checkpoint import read as read_checkpoint
from secateur.sensitivity.scan_result import Cell, Scan


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


FIELD = {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}
HEADERS = [
    b"",
    b"[]",
    b"null",
    b"7",
    b'"w"',
    b"\xff\xfe",
    b"{" * 90_000,
    b"[" * 90_000,
    b'{"a":' * 90_000,
    json.dumps({"w": None}).encode(),
    json.dumps({"w": []}).encode(),
    json.dumps({"w": {**FIELD, "dtype": 3}}).encode(),
    json.dumps({"w": {**FIELD, "dtype": ["F32"]}}).encode(),
    json.dumps({"w": {**FIELD, "dtype": "F31"}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [-1]}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [1.5]}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [True, True]}}).encode(),
    json.dumps({"w": {**FIELD, "shape": "2"}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [[2]]}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [1 << 62, 1 << 62]}}).encode(),
    json.dumps({"w": {**FIELD, "shape": [1] * 40 + [2]}}).encode(),
    json.dumps({"w": {**FIELD, "data_offsets": [0]}}).encode(),
    json.dumps({"w": {**FIELD, "data_offsets": [2, 0]}}).encode(),
    json.dumps({"w": {**FIELD, "data_offsets": ["0", "2"]}}).encode(),
    json.dumps({"w": {**FIELD, "data_offsets": [1, 3]}}).encode(),
    json.dumps({"w": {**FIELD, "data_offsets": [0, 1 << 70]}}).encode(),
    json.dumps({"w": {**FIELD, "more": 1}}).encode(),
    json.dumps({"w": FIELD, "v": FIELD}).encode(),
    b'{"w":{"dtype":"BOOL","shape":[NaN],"data_offsets":[0,2]}}',
    b'{"__metadata__":7,"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    b'{"__metadata__":{"a":7},"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    b'{"\\ud800":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    b'{"__metadata__":{"a":"\\ud800"},"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    b'{"__metadata__":{"\\uDC00":"a"},"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    b'{"a\\u0000b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
    ('{"' + "n" * 5000 + '":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}').encode(),
    b'{"w":{"dtype":"BOOL","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,2]}}',
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_safetensors_headers_end_in_a_data_error(header: bytes, tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.safetensors", header, b"\1\0")
    with pytest.raises((DataError, OptionError)):
        pack(path, tmp_path / "a.sct")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(FormatError):
        Masks.load(path)


def test_masks_of_other_bytes_than_0_and_1(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"secateur-masks": "1"}, "w": FIELD}).encode()
    assert Masks.load(with_header(tmp_path / "a", header, b"\1\0"))["w"].tolist() == [True, False]
    for data in (b"\1\2", b"\1", b"\1\0\0", b""):
        with pytest.raises(FormatError):
            Masks.load(with_header(tmp_path / "a", header, data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"cells": 3, "dense": 1.0}',
        '{"cells": [3], "dense": 1.0}',
        '{"cells": [{}], "dense": 1.0}',
        '{"cells": [], "dense": "much"}',
        '{"cells": [], "dense": true}',
        '{"cells": [], "dense": 1.0, "costs": {"macs": {"a": "b"}}}',
        '{"cells": [], "dense": 1.0, "costs": []}',
        '{"cells": [], "dense": 1.0, "more": 1}',
        '{"cells": [{"name": 1, "sparsity": 0.5, "units": 1, "removed": 1, "weights": 1, "value": 1}], "dense": 1}',
        '{"cells": [{"name": "a", "sparsity": 0.5, "units": 1.5, "removed": 1, "weights": 1, "value": 1}], "dense": 1}',
    ],
)
def test_scans_end_in_a_data_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text(text)
    with pytest.raises(DataError, match="a scan"):
        Scan.load(tmp_path / "scan.json")


def test_a_scan_with_nan_comes_back(tmp_path: Path) -> None:
    scan = Scan(
        (Cell("a", 0.5, 2, 1, 3, float("nan")), Cell("b", 0.5, 2, 1, 3, 1)), 0.9, costs={"macs": {"a": 1.0}}
    )
    scan.save(tmp_path / "scan.json")
    assert repr(Scan.load(tmp_path / "scan.json")) == repr(scan)
    (tmp_path / "scan.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        Scan.load(tmp_path / "scan.json")


@pytest.mark.parametrize(
    "text", ["", "{}", "[3]", "[" * 100_000, "[{}]", '[{"name": "a", "value": "x"}]', '[{"x": 1}]']
)
def test_measurements_end_in_an_error_of_ours(text: str) -> None:
    with pytest.raises((DataError, OptionError)):
        Measurements.from_json(text)


# -- .pt files -----------------------------------------------------------------------------------------------
def refused(path: Path, tmp_path: Path, message: str) -> None:
    began = time.process_time()
    with pytest.raises(DataError, match=message):
        pack(path, tmp_path / "out.sct")
    assert time.process_time() - began < 10
    assert not (tmp_path / "out.sct").exists()


def test_expanded_tensors_are_refused_and_can_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 28)}, path)
    assert path.stat().st_size < 4096
    refused(path, tmp_path, r"its tensors take 1,073,741,824 bytes.*max_bytes=1073741824")
    torch.save({"w": torch.zeros(1).expand(1 << 25)}, path)
    refused(path, tmp_path, "its tensors take")
    assert pack(path, tmp_path / "out.sct", max_bytes=1 << 27).tensors == 1


def test_values_that_refer_to_each_other_are_refused(tmp_path: Path) -> None:
    laughs: list = [torch.zeros(1)]
    for _ in range(40):
        laughs = [laughs, laughs]
    torch.save(laughs, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", tmp_path, "too many for its file|twice|two tensors|weights_only")
    circle: list = [torch.zeros(1)]
    circle.append(circle)
    torch.save(circle, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", tmp_path, "nested more than|two tensors|weights_only")
    torch.save({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", tmp_path, r"two tensors have the name 'a\.b'")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "b.pt", tmp_path, "is compressed")
    (tmp_path / "c.pt").write_bytes(b"\x80\x02" + b"(" * 5000)
    refused(tmp_path / "c.pt", tmp_path, "could not be read with weights_only")


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"w": Bad()}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", tmp_path, "run code from the file")
    assert not (tmp_path / "made").exists()


# -- writers follow the readers' rules -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a\0b", (1,), "zero character"),
        ("n" * 4097, (1,), "4097 bytes, expected at most 4096"),
        ("ü" * 2049, (1,), "4098 bytes, expected at most 4096"),
        ("\ud800", (1,), "UTF-8"),
        ("w", (1,) * 33, "33 dimensions, expected at most 32"),
    ],
)
def test_nothing_is_written_that_no_reader_takes(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        save({name: torch.zeros(shape)}, tmp_path / "a.sct")
    torch.save({name: torch.zeros(shape)}, tmp_path / "a.pt")
    with pytest.raises(OptionError, match=message):
        pack(tmp_path / "a.pt", tmp_path / "a.sct")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_plan_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    for plan in ("", "{}", '{"format":"secateur-plan","version":1}', "[" * 100_000):
        with pytest.raises(Exception, match="plan"):
            save({"w": torch.zeros(1)}, tmp_path / "a.sct", plan=plan)
    assert list(tmp_path.iterdir()) == []


# -- the terminal --------------------------------------------------------------------------------------------
def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    name = "conv\x1b]0;owned\x07\x1b[2J\u202e\n\r\u2028\x9b1m"
    save({name: torch.ones(3)}, tmp_path / "a.sct")
    table = inspect(tmp_path / "a.sct").table()
    assert all(each.isprintable() or each == "\n" for each in table)
    assert "conv\\x1b]0;owned\\x07\\x1b[2J\\u202e\\n\\r\\u2028\\x9b1m" in table
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    done = subprocess.run(
        [sys.executable, "-c", "from secateur.cli import main; main()", "inspect", "no\x1b[31mfile.sct"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "\x1b" not in done.stdout + done.stderr
    assert "no\\x1b[31mfile.sct" in done.stderr


# -- folders with pipes, which have no end ------------------------------------------------------------------
def _parquet(folder: Path) -> object:
    os.mkfifo(folder / "train.parquet")
    return datasets.load(folder, cache_dir=folder)


def _saved(folder: Path) -> object:
    os.mkfifo(folder / "state.json")
    return datasets.load(folder, cache_dir=folder)


def _table(folder: Path) -> object:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    os.mkfifo(folder / "a.arrow")
    return datasets.load(folder, cache_dir=folder)


def _index(folder: Path) -> object:
    os.mkfifo(folder / "model.safetensors.index.json")
    return pack(folder, folder.with_name("a.sct"))


def _shard(folder: Path) -> object:
    os.mkfifo(folder / "model.safetensors")
    return pack(folder, folder.with_name("a.sct"))


def _promised(folder: Path) -> object:
    (folder / "m.onnx").write_bytes(b"")
    beside = folder / "m.onnx.check"
    beside.mkdir()
    (beside / "promise.json").write_text("{}")
    os.mkfifo(beside / "example.safetensors")
    return serve_check(folder / "m.onnx")


def _training(folder: Path) -> object:
    os.mkfifo(folder / "checkpoint.safetensors")
    return read_checkpoint(folder / "checkpoint.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("read", [_parquet, _saved, _table, _index, _shard, _promised, _training])
def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    folder, found = tmp_path / "sent", list[object]()
    folder.mkdir()

    def work() -> None:
        try:
            found.append(read(folder))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits for the pipe"
    assert isinstance(found[0], SecateurError), found[0]


# -- temporary files -----------------------------------------------------------------------------------------
def test_the_umask_is_obeyed_and_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(mask: int) -> int:
        raise AssertionError("the umask belongs to the whole process")

    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", never)
            with atomic_open(tmp_path / "a") as file:
                file.write(b"whole")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_no_part_of_a_run_changes_the_umask_for_other_threads(tmp_path: Path, monkeypatch) -> None:
    changed: list[int] = []
    real = os.umask
    monkeypatch.setattr(os, "umask", lambda mask: changed.append(mask) or real(mask))
    before = real(0o027)
    try:
        text = tiny('[[step]]\nkind = "prune"\n[[step]]\nkind = "pack"\n')
        run(Recipe.parse(text), Store(tmp_path / "runs"))
    finally:
        real(before)
    assert changed == []
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    wide = {path.name: oct(path.stat().st_mode) for path in files if path.stat().st_mode & 0o027}
    assert wide == {}


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from secateur.core.atomic_files import atomic_open\n"
        "with atomic_open(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".secateur-")
    machine, mine = left.name.split("-")[1], f"-{os.getpid()}-"
    dead = left.name.split("-")[2]
    kept = [
        left.name.replace(f"-{dead}-", mine),  # a process that runs
        left.name.replace(machine, "0" * 8),  # another machine's, a moment ago
        ".a.bin.x1y2.part",
        "secateur.part",
        f".secateur-{machine}-{dead}-short.part",
    ]
    old = left.name.replace(machine, "1" * 8)  # another machine's, long ago
    for name in [*kept, old]:
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / old, (0, 0))
    (tmp_path / left.name.replace("part", "part.d")).mkdir()
    atomic_files._swept.clear()
    with atomic_path(tmp_path / "b.onnx") as scratch:
        assert scratch.suffix == ".onnx"
        scratch.write_bytes(b"whole")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {*kept, "b.onnx", left.name.replace("part", "part.d")}


# -- limits --------------------------------------------------------------------------------------------------
def test_limits_name_what_raises_them(tmp_path: Path) -> None:
    path = tmp_path / "a.sct"
    save({f"w{i}": torch.zeros(10 << 20) for i in range(3)}, path)  # 120 MB from some bytes
    for read in (load, inspect, lambda path, **more: unpack(path, tmp_path / "a.safetensors", **more)):
        with pytest.raises(FormatError, match=r"max_bytes=\d+ \(--max-bytes"):
            read(path)
        read(path, max_bytes=200 << 20)
    model = nn.ParameterDict({f"w{i}": nn.Parameter(torch.ones(10 << 20)) for i in range(3)})
    load(path, into=model)  # whoever builds a model has the memory for it
    assert not model["w0"].any()
    with pytest.raises(OptionError, match="max_bytes"):
        load(path, max_bytes=-1)
    few = torch.zeros(5 << 20)
    few[::5000] = 0.5
    save({"w": few}, path, options=SaveOptions(coder="fast"))  # five million coded weights in 40 kB
    with pytest.raises(FormatError, match="coded weights are more than"):
        load(path)
    load(path, into=nn.ParameterDict({"w": nn.Parameter(torch.ones(5 << 20))}))


def test_a_pad_of_other_bytes_than_zero_is_refused(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from attacks import hostile

    save({"w": torch.zeros(60 << 20)}, tmp_path / "a.sct")
    data = (tmp_path / "a.sct").read_bytes()
    _, _, end = next(each for each in hostile.sections(data) if data[each[0]] == 4)
    bad = hostile.reseal(data[: end - 1] + b"\1" + data[end:])
    (tmp_path / "b.sct").write_bytes(bad)
    with pytest.raises(FormatError, match="expected zeros in a pad section"):
        inspect(tmp_path / "b.sct", max_bytes=1 << 30)
    assert inspect(tmp_path / "a.sct", max_bytes=1 << 30).size == len(data)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    for name, data in (("a.pt", b""), ("b.pt", b"PK\3\4" + bytes(60)), ("c.safetensors", b"\0" * 7)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError), open_checkpoint(tmp_path / name):
            pass
