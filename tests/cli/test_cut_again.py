"""Verbs that are given a .sct file of a model cut before: what they write loads into a freshly built model."""

from __future__ import annotations

import json

import pytest
import torch

import secateur as sc

NAME = "lenet-300-100"


@pytest.fixture
def cut(secateur, tmp_path):
    """A file of LeNet-300-100 without a third of its channels, and its widths."""
    torch.manual_seed(0)
    model = sc.models.build(NAME)
    example = torch.randn(2, 1, 28, 28)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.33, example=example), example)
    sc.save(small, tmp_path / "cut.sct")
    return [parameter.shape for parameter in small.model.parameters()]


def loaded(path):
    return sc.load(path, into=sc.models.build(NAME))


def test_shrink_joins_both_plans(secateur, tmp_path, cut):
    code, out, err = secateur(
        "shrink", NAME, "cut.sct", "--budget", "0.5", "--out", "again.sct", "--repetitions", "1", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["proof"]["holds"]
    widths = [parameter.shape[0] for parameter in loaded(tmp_path / "again.sct").parameters()]
    assert widths == [101, 101, 33, 33, 10, 10]


def test_pack_on_images_keeps_the_plan(secateur, tmp_path, cut):
    words = ("--model", NAME, "--bits", "3", "--calibrate", "digits", "--calibrate-images", "50")
    code, _, err = secateur("pack", "cut.sct", "few.sct", *words)
    assert code == 0, err
    model = loaded(tmp_path / "few.sct")
    assert [parameter.shape for parameter in model.parameters()] == cut
    assert len(next(model.parameters()).unique()) <= 8


def test_compress_goes_on_from_the_plan(secateur, tmp_path, cut):
    words = ("--data", "digits", "--lost", "0.9", "--tries", "1", "--quiet")
    code, _, err = secateur("compress", NAME, "cut.sct", *words, "--out", "fast.sct")
    assert code == 0, err
    fast = loaded(tmp_path / "fast.sct")
    assert sum(p.numel() for p in fast.parameters()) < sum(shape.numel() for shape in cut)
    code, _, err = secateur("compress", NAME, "fast.sct", *words, "--goal", "small", "--out", "both.sct")
    assert code == 0, err
    both = loaded(tmp_path / "both.sct")
    assert [p.shape for p in both.parameters()] == [p.shape for p in fast.parameters()]
    assert (tmp_path / "both.sct").stat().st_size < (tmp_path / "fast.sct").stat().st_size / 4


def test_low_ranks_come_before_a_cut(secateur, tmp_path, cut):
    code, _, err = secateur("factorise", NAME, "cut.sct", "--keep", "0.5", "--out", "low.sct")
    assert code == 2
    assert "cut.sct holds a cut one; factorise first, then prune and shrink" in err
    assert not (tmp_path / "low.sct").exists()
