"""Hugging Face models that lose whole layers: their configuration follows, and `from_pretrained` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters import _fresh

pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IDS = {"input_ids": torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))}


def built(kind: str) -> nn.Module:
    _fresh._declare_torchvision()
    import transformers as t

    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        model = t.BertModel(t.BertConfig(**SIZES))
    elif kind == "qwen2":
        config = t.Qwen2Config(**SIZES, num_key_value_heads=1, use_sliding_window=True, max_window_layers=2)
        model = t.Qwen2ForCausalLM(config)
    else:
        model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=16, n_layer=4, n_head=2, n_positions=32))
    return model.eval()


def without(model: nn.Module, *paths: str) -> sc.Masks:
    return sc.Masks(
        {
            name: torch.zeros_like(parameter, dtype=torch.bool)
            for name, parameter in model.named_parameters()
            if any(name.startswith(path + ".") for path in paths)
        }
    )


@pytest.mark.parametrize(
    ("kind", "container", "bypassed"),
    [("bert", "encoder.layer", True), ("qwen2", "model.layers", False), ("gpt2", "transformer.h", False)],
)
def test_the_configuration_follows_and_the_folder_loads(
    kind: str, container: str, bypassed: bool, tmp_path: Path
) -> None:
    model = built(kind)
    small = sc.shrink(model, without(model, f"{container}.1"), IDS)
    assert small.plan.layers == {container: ("0", "2", "3")}
    assert small.proof.bypassed == ((f"{container}.1",) if bypassed else ())
    assert not small.unsaid
    assert model.config.num_hidden_layers == 4
    assert small.model.config.num_hidden_layers == 3
    if kind == "qwen2":
        assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
        assert small.model.config.layer_types == ["full_attention"] + ["sliding_attention"] * 2
        assert [layer.self_attn.layer_idx for layer in small.model.model.layers] == [0, 1, 2]
    again = small.plan.apply_(built(kind))
    again.load_state_dict(small.model.state_dict())
    assert again.config.to_dict() == small.model.config.to_dict()
    options = sc.HuggingFaceOptions(check=False, form="config")
    done = sc.save_pretrained(small, tmp_path / "small", IDS, options=options)
    assert done.form == "config"
    loaded = type(model).from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        got, want = loaded(**IDS)[0], small.model(**IDS)[0]
    assert torch.equal(got, want)


def test_a_language_model_without_a_layer_generates_with_its_cache() -> None:
    model = built("qwen2")
    small = sc.shrink(model, without(model, "model.layers.0", "model.layers.2"), IDS)
    options = {"max_new_tokens": 5, "do_sample": False}
    cached = small.model.generate(IDS["input_ids"], **options)
    assert torch.equal(cached, small.model.generate(IDS["input_ids"], use_cache=False, **options))


def test_layers_and_heads_leave_one_after_the_other() -> None:
    model = built("qwen2")
    first = sc.shrink(model, without(model, "model.layers.1"), IDS)
    masks = sc.prune(first.model, "l2", "channel", 0.5, example=IDS, skip=["*.self_attn.*"])
    second = sc.shrink(first.model, masks, IDS)
    assert (second.model.config.num_hidden_layers, second.model.config.intermediate_size) == (3, 12)
    made = first.plan.then(second.plan).apply_(built("qwen2"))
    made.load_state_dict(second.model.state_dict())
    with torch.no_grad():
        assert torch.equal(made(**IDS)[0], second.model(**IDS)[0])
    assert made.config.to_dict() == second.model.config.to_dict()
