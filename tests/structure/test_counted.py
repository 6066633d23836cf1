"""What divides by a count goes on counting the zeros that left: means over channels, standardised weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.errors import ProofError
from secateur.structure import counted
from secateur.structure.plan import Plan


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
    assert Plan.from_json(small.plan.to_json()) == small.plan
    small.model(x).sum().backward()
    assert small.model.up.weight.grad is not None
    assert torch.equal(copy.deepcopy(small.model)(x), small.model(x))


def test_a_mean_over_channels_of_several_layers_stays_locked() -> None:
    model, x = Response(shared=True).eval(), torch.randn(2, 5, 6)
    explained = sc.explain(model, x)
    assert not explained.groups
    assert "mean over the axis" in {lock.reason for lock in explained.locks}


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
    assert any("0 neither in the weight nor in what comes in" in lock.reason for lock in explained.locks)
    assert "a" not in {group.name for group in explained.groups}


def test_the_count_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(counted.COUNTED, "mean", lambda func, args, kwargs, *sizes: func(*args, **kwargs))
    torch.manual_seed(0)
    model, x = Response().eval(), torch.randn(2, 5, 6)
    with pytest.raises(ProofError, match="does not compute what the masked one does"):
        sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
