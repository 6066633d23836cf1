"""Random models through all verbs, and that their judge sees a wrong cut, a foreign exception, a changed model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks.models import Found, Judge
from attacks.random_models import PIECES, built, source_of

import secateur as sc
from attacks import models

SEED = 4  # a short one


def judged(seed: int = SEED) -> Found:
    found = Found()
    models.judge(seed, found)
    return found


def test_a_few_random_models_keep_the_promise() -> None:
    found = Found()
    assert models.attack([SEED, 14], 600.0, found) == 2
    assert not found.broken
    assert found.counts["networks"] == 2


def test_a_seed_gives_the_same_text_and_the_text_runs() -> None:
    seen: set[str] = set()
    for seed in range(60):
        made = source_of(seed)
        assert made == source_of(seed)
        seen |= set(made.pieces)
        with torch.no_grad():
            built(made, seed)(made.inputs(seed)[0])
    assert len(seen) > len(PIECES) * 2 / 3


def test_the_judge_sees_other_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **named: object) -> sc.Shrunk:
        small = shrink(*args, **named)
        with torch.no_grad():
            for parameter in small.model.parameters():
                parameter.add_(0.01)
        return small

    shrink = sc.shrink
    monkeypatch.setattr(models.sc, "shrink", wrong)
    assert any("outputs differ" in what for _, what in judged().broken)


def test_the_judge_sees_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **named: object) -> sc.Shrunk:
        small = shrink(*args, **named)
        with torch.no_grad():
            for parameter in small.model.parameters():
                parameter.fill_(float("nan"))
        return small

    shrink = sc.shrink
    monkeypatch.setattr(models.sc, "shrink", wrong)
    assert any("outputs differ" in what for _, what in judged().broken)


def test_the_judge_sees_other_exceptions_and_changed_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module, *args: object, **named: object) -> sc.Masks:
        next(model.parameters()).data.add_(1)
        raise KeyError("x")

    monkeypatch.setattr(models.sc, "prune", wrong)
    told = [what for _, what in judged().broken]
    assert any("KeyError" in what for what in told)
    assert any("the model was changed" in what for what in told)


def test_the_judge_sees_a_file_of_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, found = Judge(SEED, Found()), Found()
    judge.found = found
    masks = sc.prune(judge.net, "l2", "channel", 0.5, example=judge.x)
    small = sc.shrink(judge.net, masks, judge.x)
    monkeypatch.setattr(
        models.sc, "load", lambda path, into: replace(small, model=built(judge.made, 2)).model
    )
    judge._files(small)
    assert [what.partition(":")[0] for _, what in found.broken] == ["load"]
