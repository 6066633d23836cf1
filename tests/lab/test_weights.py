"""Weights of every kind of file into a model, and what is said of those that do not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur as sc
from secateur.errors import DataError, FormatError, MaskMismatchError
from secateur.lab.weights import load_weights, read_weights


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return nn.Linear(3, 2).state_dict()


def test_every_kind_of_file(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    sc.save(state, tmp_path / "a.sct")
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": state}, tmp_path / "a.ckpt")
    torch.save({"state_dict": state, "args": {"lr": 0.1}}, tmp_path / "b.ckpt")
    for file in tmp_path.iterdir():
        model = nn.Linear(3, 2)
        load_weights(model, file)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()), file.name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_as_wrappers_left_them(tmp_path, state, prefix):
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "a.safetensors")
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.weight, state["weight"])


def test_a_module_that_is_called_module(tmp_path, state):
    model = nn.ModuleDict({"module": nn.Linear(3, 2)})
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model["module"].weight, state["weight"])


def test_what_does_not_fit_is_said(tmp_path, state):
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 99)
    torch.save([1, 2], tmp_path / "list.pt")
    save_file({"weight": state["weight"]}, tmp_path / "part.safetensors")
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file(state | {"bias": torch.zeros(5)}, tmp_path / "long.safetensors")
    for file, error, message in (
        (
            "whole.pt",
            DataError,
            r"it holds a torch\.nn\.modules\.linear\.Linear, and to make one would run code",
        ),
        ("junk.pt", DataError, r"junk\.pt: could not be read with weights_only"),
        ("list.pt", FormatError, "expected a mapping from names to tensors, got list"),
        ("part.safetensors", MaskMismatchError, "'bias' of Linear missing"),
        ("more.safetensors", MaskMismatchError, "Linear has no tensor 'more'"),
        ("long.safetensors", MaskMismatchError, r"'bias': expected shape \(2,\) as in Linear, got \(5,\)"),
    ):
        with pytest.raises(error, match=message):
            load_weights(nn.Linear(3, 2), tmp_path / file)


def test_reading_gives_the_tensors_alone(tmp_path, state):
    torch.save({"epoch": 3, "model": state}, tmp_path / "a.ckpt")
    assert list(read_weights(tmp_path / "a.ckpt")) == ["weight", "bias"]
