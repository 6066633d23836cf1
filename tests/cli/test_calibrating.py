"""`--calibrate` of `shrink` and `pack`: what it changes in the files, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur import data


@pytest.fixture
def trained(tmp_path):
    """A small trained network, and its weights in a file."""
    torch.manual_seed(0)
    model = sc.models.build("lenet-300-100")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    images = data.load_for(model, "digits", limit=600).train
    for epoch in range(6):
        for x, y in images.batches(64, shuffle=True, epoch=epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    return model.eval(), path


def off(model, other):
    x, _ = data.load_for(model, "digits", limit=600).test.first(200)
    with torch.no_grad():
        return float((model(x) - other(x)).square().mean())


def test_pack_shares_by_what_the_model_answers(secateur, trained, tmp_path):
    model, path = trained
    plain, better = tmp_path / "plain.sct", tmp_path / "better.sct"
    assert secateur("pack", str(path), str(plain), "--bits", "1")[0] == 0
    words = ["--bits", "1", "--model", "lenet-300-100", "--calibrate", "digits", "--calibrate-images", "300"]
    words += ["--calibrate-passes", "1"]
    code, out, err = secateur("pack", str(path), str(better), *words)
    assert code == 0, err
    assert "better.sct" in out
    found = [sc.load(file, into=sc.models.build("lenet-300-100")).eval() for file in (plain, better)]
    assert off(model, found[1]) < 0.5 * off(model, found[0])
    assert all(
        len(layer.weight.unique()) <= 2 for layer in found[1].modules() if isinstance(layer, torch.nn.Linear)
    )


def test_shrink_makes_up_for_channels(secateur, trained, tmp_path):
    model, path = trained
    plain, better = tmp_path / "plain.sct", tmp_path / "better.sct"
    words = ["shrink", "lenet-300-100", str(path), "--budget", "0.6", "--repetitions", "1"]
    assert secateur(*words, "--out", str(plain))[0] == 0
    more = ["--calibrate", "digits", "--calibrate-images", "400", "--calibrate-passes", "1"]
    assert secateur(*words, "--out", str(better), *more)[0] == 0
    found = [sc.load(file, into=sc.models.build("lenet-300-100")).eval() for file in (plain, better)]
    assert off(model, found[1]) < 0.5 * off(model, found[0])


def test_what_pack_refuses(secateur, trained, tmp_path):
    _, path = trained
    words = ["pack", str(path), str(tmp_path / "a.sct")]
    code, _, err = secateur(*words, "--calibrate", "digits")
    assert code == 2
    assert "give --model NAME and --bits" in err
    code, _, err = secateur(*words, "--model", "lenet-300-100")
    assert code == 2
    assert "are for --calibrate DATA" in err


def test_factorise_refuses_passes(secateur):
    code, _, err = secateur("factorise", "lenet-300-100", "--calibrate-passes", "2")
    assert code == 2
    assert "--calibrate-passes is for shrink and pack" in err
