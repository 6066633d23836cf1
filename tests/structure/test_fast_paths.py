"""Torch's fused encoder layer, taken without gradients, expects heads as wide as the model: a cut layer avoids it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import secateur as sc


def cut(model: nn.Module, example: object) -> sc.Shrunk:
    masks = sc.prune(model, "l2", "channel", 0.5, example=example)
    return sc.shrink(model, masks, example)


def masked(model: nn.Module, small: sc.Shrunk, example: object) -> nn.Module:
    masks = sc.prune(model, "l2", "channel", 0.5, example=example)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).masked_fill_(~mask, 0.0)
    return dense


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_runs_without_gradients(norm_first: bool) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first).double().eval()
    x = torch.randn(2, 5, 32).double()
    small = cut(model, x)
    assert small.model.self_attn.num_heads == 2
    dense = masked(model, small, x)
    with torch.no_grad():
        assert torch.allclose(small.model(x), dense(x), atol=1e-12)
        assert torch.allclose(small.model(x[:, :3]), dense(x[:, :3]), atol=1e-12)
    assert torch.allclose(small.model(x), dense(x), atol=1e-12)


def test_an_encoder_with_a_padding_mask_runs_without_gradients() -> None:
    """The whole encoder makes nested tensors of a padding mask; padded positions are 0 then."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double().eval()
    x, padding = torch.randn(2, 5, 32).double(), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    small = cut(model, x)
    dense = masked(model, small, x)
    with torch.no_grad():
        wanted = dense(x, src_key_padding_mask=padding)
        assert not wanted[1, 3:].any()
        assert torch.allclose(small.model(x, src_key_padding_mask=padding), wanted, atol=1e-12)


def test_a_decoder_runs_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 2).double().eval()
    x, memory = torch.randn(2, 5, 32).double(), torch.randn(2, 7, 32).double()
    small = cut(model, (x, memory))
    dense = masked(model, small, (x, memory))
    with torch.no_grad():
        assert torch.allclose(small.model(x, memory), dense(x, memory), atol=1e-12)


def test_a_cut_attention_is_cut_again_copied_and_pickled() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 8, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    once = cut(model, x)
    twice = cut(once.model, x)
    assert (once.model.self_attn.num_heads, twice.model.self_attn.num_heads) == (4, 2)
    for again in (copy.deepcopy(twice.model), pickle.loads(pickle.dumps(twice.model))):
        with torch.no_grad():
            assert torch.equal(again(x), twice.model(x))


def test_planning_walks_the_model_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.structure.cut import fit

    walks: list[nn.Module] = []

    def counted(model: nn.Module) -> dict[str, nn.Module]:
        walks.append(model)
        return dict(model.named_modules(remove_duplicate=False))

    monkeypatch.setattr(fit, "modules_of", counted)
    numbers = []
    for depth in (2, 12):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)])
        x = torch.randn(1, 4)
        walks.clear()
        cut(model, x)
        numbers.append(len(walks))
    assert numbers[0] == numbers[1]
