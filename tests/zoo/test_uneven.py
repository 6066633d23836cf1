"""BERT and Llama with another width in every layer: compared at two lengths and in both modes, saved and loaded."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import hf

Widths = list[tuple[int, int]]
SHARES = {
    "bert": {
        "encoder.layer.0.attention.self.query": 0.25,
        "encoder.layer.1.attention.self.query": 0.5,
        "encoder.layer.0.intermediate.dense": 0.75,
        "encoder.layer.1.intermediate.dense": 0.25,
    },
    "llama": {
        "model.layers.0.self_attn.q_proj": 0.5,
        "model.layers.0.mlp.gate_proj": 0.75,
        "model.layers.1.mlp.gate_proj": 0.25,
    },
}
"""What each group loses, by its first layer."""
WIDTHS: dict[str, Widths] = {"bert": [(48, 32), (32, 96)], "llama": [(32, 32), (64, 96)]}
"""Queries and hidden channels of each layer; both models have 64 and 128."""


def widths_of(model: nn.Module, name: str) -> Widths:
    if name == "bert":
        return [
            (each.attention.self.query.out_features, each.intermediate.dense.out_features)
            for each in model.encoder.layer
        ]
    return [
        (each.self_attn.q_proj.out_features, each.mlp.up_proj.out_features) for each in model.model.layers
    ]


def uneven(name: str) -> tuple[nn.Module, sc.Masks, sc.Shrunk, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, _ = hf.build(name)
    example = {"input_ids": torch.randint(3, 99, (2, 7))}
    masks = sc.prune(model, "l2", "channel", sc.budget.PerLayer(SHARES[name]), example=example)
    return model, masks, sc.shrink(model, masks, example), example


@pytest.mark.parametrize("name", list(SHARES))
def test_uneven_widths_compute_the_same_at_two_lengths_in_both_modes(name: str) -> None:
    model, masks, small, example = uneven(name)
    assert widths_of(small.model, name) == WIDTHS[name]
    assert {case.mode for case in small.proof.cases} == {"eager", "no_grad", "train"}
    assert len({case.shapes for case in small.proof.cases}) >= 2
    dense, cut = copy.deepcopy(model).double(), copy.deepcopy(small.model).double().eval()
    masks.apply_(dense)
    for inputs in (example, {"input_ids": torch.randint(3, 99, (3, 13))}):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                want, got = dense(**inputs)[0], cut(**inputs)[0]
            assert (got - want).abs().max() < 1e-12 * want.abs().max()


@pytest.mark.parametrize("name", list(SHARES))
def test_uneven_widths_are_saved_and_loaded_into_the_class(name: str, tmp_path: Path) -> None:
    _, _, small, example = uneven(name)
    sc.save(small.model, tmp_path / "small.sct", plan=small.plan)
    again = sc.load(tmp_path / "small.sct", into=hf.build(name)[0]).eval()
    assert widths_of(again, name) == WIDTHS[name]
    assert type(again) is type(small.model)
    with torch.no_grad():
        assert torch.equal(again(**example)[0], small.model(**example)[0])


def test_the_hidden_width_of_llama_is_cut_across_its_norms_when_asked() -> None:
    """The stream that every layer adds to, through the norms: embedding, attention, MLP and head follow; no claim."""
    torch.manual_seed(0)
    model, _ = hf.build("llama")
    example = {"input_ids": torch.randint(3, 99, (2, 7))}
    grain = sc.granularity.Channel(across_norm=True)
    masks = sc.prune(model, "l2", grain, 0.5, example=example)
    small = sc.shrink(model, masks, example, across_norm=True)
    inner = small.model.model
    assert inner.embed_tokens.embedding_dim == 32
    assert inner.norm.weight.shape == (32,)
    assert inner.layers[1].self_attn.q_proj.in_features == 32
    assert inner.layers[1].mlp.down_proj.out_features == 32
    assert small.model.lm_head.in_features == 32
    assert not small.proof.equality
    for length in (7, 12):
        with torch.no_grad():
            assert small.model(input_ids=torch.randint(3, 99, (1, length)))[0].shape == (1, length, 99)
    whole = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=example), example)
    assert whole.model.model.embed_tokens.embedding_dim == 64
    assert whole.proof.equality
