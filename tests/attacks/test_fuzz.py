"""Half a minute of the attack on every reader, and that its judge sees what it is there to see."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks.fuzz import HONEST, TARGETS

from attacks import fuzz, process_state, targets, trees


@pytest.mark.slow
def test_half_a_minute_of_attacks() -> None:
    judge = fuzz.attack(30.0, seed=time.time_ns() % 1000)
    for target in TARGETS:
        assert judge.verdicts[f"{target.name}: refused"] > 5, target.name


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_few_attacks_on_each_reader(target: targets.Target) -> None:
    judge = fuzz.attack(0.0, seed=3, only=target.name)
    rng = random.Random(4)
    for _ in range(25):
        judge.one(target, target.make(rng))
    assert judge.verdicts[f"{target.name}: refused"] > 5
    if target.name in HONEST:
        assert target.run(HONEST[target.name]) == "taken"


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


def test_the_judge_sees_time_memory_and_foreign_errors() -> None:
    judge = fuzz.Judge()

    def slow(data: bytes) -> str:
        end = time.process_time() + 2.1
        while time.process_time() < end:
            pass
        return "taken"

    def large(data: bytes) -> str:
        return "taken" if bytearray(b"x" * (700 << 20)) else ""

    def foreign(data: bytes) -> str:
        return targets._attempt(lambda: {}["missing"])

    with pytest.raises(AssertionError, match="processor time"):
        judge.one(targets.Target("slow", lambda rng: b"", slow), b"")
    with pytest.raises(AssertionError, match="bytes of memory"):
        judge.one(targets.Target("large", lambda rng: b"", large), b"")
    with pytest.raises(KeyError):
        judge.one(targets.Target("foreign", lambda rng: b"", foreign), b"")


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
