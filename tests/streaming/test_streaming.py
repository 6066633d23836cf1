"""Checkpoints tensor by tensor: the same numbers as in memory, a killed run goes on, little memory is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.container.ended_jobs import kill, left_by_ctrl_c
from torch import nn

import secateur as sc
from secateur.container import format as sct
from secateur.container.pack import pack, unpack
from secateur.container.resuming import resumable, resumed_writer
from secateur.container.shards import open_source
from secateur.core.atomic_files import sweep, temporary_name
from secateur.errors import NothingToDoError, OptionError, PatternError
from secateur.streaming.in_flight import Item, in_flight
from secateur.streaming.pruned import StreamOptions, prune_checkpoint
from secateur.streaming.shared import share_checkpoint

INDEX = "model.safetensors.index.json"


def model() -> nn.Module:
    """Linear layers, a convolution and a norm, in two dtypes, with ties among the weights."""
    torch.manual_seed(1)
    parts = {
        "embed": nn.Linear(24, 40, bias=False),
        "a": nn.Linear(40, 64),
        "norm": nn.LayerNorm(64),
        "b": nn.Linear(64, 32, bias=False),
        "conv": nn.Conv2d(4, 8, 3),
    }
    found = nn.Sequential(OrderedDict(parts))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.copy_((parameter * 40).round() / 40)  # many weights are equal
            if name.startswith("b."):
                parameter[:4] = 0
    found.b.bfloat16()
    return found


def folder(path: Path, net: nn.Module | None = None, files: int = 3) -> Path:
    """The model as a folder of several files with an index, and a configuration beside them."""
    state = dict((net or model()).state_dict())
    names, where = list(state), {}
    path.mkdir()
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        mine = names[number * len(names) // files : (number + 1) * len(names) // files]
        save_file({name: state[name].contiguous() for name in mine}, path / file, {"format": "pt"})
        where |= dict.fromkeys(mine, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "config.json").write_text("{}")
    (path / "notes.md").write_text("not copied")
    return path


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return {
        name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()
    }


def masked(net: nn.Module, masks: sc.Masks) -> dict[str, torch.Tensor]:
    return masks.apply(net).state_dict()


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


CHOICES = [
    ("magnitude", "element", 0.5),
    ("l2", "filter", 0.3),
    ("l1", "kernel", sc.budget.PerLayer({"*": 0.25, "b": 0.75})),
    ("random", "element", 0.4),
    ("magnitude", "element", sc.budget.ErdosRenyi(0.6)),
    ("magnitude", "element", sc.budget.Percentile(0.5)),
    ("magnitude", "element", sc.budget.StdDev(0.8)),
    ("magnitude", "element", sc.budget.NOfM(2, 4)),
    ("magnitude", "element", sc.budget.Overall(0.55)),
    ("lamp", "element", sc.budget.Overall(0.7)),
    ("l2", "filter", sc.budget.Overall(0.2)),
]


@pytest.mark.parametrize(("criterion", "granularity", "budget"), CHOICES)
def test_the_masks_are_those_of_the_model_in_memory(
    criterion: str, granularity: str, budget: object, tmp_path: Path
) -> None:
    net = model()
    skip = ["conv"] if isinstance(budget, sc.budget.NOfM) else None
    masks = sc.prune(
        net, criterion, granularity, budget, skip=skip, options=sc.PruneOptions(allow_collapse=True, seed=3)
    )
    done = prune_checkpoint(
        folder(tmp_path / "in"),
        tmp_path / "out",
        criterion,
        granularity,
        budget,
        skip=skip,
        options=StreamOptions(seed=3, workers=2, memory=1 << 20),
    )
    assert_equal(state_of(tmp_path / "out"), masked(net, masks))
    assert {row["name"]: row["kept"] for row in done.rows} == {row.name: row.kept for row in masks.summary()}


def test_a_folder_keeps_its_files_and_configuration(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    done = prune_checkpoint(source, tmp_path / "out", budget=0.5)
    names = sorted(path.name for path in source.iterdir())
    names.remove("notes.md")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert done.left_out == ("notes.md",)
    assert (tmp_path / "out" / INDEX).read_bytes() == (source / INDEX).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_one_sct_file_unpacks_to_the_same_folder(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    prune_checkpoint(source, tmp_path / "out", budget=0.5)
    prune_checkpoint(source, tmp_path / "m.sct", budget=0.5)
    unpack(tmp_path / "m.sct", tmp_path / "back")
    for path in (tmp_path / "back").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_sharing_is_that_of_the_model_in_memory(tmp_path: Path) -> None:
    net = model()
    shared = sc.share(net, bits=3)
    done = share_checkpoint(folder(tmp_path / "in"), tmp_path / "out", bits=3)
    assert_equal(state_of(tmp_path / "out"), shared.model.state_dict())
    for row in done.rows:
        kept = {each.name: each for each in shared.summary()}[row["name"]]
        assert row["distortion"] == pytest.approx(kept.distortion * kept.kept / kept.numel)


def test_sharing_into_one_file_has_the_bytes_of_pack(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    share_checkpoint(source, tmp_path / "a.sct", bits=3)
    pack(source, tmp_path / "b.sct", bits=3)
    assert (tmp_path / "a.sct").read_bytes() == (tmp_path / "b.sct").read_bytes()


def test_a_single_file_becomes_a_single_file(tmp_path: Path) -> None:
    net = model()
    save_file(dict(net.state_dict()), tmp_path / "m.safetensors")
    prune_checkpoint(tmp_path / "m.safetensors", tmp_path / "p.safetensors", budget=0.5)
    assert_equal(load_file(tmp_path / "p.safetensors"), masked(net, sc.prune(net, budget=0.5)))


def test_a_model_on_the_meta_device_tells_what_shapes_cannot(tmp_path: Path) -> None:
    """Without it a transposed convolution counts as a convolution, and other filters go."""
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Embedding(10, 4))
    masks = sc.prune(net, "l2", "filter", 0.5)
    save_file(dict(net.state_dict()), tmp_path / "m.safetensors")
    skip_init = nn.utils.skip_init
    parts = (
        skip_init(nn.ConvTranspose2d, 4, 6, 3, device="meta"),
        skip_init(nn.Embedding, 10, 4, device="meta"),
    )
    meta = nn.Sequential(*parts)
    target = tmp_path / "p.safetensors"
    prune_checkpoint(
        tmp_path / "m.safetensors", target, "l2", "filter", 0.5, options=StreamOptions(model=meta)
    )
    assert_equal(load_file(target), masked(net, masks))


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("target", ["out", "m.sct"])
def test_a_killed_run_goes_on(target: str, tmp_path: Path) -> None:
    wide = (
        1024 if target == "m.sct" else 16
    )  # a .sct file is marked at the end of a section, here of each tensor
    net = nn.Sequential(*(nn.Linear(1024, wide + 1, bias=False) for _ in range(4)))
    assert 4 * 1024 * (wide + 1) > sct.SECTION_SIZE or target == "out"
    source = folder(tmp_path / "in", net, files=4)
    prune_checkpoint(source, tmp_path / f"whole-{target}")
    kill("secateur.streaming.pruned:prune_checkpoint", source, tmp_path / target, 2)
    seen: list[str] = []
    done = prune_checkpoint(source, tmp_path / target, progress=lambda d, t, name: seen.append(name))
    assert seen == ["2.weight", "3.weight"]
    assert [row["name"] for row in done.rows] == [f"{number}.weight" for number in range(4)]
    pairs = [(tmp_path / target, tmp_path / f"whole-{target}")]
    if target == "out":
        pairs = [(path, tmp_path / "whole-out" / path.name) for path in (tmp_path / target).iterdir()]
        assert len(pairs) == 6
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)
    assert not list(tmp_path.glob(".secateur*"))


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_changed_checkpoint_or_other_options_begin_afresh(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    kill("secateur.streaming.pruned:prune_checkpoint", source, tmp_path / "out", 2)
    seen: list[str] = []
    prune_checkpoint(source, tmp_path / "out", budget=0.4, progress=lambda d, t, name: seen.append(name))
    assert len(seen) == len(model().state_dict())
    assert_equal(state_of(tmp_path / "out"), masked(model(), sc.prune(model(), budget=0.4)))


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"fingerprint": 1}'])
def test_a_damaged_journal_begins_afresh(damage: bytes, tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    left_by_ctrl_c(tmp_path / "m.sct", "job", 1, {"written": 10**9}, {"written.sct": b"short"})
    (hidden,) = tmp_path.glob(".secateur*.job")
    (hidden / "journal.json").write_bytes(damage)
    prune_checkpoint(source, tmp_path / "m.sct")
    prune_checkpoint(source, tmp_path / "other.sct")
    assert (tmp_path / "m.sct").read_bytes() == (tmp_path / "other.sct").read_bytes()


def test_a_journal_that_vouches_for_more_than_there_is_begins_afresh(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    prune_checkpoint(source, tmp_path / "whole.sct")
    lie = {"written": 10**9, "sections": [], "crc": 1, "content": 1, "count": 1, "decoded": 1, "version": 2}
    with open_source(source) as checkpoint:
        left_by_ctrl_c(tmp_path / "m.sct", "job", 1, lie, {"written.sct": b"short"})
        with resumable(tmp_path / "m.sct", "job") as job, resumed_writer(job, checkpoint) as (writer, begun):
            assert (job.done, begun) == (0, False)
            writer.finish()


def test_two_processes_do_not_write_one_target(tmp_path: Path) -> None:
    with resumable(tmp_path / "m.sct", "job") as job:
        (job.folder / "owner").write_text(str(os.getppid()))
        with pytest.raises(OptionError, match=f"process {os.getppid()} is writing it"):
            prune_checkpoint(folder(tmp_path / "in"), tmp_path / "m.sct")


def test_what_a_killed_unpack_left_is_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = temporary_name(tmp_path / "out", folder=True)
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    mine = temporary_name(tmp_path / "out", folder=True)
    stranger = tmp_path / ".secateur-notes.folder.part"
    for path in (left, mine, stranger):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    sweep(tmp_path, again=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, stranger.name])


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    net = model()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = float("nan")
    source = folder(tmp_path / "in", net)
    for target in ("out", "m.sct"):
        with pytest.raises(sc.errors.NonFiniteError, match=r"conv\.weight"):
            share_checkpoint(source, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_needs_more_than_one_tensor_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    with pytest.raises(OptionError, match=r"criterion Wanda.* needs data"):
        prune_checkpoint(source, tmp_path / "out", "wanda")
    with pytest.raises(OptionError, match=r"granularity Channel.* follows the forward"):
        prune_checkpoint(source, tmp_path / "out", "l2", "channel")
    with pytest.raises(OptionError, match="compares units of several tensors"):
        prune_checkpoint(source, tmp_path / "out", budget=sc.budget.Isomorphic(0.5))
    with pytest.raises(PatternError, match="'nothing'"):
        prune_checkpoint(source, tmp_path / "out", skip="nothing")
    with pytest.raises(NothingToDoError, match="removes no weight"):
        prune_checkpoint(source, tmp_path / "out", budget=0.0)
    with pytest.raises(OptionError, match="expected a new or an empty folder"):
        prune_checkpoint(source, source)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_several_are_at_work_but_never_more_than_the_memory_allows() -> None:
    at_work: list[int] = []
    highest = 0

    def read(number: int) -> int:
        nonlocal highest
        at_work.append(number)
        highest = max(highest, len(at_work))
        return number

    def done(found: int) -> int:
        at_work.remove(found)
        return found

    items = [Item(10, lambda n=n: read(n), lambda n: n) for n in range(20)]
    assert [done(found) for found in in_flight(items, memory=30, workers=8)] == list(range(20))
    assert highest == 3


def test_a_checkpoint_is_listed(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    report = sc.inspect_checkpoint(source)
    state = model().state_dict()
    assert {row.name for row in report.rows} == set(state)
    for row in report.rows:
        assert row.zeros == int((state[row.name] == 0).sum()), row.name
        assert row.distinct == len(state[row.name].unique()) + _signed_zero(state[row.name]), row.name
        assert row.largest == float(state[row.name].abs().max())
    assert report.left_out == ("config.json", "notes.md")
    assert json.loads(report.to_json())["zeros"] == report.zeros
    assert "b.weight" in report.table()


def _signed_zero(value: torch.Tensor) -> int:
    """0.0 and -0.0 are one value but two words."""
    zeros = value[value == 0]
    return int(bool(zeros.signbit().any()) and not bool(zeros.signbit().all()))


def test_experts_kept_in_one_tensor_are_said_to_take_no_part(tmp_path: Path) -> None:
    tensors = {"fc.weight": torch.randn(8, 8), "experts.gate_up": torch.randn(4, 8, 8)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.warns(
        UserWarning, match=r"80% of the numbers take no part: 1 tensors, such as 'experts.gate_up'"
    ):
        prune_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", budget=0.5)
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["experts.gate_up"], tensors["experts.gate_up"])
