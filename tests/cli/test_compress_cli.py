"""`secateur compress`: a trained model as far as the accuracy allows, from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc

COMPRESS = ("compress", "lenet-300-100", "weights.safetensors", "--data", "digits")


def weights(tmp_path):
    """A LeNet-300-100 that tells digits apart."""
    torch.manual_seed(0)
    model = sc.models.build("lenet-300-100")
    images, labels = sc.data.load_for(model, "digits").train.first(600)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")


def test_a_model_is_cut_as_far_as_half_of_the_test_images_allow(secateur, tmp_path):
    weights(tmp_path)
    words = ["compress", "lenet-300-100", "weights.safetensors", "--data", "digits", "--lost", "0.05"]
    code, out, err = secateur(*words, "--tries", "2", "--calibrate", "digits", "--calibrate-images", "200")
    assert code == 0, err
    assert " by evaluate, so at least 0." in err
    assert "attempt 2 " in err
    assert "0.5 of the multiply-accumulates, refitted: 0." in err
    assert "on the test data, which no decision used: dense 0." in out
    assert "equal to the masked model" in out
    assert "small.sct: " in out
    small = sc.models.build("lenet-300-100")
    sc.load(tmp_path / "small.sct", into=small)
    dense = sc.models.build("lenet-300-100")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())


def test_the_smallest_file_as_plain_data(secateur, tmp_path):
    weights(tmp_path)
    words = [*COMPRESS, "--lost", "0.05", "--json"]
    code, out, err = secateur(
        *words, "--goal", "small", "--tries", "1", "--bits", "4", "--quiet", "--out", "s.sct"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["goal"] == "small"
    assert found["file_bytes"] == (tmp_path / "s.sct").stat().st_size == found["attempts"][0]["file_bytes"]
    assert {row["context"]["variant"] for row in found["measurements"]} == {"dense", "result"}


def test_something_must_judge(secateur):
    code, _, err = secateur("compress", "lenet-300-100")
    assert code == 2
    assert "expected something that judges; give --data (a dataset with labels) or --evaluate" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--out", "folder"), "a folder is written of a Hugging Face model"),
        (("--out", "folder", "--goal", "small"), "folder: --goal small writes one file"),
        (("--goal", "small", "--round-to", "8"), "--round-to is for --goal fast"),
        (("--bits", "3"), "--bits is for --goal small"),
        (("--calibrate-passes", "2"), "--calibrate-passes are steps on inputs"),
    ],
)
def test_what_has_no_effect_or_no_place_is_refused(secateur, words, text):
    code, _, err = secateur("compress", "lenet-300-100", "--data", "digits", *words)
    assert code == 2
    assert text in err


def test_no_attempt_that_holds_has_its_exit_code_and_writes_nothing(secateur, tmp_path):
    weights(tmp_path)
    words = [*COMPRESS, "--lost", "0", "--tries", "1"]
    code, _, err = secateur(*words, "--goal", "small", "--bits", "1")
    assert code == 3, err
    assert "none of 1 attempts held" in err
    assert not (tmp_path / "small.sct").exists()
