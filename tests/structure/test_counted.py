"""What divides by a count goes on counting the zeros that left: means over channels, standardised weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.errors import ProofError
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.trace import fixed_count_norms as counted


class Response(nn.Module):
    """Global response normalisation of the hidden channels of an MLP, over channels last."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
        self.again = nn.Linear(6, 16) if shared else None
        self.weight, self.bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.up(x)) if self.again is None else F.gelu(self.up(x)) + self.again(x)
        size = x.norm(p=2, dim=1, keepdim=True)
        size = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return self.down(x + self.bias + self.weight * (x * size))


class Standard(nn.Conv2d):
    """A convolution whose weight is standardised each time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6, weight=self.gain)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def standard(*sizes: int) -> Standard:
    layer = Standard(*sizes)
    layer.gain = nn.Parameter(torch.rand(sizes[1]) + 0.5)
    return layer


def residual(squash: nn.Module) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = standard(3, 8, 3), standard(8, 8, 1), standard(8, 8, 1)
            self.squash, self.fc = squash, nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.squash(self.stem(x))
            return self.fc((x + self.b(self.squash(self.a(x)))).mean((2, 3)))

    torch.manual_seed(0)
    return Net().eval()


def test_a_mean_over_the_channels_of_one_layer_keeps_its_count() -> None:
    torch.manual_seed(0)
    model, x = Response().eval(), torch.randn(2, 5, 6)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.up.out_features, small.model.down.in_features) == (8, 8)
    assert ShrinkPlan.from_json(small.plan.to_json()) == small.plan
    small.model(x).sum().backward()
    assert small.model.up.weight.grad is not None
    assert torch.equal(copy.deepcopy(small.model)(x), small.model(x))


def test_a_mean_over_channels_of_two_layers_that_are_added_keeps_its_count() -> None:
    torch.manual_seed(0)
    model, x = Response(shared=True).eval(), torch.randn(2, 5, 6)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.up.out_features, small.model.again.out_features) == (8, 8)


class Block(nn.Module):
    """Attention with a norm over all queries and one over all keys, and a gated MLP with a norm before its last layer.

    The stream that both add to is normalised as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.q_norm, self.k_norm, self.inner = nn.RMSNorm(16), nn.RMSNorm(16), nn.RMSNorm(32)
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (
            part.view(*x.shape[:2], -1, 4).transpose(1, 2)
            for part in (self.q_norm(self.q(y)), self.k_norm(self.k(y)), self.v(y))
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(self.inner(F.silu(self.gate(x)) * self.up(x)))
        return self.head(self.last(x))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(20, 16), Block()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.block(self.words(ids))


def test_norms_inside_a_block_count_and_the_stream_stays_whole() -> None:
    torch.manual_seed(0)
    model, ids = Language().eval(), torch.randint(20, (2, 7))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    explained = sc.explain(model, ids)
    assert {group.count for group in explained.groups} == {4, 32}  # heads, and the gated width
    assert any(lock.path == "block.norm" and "mean" in lock.reason for lock in explained.locks)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=ids), ids)
    assert small.proof.error < 1e-12
    block = small.model.block
    assert (block.q.out_features, block.inner.normalized_shape, block.down.in_features) == (8, (16,), 16)
    assert (block.norm.normalized_shape, block.last.normalized_shape) == ((16,), (16,))


class Saved(Language):
    """With the method by which a Hugging Face model is known."""

    def save_pretrained(self, folder: str) -> None:
        raise AssertionError("shrink saves nothing")


def test_a_configuration_has_no_field_for_norms_that_count_what_left() -> None:
    torch.manual_seed(0)
    model, ids = Saved().eval(), torch.randint(20, (2, 7))
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=ids), ids)
    assert small.proof.holds
    assert small.unsaid == "its configuration has no field for means with a fixed count"
    assert "from_pretrained alone cannot load it: its configuration" in str(small)
    plain = Language().eval()
    assert not sc.shrink(plain, sc.prune(plain, "l1", "channel", 0.5, example=ids), ids).unsaid


def test_standardised_weights_keep_their_count() -> None:
    model, x = residual(nn.ReLU()), torch.randn(2, 3, 8, 8)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert [tuple(m.weight.shape[:2]) for m in (small.model.stem, small.model.a, small.model.b)] == [
        (4, 3), (4, 4), (4, 4),
    ]  # fmt: skip


def test_what_is_0_on_neither_side_is_locked() -> None:
    """Removed inputs have weights after standardising: what comes in must be 0, which a sigmoid's is not."""
    model, x = residual(nn.Sigmoid()), torch.randn(2, 3, 8, 8)
    explained = sc.explain(model, x)
    assert any("0 neither in the weight nor in the input" in lock.reason for lock in explained.locks)
    assert "a" not in {group.name for group in explained.groups}


def test_the_count_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(counted.COUNTED, "mean", lambda func, args, kwargs, *sizes: func(*args, **kwargs))
    torch.manual_seed(0)
    model, x = Response().eval(), torch.randn(2, 5, 6)
    with pytest.raises(ProofError, match="does not compute what the masked one does"):
        sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)


