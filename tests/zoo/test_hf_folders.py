"""Twelve families of Hugging Face models with uneven widths: saved, loaded without secateur, the same to the bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import secateur as sc

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hf

pytestmark = [pytest.mark.zoo, pytest.mark.slow]

FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "opt",
    "bert",
    "vit",
    "t5",
    "swin",
    "deit",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_uneven_widths_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    """`save_pretrained` compares outputs and generated tokens in a new process, and raises if a bit differs."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, example = hf.build(name)
    # Without a least number of units the smallest layers of these two would lose all of theirs.
    options = sc.PruneOptions(at_least=4) if name in ("swin", "deit") else None
    masks = sc.prune(model, "l1", "channel", sc.budget.Overall(0.5), example=example, options=options)
    small = sc.shrink(model, masks, example)
    assert small.unsaid
    done = sc.save_pretrained(small, tmp_path / name, example)
    assert (done.form, done.error) == ("code", 0.0)
    assert sum(p.numel() for p in small.model.parameters()) < 0.97 * sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("narrower", [False, True])
def test_fewer_layers_come_back_to_the_bit(name: str, narrower: bool, tmp_path: Path) -> None:
    """Fewer layers are a number of the configuration; where widths differ besides, the folder brings its own class.

    One layer of BERT and of Llama is left, whose narrower parts are numbers of the configuration too.
    """
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, example = hf.build(name)
    masks = sc.prune(model, "l1", "layer", 0.5, example=example)
    small = sc.shrink(model, masks, example)
    assert small.model.config.num_hidden_layers < model.config.num_hidden_layers
    if narrower:
        cut = sc.prune(small.model, "l1", "channel", sc.budget.Overall(0.5), example=example)
        small = sc.shrink(small.model, cut, example)
    done = sc.save_pretrained(small, tmp_path / name, example)
    assert (done.form, done.error) == ("code" if narrower and name == "gpt2" else "config", 0.0)
