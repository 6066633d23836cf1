"""`pack` and `unpack` go on after a kill: the same bytes as undisturbed, and nothing is coded twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.container.ended_jobs import kill, left_by_ctrl_c

from secateur.container import format as sct
from secateur.container import resuming
from secateur.container.frame import Archive
from secateur.container.pack import pack, unpack
from secateur.container.resuming import ResumableJob, fingerprint_of_file, resumable
from secateur.core.json_text import Json
from secateur.errors import OptionError

PACK, UNPACK = "secateur.container.pack:pack", "secateur.container.pack:unpack"
WIDE = sct.SECTION_SIZE // 4096 + 1  # a tensor of so many rows of 1,024 floats is a section of its own


def folder(path: Path, files: int = 3) -> Path:
    """A checkpoint in files of two tensors each: a large one and a small one."""
    generator = torch.Generator().manual_seed(0)
    path.mkdir()
    where: dict[str, str] = {}
    for number in range(files):
        name = f"model-{number}.safetensors"
        tensors = {
            f"{number}.a": torch.randn(WIDE, 1024, generator=generator),
            f"{number}.b": torch.randn(3, generator=generator),
        }
        save_file(tensors, path / name)
        where |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


@pytest.mark.parametrize("name", ["owner", "written.sct", "out", "out/model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_folder_of_unfinished_work_with_a_link_is_refused_and_nothing_is_written_through_it(
    name: str, kind: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    save_file({"a": torch.zeros(3)}, tmp_path / "m.safetensors")
    pack(tmp_path / "m.safetensors", tmp_path / "whole.sct")
    for target in ("m.sct", "back.safetensors"):
        label = hashlib.sha256(target.encode()).hexdigest()[:16]
        place = tmp_path / f".secateur-{label}.job" / name
        place.parent.mkdir(parents=True)
        (tmp_path / f".secateur-{label}.job").chmod(0o700)
        if kind == "link":
            place.symlink_to(victim)
        elif kind == "hard link":
            place.hardlink_to(victim)
        else:
            os.mkfifo(place)
    with pytest.raises(OptionError, match="expected a file of unfinished work, found a link or a device"):
        pack(tmp_path / "m.safetensors", tmp_path / "m.sct")
    with pytest.raises(OptionError, match="found a link or a device"):
        unpack(tmp_path / "whole.sct", tmp_path / "back.safetensors")
    assert victim.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users and modes")
def test_a_folder_of_unfinished_work_that_others_can_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = hashlib.sha256(b"a").hexdigest()[:16]
    place = tmp_path / f".secateur-{label}.job"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(OptionError, match="nobody else can write to"), resumable(tmp_path / "a", "job"):
        pass
    place.chmod(0o755)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(OptionError, match="that is yours"), resumable(tmp_path / "a", "job"):
        pass
    with resumable(tmp_path / "new", "job"):  # as on a disk that keeps neither users nor modes
        pass
    monkeypatch.undo()
    before = os.umask(0)
    try:
        with resumable(tmp_path / "b", "job") as job:
            assert job.folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_file_that_goes_while_unfinished_work_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").write_text("half")
    monkeypatch.setattr(resuming.os, "walk", lambda folder: [(str(folder), [], ["gone", "part"])])
    resuming._check_plain(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_pack_and_unpack_go_on(workers: int, tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    pack(source, tmp_path / "whole.sct")
    kill(PACK, source, tmp_path / "m.sct", 3)
    seen: list[str] = []
    packed = pack(source, tmp_path / "m.sct", progress=lambda d, t, name: seen.append(name), workers=workers)
    assert seen == ["1.b", "2.a", "2.b"]
    assert (tmp_path / "m.sct").read_bytes() == (tmp_path / "whole.sct").read_bytes()
    assert packed.size == (tmp_path / "whole.sct").stat().st_size

    kill(UNPACK, tmp_path / "m.sct", tmp_path / "out", 3)
    seen.clear()
    unpack(
        tmp_path / "m.sct", tmp_path / "out", progress=lambda d, t, name: seen.append(name), workers=workers
    )
    assert seen == ["1.b", "2.a", "2.b"]
    for path in source.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name

    kill(UNPACK, tmp_path / "m.sct", tmp_path / "one.safetensors", 1)
    seen.clear()
    unpack(tmp_path / "m.sct", tmp_path / "one.safetensors", progress=lambda d, t, name: seen.append(name))
    assert seen[0] == "0.b"
    unpack(tmp_path / "m.sct", tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert not list(tmp_path.glob(".secateur*"))


ROW: dict[str, Json] = {"name": "a", "weights": 4, "kept": 2}


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "a", "weights": 4}],
        [{**ROW, "kept": "x"}],
        [{**ROW, "kept": True}],
        [{**ROW, "name": 3}],
        [{**ROW, "kept": [2]}],
        [ROW, {**ROW, "more": 1}],
    ],
)
def test_a_journal_with_other_rows_is_not_continued(rows: list[dict[str, Json]], tmp_path: Path) -> None:
    def begin(rows: list[dict[str, Json]]) -> None:
        with resumable(tmp_path / "a", "job", ("weights", "kept")) as job:
            job.mark(1, rows)
            raise KeyboardInterrupt

    for given, done in (([{}, ROW], 1), (rows, 0)):
        with pytest.raises(KeyboardInterrupt):
            begin(given)
        with resumable(tmp_path / "a", "job", ("weights", "kept")) as job:
            assert (job.done, job.rows) == (done, given if done else [])


@pytest.mark.parametrize(
    ("done", "state", "out"),
    [
        (1, {"content": 5}, None),  # the file is not there
        (1, {"content": 5}, b"short"),
        (1, {}, b"0" * (4 * 1024 * WIDE + 1000)),  # no checksum
        (2, {"content": 5}, b"0" * (4 * 1024 * WIDE + 1000)),  # in the middle of a section
        (9, {"content": 5}, b"0" * (4 * 1024 * WIDE + 1000)),  # more than there are
    ],
)
def test_a_journal_that_does_not_fit_begins_afresh(
    done: int, state: dict[str, Json], out: bytes | None, tmp_path: Path
) -> None:
    tensors = {"a": torch.zeros(WIDE, 1024), "b": torch.ones(3), "c": torch.ones(4)}
    save_file(tensors, tmp_path / "in.safetensors")
    pack(tmp_path / "in.safetensors", tmp_path / "m.sct")
    with open(tmp_path / "m.sct", "rb") as file:
        asked = repr(("unpack", True, Archive(file).content))
    files = {} if out is None else {"out/model.safetensors": out}
    left_by_ctrl_c(
        tmp_path / "out.safetensors", fingerprint_of_file(tmp_path / "m.sct", asked), done, state, files
    )
    seen: list[str] = []
    unpack(tmp_path / "m.sct", tmp_path / "out.safetensors", progress=lambda d, t, name: seen.append(name))
    assert seen == ["a", "b", "c"]
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_ctrl_c_before_anything_is_marked_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "in", files=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "m.sct", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    monkeypatch.setattr(resuming, "_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "m.sct", progress=stop)
    assert len(list(tmp_path.glob(".secateur*"))) == 1  # the first tensor is marked


def test_what_refers_to_earlier_tensors_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import secateur as sc

    model = torch.nn.Sequential(
        torch.nn.Linear(1024, WIDE, bias=False), torch.nn.Linear(1024, WIDE, bias=False)
    )
    model[1].weight = model[0].weight
    sc.save(model, tmp_path / "m.sct")
    monkeypatch.setattr(resuming, "_EVERY", 1)
    marked: list[int] = []
    monkeypatch.setattr(ResumableJob, "mark", lambda job, done, *_: marked.append(done))
    unpack(tmp_path / "m.sct", tmp_path / "out.safetensors")
    assert marked == []