def test_a_layer_norm_counts_by_hand() -> None:
    """Of 1, 4, 0, 0 the mean is 1.25 and the variance (0.0625 + 7.5625 + 2 * 1.5625) / 4 = 2.6875."""
    x = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    found = counted.layer_norm(F.layer_norm, (x, (2,)), {"eps": 0.0}, 4, 2)
    assert found[0].tolist() == pytest.approx([-0.25 / 2.6875**0.5, 2.75 / 2.6875**0.5], rel=1e-12)
    found = counted.rms_norm(F.rms_norm, (x, (2,)), {"eps": 0.75}, 4, 2)  # 17 / 4 + 0.75 = 5
    assert found[0].tolist() == pytest.approx([1 / 5**0.5, 4 / 5**0.5], rel=1e-12)
    assert counted.layer_norm(F.layer_norm, (x, (2,)), {}, 8, 4) is None
    short = counted.layer_norm(F.layer_norm, (x.bfloat16(), (2,)), {}, 4, 2)
    assert short.dtype == torch.bfloat16


NORMS = {
    "layer": lambda: nn.LayerNorm(8),
    "layer, no bias": lambda: nn.LayerNorm(8, bias=False),
    "layer, plain": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(8),
    "rms, plain": lambda: nn.RMSNorm(8, eps=0.1, elementwise_affine=False),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_over_the_channels_of_one_layer_keeps_its_count(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), NORMS[kind](), nn.Linear(8, 2)).eval()
    for parameter in model[2].parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 5, 4)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert small.model[2].normalized_shape == (4,)
    assert isinstance(small.model[2], (nn.LayerNorm, nn.RMSNorm))
    assert ShrinkPlan.from_json(small.plan.to_json()) == small.plan
    again = sc.shrink(small.model, sc.prune(small.model, "l1", "channel", 0.5, example=x), x)
    assert again.proof.error < 1e-12
    assert again.model[2].normalized_shape == (2,)


class Gated(nn.Module):
    """A unit of a gMLP: half of the hidden width is normalised and mixed along the tokens, and scales the other."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.up, self.norm, self.tokens, self.down = (
            nn.Linear(6, 16), nn.LayerNorm(8), nn.Linear(5, 5), nn.Linear(8, 6),
        )  # fmt: skip
        self.more = nn.Linear(8, 8) if residual else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        v = self.norm(v)
        v = v if self.more is None else v + self.more(v)
        return self.down(u * self.tokens(v.transpose(1, 2)).transpose(1, 2))


def test_half_of_a_hidden_width_is_normalised() -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(2, 5, 6)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.up.out_features, small.model.down.in_features) == (8, 4)


def test_a_stream_that_others_add_to_stays_whole_behind_its_norm() -> None:
    model, x = Gated(residual=True).eval(), torch.randn(2, 5, 6)
    explained = sc.explain(model, x)
    assert not explained.groups
    assert any("normalisation over the axis" in lock.reason for lock in explained.locks)


class Reduced(nn.Module):
    """Attention of one head whose keys and values come from a normalised image of a lower resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.small, self.norm, self.kv, self.out = (
            nn.Linear(8, 8), nn.Conv2d(8, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(8, 8),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, 1, -1).transpose(1, 2)
        image = self.small(x.transpose(1, 2).reshape(b, c, 4, 4)).reshape(b, c, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(image)).reshape(b, -1, 2, 1, c).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_keys_from_a_normalised_smaller_image() -> None:
    """The counting norm hands its result on as torch's does, and the scale of the one head stays what it was."""
    torch.manual_seed(0)
    model, x = Reduced().eval(), torch.randn(2, 16, 8)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert not small.locked
    assert (small.model.small.out_channels, small.model.q.out_features) == (4, 4)
    assert (small.model.kv.in_features, small.model.kv.out_features) == (4, 8)


@pytest.mark.parametrize("kind", ["mean", "weights"])
def test_what_counts_goes_on_when_more_leaves(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "mean":
        model, x = Response().eval(), torch.randn(2, 5, 6)
    else:
        model, x = residual(nn.ReLU()), torch.randn(2, 3, 8, 8)
    for _ in range(2):
        small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
        assert small.proof.error < 1e-12
        model = small.model
    assert (model.up if kind == "mean" else model.a).weight.shape[0] == (4 if kind == "mean" else 2)


def test_what_is_changed_in_place_still_comes_from_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.model[2].normalized_shape == (4,)


def test_two_widths_in_one_forward_each_keep_their_count() -> None:
    """One goes from 8 to 4, the other from 4 to 2: the second is no sequel of the first."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = self.b(F.rms_norm(x, x.shape[-1:]))
            return self.out(F.rms_norm(x, x.shape[-1:]))

    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(3, 6)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert (small.model.a.out_features, small.model.b.out_features) == (4, 2)
    assert small.proof.error < 1e-12


class Spelt(nn.Module):
    """A norm spelt out, as in most language models: the root mean square, or mean and variance."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "mean square":
            return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        spread = x.var(-1, unbiased=False, keepdim=True)
        return self.weight * (x - x.mean(-1, keepdim=True)) * (spread + 1e-6).rsqrt()


@pytest.mark.parametrize("kind", ["mean square", "variance"])
def test_a_stream_behind_norms_that_are_spelt_out_is_cut_when_asked(kind: str) -> None:
    torch.manual_seed(0)
    model, ids = Language().eval(), torch.randint(20, (2, 7))
    model.block.norm, model.block.last = Spelt(kind), Spelt(kind)
    assert "words" not in {group.name for group in sc.explain(model, ids).groups}
    grain = sc.granularity.Channel(across_norm=True)
    masks = sc.prune(model, granularity=grain, budget=0.5, example=ids)
    small = sc.shrink(model, masks, ids, across_norm=True)
    assert (small.model.words.embedding_dim, small.model.block.norm.weight.numel()) == (8, 8)
    assert not small.proof.equality
