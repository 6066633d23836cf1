"""Heads become smaller: a position leaves every head alike, and attention keeps the scale it had."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, ProofError
from secateur.structure.cut import repair
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.hf.rotary import divisors, said

_SPEC = importlib.util.spec_from_file_location("head_size_cases", Path(__file__).with_name("cases.py"))
assert _SPEC
assert _SPEC.loader
cases = importlib.util.module_from_spec(_SPEC)
sys.modules["head_size_cases"] = cases
_SPEC.loader.exec_module(cases)


class Attention(nn.Module):
    """As people write it: fused queries, keys and values, sizes worked out from the input."""

    def __init__(self, how: str, heads: int = 4) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (
            t.view(b, n, self.heads, c // self.heads).transpose(1, 2) for t in self.qkv(x).split(c, dim=2)
        )
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "multiplied":
            y = F.softmax((q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1))), -1) @ v
        else:
            y = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(k.size(-1)), -1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, c))


def net(how: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), Attention(how), Attention(how), nn.Linear(32, 5)).eval()
    return model, torch.randn(2, 9, 8)


@pytest.mark.parametrize("how", ["fused", "multiplied", "divided"])
def test_attention_keeps_its_scale(how: str, tmp_path: Path) -> None:
    model, x = net(how)
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert not small.locked
    assert [tuple(p.shape) for p in small.model[1].parameters()] == [(48, 32), (48,), (32, 16), (32,)]
    assert ShrinkPlan.from_json(small.plan.to_json()) == small.plan
    small.save(tmp_path / "small.safetensors")
    again = sc.load_shrunk(tmp_path / "small.safetensors", into=net(how)[0]).eval()
    assert torch.equal(again(x), small.model.eval()(x))
    longer = torch.randn(3, 11, 8)  # another batch and another length
    assert small.model(longer).shape == (3, 11, 5)


def test_a_scale_that_cannot_be_kept_locks_the_size_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair.Repairs, "_old_scales", lambda *a: iter(()))
    monkeypatch.setattr(repair, "_old_numbers", lambda *a: iter(()))
    reason = "computes a number from this width, which would be"
    model, x = net("multiplied")
    with pytest.raises(NothingToDoError, match=reason):
        sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    model, x = net("fused")  # here the scale is known to be that of queries and keys: values are free
    masks = sc.prune(model, "l1", "head_size", 0.5, example=x)
    assert any(reason in lock.reason for lock in sc.explain(model, x, head_size=True).locks)
    small = sc.shrink(model, masks, x)
    assert not small.locked
    assert small.proof.error < 1e-12
    assert small.model[1].qkv.out_features == 32 + 32 + 16


def test_the_proof_sees_a_wrong_scale() -> None:
    class Hidden(Attention):
        """A scale no trace can see: it is a tensor."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=2))
            scale = torch.sqrt(torch.tensor(q.size(-1), dtype=q.dtype))
            return self.out((F.softmax(q @ k.transpose(-2, -1) / scale, -1) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 32), Hidden("")).eval(), torch.randn(2, 9, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ProofError, match=r"'1\.qkv' breaks it"):
        sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("need_weights", [True, False])
def test_torch_attention(need_weights: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model, x = Own().eval(), torch.randn(2, 5, 32)
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.25, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.attention.num_heads, small.model.attention.head_dim) == (4, 6)


def test_rotary_pairs_leave_together_with_their_frequency() -> None:
    case = cases.CASES["GroupedQueries"]
    torch.manual_seed(0)
    model, x = case.build().eval(), case.example()
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    kept = small.plan.keep["frequencies"][0]
    assert len(kept) == 1
    for name, heads in (("q.weight", 4), ("k.weight", 2)):
        assert list(small.plan.keep[name][0]) == [
            head * 4 + i for head in range(heads) for i in (kept[0], kept[0] + 2)
        ]
    assert small.model.v.weight.shape == (4, 16)
    assert small.model.out.weight.shape == (16, 8)


