"""Half a minute of the attack on every reader, and that its judge sees what it is there to see."""

from __future__ import annotations

import gc
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks.fuzz import TARGETS
from attacks.judge import Judge, Tally
from attacks.sittings import Sittings

from attacks import fuzz, judge, process_state, targets, trees


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


@pytest.mark.slow
def test_half_a_minute_of_attacks(tmp_path: Path) -> None:
    """In a process of its own: what other tests have left behind here would count as a change."""
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "attacks.fuzz", "--seconds", "30", "--seed", "7"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for target in TARGETS:
        found = re.search(
            rf"^{re.escape(target.name)} +[\d,]+ inputs: +([\d,]+) refused", run.stdout, re.MULTILINE
        )
        assert found is not None, run.stdout
        assert int(found[1].replace(",", "")) > 5, target.name


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_few_attacks_on_each_reader(target: targets.Target, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz._warm_up([target])
    referee, rng = Judge(), random.Random(4)
    try:
        with referee.batch():
            for _ in range(25):
                referee.one(target, target.make(rng))
    finally:
        referee.close()
    assert referee.tally.verdicts[f"{target.name}: refused"] > 5


def test_the_judge_sees_what_a_plan_once_did() -> None:
    before, kept = process_state.snapshot(), nn.Linear.__init__.__defaults__
    try:
        nn.Linear.__init__.__defaults__ = (False, None, None)
        assert any("Linear" in name for name in process_state.changes(before, process_state.snapshot()))
    finally:
        nn.Linear.__init__.__defaults__ = kept
    assert process_state.changes(before, process_state.snapshot()) == []
    state = torch.get_rng_state()
    torch.rand(1)
    assert process_state.changes(before, process_state.snapshot()) == ["torch random"]
    torch.set_rng_state(state)
    with open(__file__) as file:
        changed = process_state.changes(before, process_state.snapshot())
    assert file.closed
    assert changed == ["descriptors"]


def _loop(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Planted(nn.Module):
    """A class whose forward has a default that a planted fault changes."""

    def forward(self, x: int = 1) -> int:
        return x


def _defaults() -> None:
    Planted.forward.__defaults__ = (2,)


_LEAKED: list[socket.socket] = []
FAULTS = {
    "foreign": (lambda: {}["missing"], "KeyError: 'missing'"),
    "slow": (lambda: _loop(0.3), "0.3. s of processor time, at most 0.2 are"),
    "endless": (lambda: _loop(60), "TooLong: not ended after 3.0 s"),
    "large": (lambda: bytearray(b"x") * (100 << 20), "bytes of memory for an input of"),
    "class default": (_defaults, r"the process has changed.*Planted.*replayed: "),
    "descriptor": (
        lambda: _LEAKED.append(socket.socket()),
        r"the process has changed: \['descriptors'\]",
    ),
    "random": (lambda: torch.rand(1), r"the process has changed: \['torch random'\]"),
    "environment": (lambda: os.environ.update(PLANTED="1"), r"the process has changed: \['environment'\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_its_input_is_kept(fault, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "MOST_SECONDS", 0.2)  # 2 and 20, but for the time of this test
    monkeypatch.setattr(judge, "_ENDLESS", 3.0)
    monkeypatch.setattr(fuzz, "_replayed", lambda folder, name: f"; replayed: {len(list(folder.iterdir()))}")
    break_it, told = FAULTS[fault]
    state = torch.get_rng_state()

    def run(data: bytes) -> str:
        if data == b"7":
            break_it()
        return "taken"

    # A large allocation that came before must not hide a later one.
    earlier = bytearray(b"x") * (300 << 20)
    del earlier
    referee, count = Judge(), iter(range(1_000_000))
    target = targets.Target("planted", lambda rng: str(next(count)).encode(), run)
    try:
        broken = fuzz._piece(referee, target, "seed", time.monotonic, time.monotonic() + 20)
    finally:
        referee.close()
        torch.set_rng_state(state)
        os.environ.pop("PLANTED", None)
        Planted.forward.__defaults__ = (1,)
        while _LEAKED:
            _LEAKED.pop().close()
    assert re.search(told, broken), broken
    kept = {path.read_bytes() for path in (tmp_path / "fuzz-failure-planted").iterdir()}
    assert b"7" in kept
    assert len(kept) == (fuzz._BATCH if fault == "class default" else 1)  # the others are known at once


def test_without_a_fault_a_piece_is_whole_and_nothing_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    referee = Judge()
    target = targets.Target("honest", lambda rng: rng.randbytes(5), lambda data: "refused")
    try:
        assert fuzz._piece(referee, target, "seed", time.monotonic, time.monotonic() + 60) == ""
    finally:
        referee.close()
    assert referee.tally.verdicts == {"honest: refused": fuzz.PIECE}
    assert list(tmp_path.iterdir()) == []


def test_a_replay_names_the_input_that_changes_a_class(tmp_path, monkeypatch, capsys) -> None:
    for number in range(4):
        (tmp_path / f"{number}.bin").write_bytes(b"%d" % number)
    run = {b"2": _defaults}
    target = targets.Target("planted", lambda rng: b"", lambda data: run.get(data, str)() or "taken")
    monkeypatch.setattr(fuzz, "TARGETS", [target])
    try:
        assert fuzz.replay(tmp_path, "planted") == 1
    finally:
        Planted.forward.__defaults__ = (1,)
    assert capsys.readouterr().out.startswith("2.bin: the process has changed: ['class ")
    (tmp_path / "2.bin").unlink()
    assert fuzz.replay(tmp_path, "planted") == 0
    assert capsys.readouterr().out == "3 inputs: nothing was found\n"


def test_sittings_add_up_while_the_sources_stay(tmp_path) -> None:
    path = tmp_path / "kept.json"
    first, second = Sittings(path, "a"), Sittings(path, "a")
    assert [first.claim(["x", "y"]), second.claim(["x", "y"]), first.claim(["x", "y"])] == [
        ("x", 0),
        ("y", 0),
        ("x", 1),
    ]
    first.done(Tally(Counter({"x: refused": 3}), 0.5, 10, {"x": 4.0}))
    second.done(Tally(Counter({"x: refused": 4, "y: taken": 1}), 0.2, 70, {"x": 4.0, "y": 1.0}), ["y: broke"])
    counts = Counter({"x: refused": 7, "y: taken": 1})
    assert first.total() == (Tally(counts, 0.5, 70, {"x": 8.0, "y": 1.0}), ["y: broke"])
    # x has had 2 turns of 4 s, so y comes to 4 before x comes again
    assert [first.claim(["x", "y"]) for _ in range(3)] == [("y", 1), ("y", 2), ("y", 3)]
    assert Sittings(path, "b").total() == (Tally(), [])


def test_two_sittings_of_the_attack_go_on_where_the_first_ended(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "PIECE", 4)
    monkeypatch.setattr(fuzz, "_BATCH", 2)
    seen: list[bytes] = []
    target = targets.Target("noted", lambda rng: rng.randbytes(8), lambda data: seen.append(data) or "taken")
    monkeypatch.setattr(fuzz, "TARGETS", [target])
    monkeypatch.setattr(fuzz, "_warm_up", lambda chosen: None)
    kept = Sittings(tmp_path / "kept.json", "a")
    for sitting in (1, 2):
        monkeypatch.setattr(fuzz.time, "monotonic", lambda: 2.0 * (len(seen) >= 4 * sitting) + sitting * 10)  # noqa: B023
        tally, found = fuzz.attack(1.0, 0, kept=kept)
    assert tally.verdicts == {"noted: taken": 8}
    assert len(set(seen)) == 8
    assert found == []


def test_mutations_reach_every_place_of_a_tree() -> None:
    rng, tree = random.Random(1), {"a": [1, {"b": 2}], "c": "d"}
    found = {trees.text_of(trees.mutate(tree, rng), rng) for _ in range(400)}
    assert len(found) > 200
    assert tree == {"a": [1, {"b": 2}], "c": "d"}


def test_the_judge_does_not_take_what_python_caches_in_a_protocol_for_a_change() -> None:
    @runtime_checkable
    class HasSize(Protocol):
        def size(self) -> int: ...

    before = process_state.snapshot(kinds=[HasSize])
    assert not isinstance(3, HasSize)
    assert process_state.changes(before, process_state.snapshot(kinds=[HasSize])) == []
    HasSize.__annotations__["size"] = int  # a real change is one
    assert process_state.changes(before, process_state.snapshot(kinds=[HasSize])) != []
