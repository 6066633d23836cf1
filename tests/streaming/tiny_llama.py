"""A small Llama in several files, and sequences for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.adapters import _fresh

_fresh._declare_torchvision()  # transformers imports it, of whatever build it is
transformers = pytest.importorskip("transformers")

OUTSIDE = ["model.embed_tokens", "lm_head"]


def llama(
    path: Path, dtype: torch.dtype = torch.float32, layers: int = 3, tied: bool = False
) -> torch.nn.Module:
    """A small Llama with grouped queries, saved in several files; it is loaded from there again.

    The head of a `tied` one is its embedding, and no file has it.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return transformers.LlamaForCausalLM.from_pretrained(path).eval()


def batches(padded: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(3):
        tokens = torch.randint(0, 96, (4, 16), generator=generator)
        mask = torch.ones_like(tokens)
        if padded:
            mask[1, 10:] = 0
        found.append({"input_ids": tokens, "attention_mask": mask})
    return found


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return {
        name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()
    }