class Turned(nn.Module):
    """Angles that are worked out from positions alone, or heads that are normalised: their size is fixed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads = how, 2
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "norm":
            q, k = self.norm(q), self.norm(k)
        else:
            angles = torch.arange(n).outer(torch.arange(8)).to(x.dtype)
            q, k = q * angles.cos(), k * angles.cos()
        weights = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("how", ["norm", "turned"])
def test_what_fixes_the_size_of_queries_leaves_values_free(how: str) -> None:
    torch.manual_seed(0)
    model, x = Turned(how).eval(), torch.randn(2, 5, 16)
    groups = [group.name for group in sc.explain(model, x, head_size=True).groups]
    assert groups == ["v"]
    reasons = {
        lock.reason for lock in sc.explain(model, x, head_size=True).locks if "q.weight" in str(lock.axes)
    }
    assert "the size of these heads meets something that cannot be cut" in reasons
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.q.out_features, small.model.v.out_features, small.model.out.in_features) == (16, 8, 8)


def test_fewer_heads_and_then_smaller_ones() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    heads = sc.prune(layer, "l2", "head", 0.5, example=x)
    sizes = sc.prune(layer, "l2", "head_size", 0.5, example=x)
    both = heads.merge(sizes)
    fewer = sc.shrink(layer, both, x)
    assert (fewer.model.self_attn.num_heads, fewer.model.self_attn.head_dim) == (2, 8)
    smaller = sc.shrink(fewer.model, fewer.masks, x)
    assert (smaller.model.self_attn.num_heads, smaller.model.self_attn.head_dim) == (2, 4)
    assert smaller.proof.error < 1e-12


def test_sizes_and_the_rest_in_one_cut_rounded() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 64)
    sizes = sc.prune(layer, "l2", "head_size", 0.7, example=x)
    rest = sc.prune(layer, "l2", sc.granularity.Channel(heads=False), 0.5, example=x)
    small = sc.shrink(layer, sizes.merge(rest), x, round_to=4)
    assert small.model.self_attn.head_dim == 8  # 5 of 16 stay, the next multiple of 4
    assert small.model.linear1.out_features == 32


def test_a_model_without_heads_says_so() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(NothingToDoError, match="no attention heads that can become smaller"):
        sc.prune(model, "l1", "head_size", 0.5, example=x)


def test_frequencies_in_a_configuration() -> None:
    kept = [1.0, 10000 ** (-3 / 8)]
    usual = [1.0, 10000 ** (-1 / 2)]
    assert [u / f for u, f in zip(usual, divisors(kept, 10000.0))] == pytest.approx(kept, rel=1e-6)

    class Config:
        rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0}

    assert "change with the length" in said(Config(), [nn.Module()], 1.0)
    Config.rope_parameters = None  # type: ignore[assignment]
    assert "no field for the rotary frequencies" in said(Config(), [nn.Module()], 1.0)


class OneHead(nn.Module):
    """Attention of one head, as image models write it: no axis of heads anywhere."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.o(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        return self.o(F.softmax(q @ k.transpose(-1, -2) / math.sqrt(k.size(-1)), -1) @ v)


@pytest.mark.parametrize("fused", [False, True])
def test_queries_and_keys_of_one_head_become_smaller(fused: bool) -> None:
    torch.manual_seed(0)
    model, x = OneHead(fused).eval(), torch.randn(2, 5, 16)
    found = sc.explain(model, x, head_size=True)
    assert [(row.name, row.count) for row in found.groups] == [("q", 16), ("v", 16)]
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert (small.model.q.out_features, small.model.k.out_features) == (8, 8)
    assert small.proof.holds


@pytest.mark.parametrize("how", ["fused", "multiplied", "divided"])
def test_one_head_of_a_packed_layer_becomes_smaller(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), Attention(how, heads=1), nn.Linear(32, 5)).eval()
    x = torch.randn(2, 9, 8)
    small = sc.shrink(model, sc.prune(model, "l1", "head_size", 0.5, example=x), x)
    assert small.model[1].qkv.out_features < 96
    assert small.proof.holds


def test_explain_says_what_keeps_queries_and_keys_of_one_head_whole() -> None:
    found = sc.explain(OneHead(fused=False).eval(), torch.randn(2, 5, 16))
    row = next(lock for lock in found.locks if ("q.weight", 0) in lock.axes)
    assert "granularity 'head_size' removes these positions" in row.reason
    assert (row.operator, row.positions) == ("bmm", 64)
    assert {name for name, _ in row.axes} == {"q.weight", "q.bias", "k.weight", "k.bias"}
    assert found.prunable < 0.5  # queries and keys are not counted


@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_explain_leaves_out_no_axis(name: str) -> None:
    """Every axis of a parameter that the forward uses is in a group or in a row that says why it stays."""
    case = cases.CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    found = sc.explain(model, case.example())
    said = {(member[0], member[1]) for row in found.groups for member in row.members}
    said |= {axis for row in found.locks for axis in row.axes}
    for parameter, value in model.named_parameters():
        if parameter not in found.untouched:
            axes = {(parameter, axis) for axis, size in enumerate(value.shape[:2]) if size > 1}
            assert axes <= said, parameter
