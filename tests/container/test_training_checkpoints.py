"""Checkpoints as training writes them: the optimizer's tensors beside the weights, names with a wrapper before them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError


def trained(prefix=""):
    """A model, and what a training script saves of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 32)).sum().backward()
    optimizer.step()
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    return model, {"epoch": 3, "state_dict": weights, "optimizer": optimizer.state_dict()}


def test_what_an_optimizer_keeps_is_not_shared_as_weights(tmp_path):
    _, saved = trained()
    torch.save(saved, tmp_path / "a.pt")
    done = sc.pack(tmp_path / "a.pt", tmp_path / "a.sct", bits=3)
    assert done.tensors == 4
    assert "epoch" in done.left_out
    assert sum(name.startswith("optimizer.state.") for name in done.left_out) == 12
    whole = sc.pack(tmp_path / "a.pt", tmp_path / "b.sct")
    assert whole.tensors == 16  # without loss nothing is left out but what is no tensor


def test_an_optimizer_alone_is_packed_as_it_is(tmp_path):
    _, saved = trained()
    torch.save({"optimizer": saved["optimizer"]}, tmp_path / "a.pt")
    assert sc.pack(tmp_path / "a.pt", tmp_path / "a.sct", bits=3).tensors == 12


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_packed_checkpoint_loads_into_the_model_itself(tmp_path, prefix):
    model, saved = trained(prefix)
    torch.save({"state_dict": saved["state_dict"]}, tmp_path / "a.pt")
    sc.pack(tmp_path / "a.pt", tmp_path / "a.sct")
    fresh = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    sc.load(tmp_path / "a.sct", into=fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values()))


def test_names_that_are_no_wrapper_are_refused(tmp_path):
    model, saved = trained("other.")
    torch.save(saved["state_dict"], tmp_path / "a.pt")
    sc.pack(tmp_path / "a.pt", tmp_path / "a.sct")
    with pytest.raises(DataError, match=r"the file's tensor 'other\.0\.weight' is not in the model"):
        sc.load(tmp_path / "a.sct", into=model)
