"""Two recordings of one forward: tables made once, numbers that are widths by chance, shapes that values decide."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.structure.cut import fit


def half(model: nn.Module, example: object) -> sc.Shrunk:
    masks = sc.prune(model, "l2", "channel", 0.5, example=example)
    return sc.shrink(model, masks, example)


class Heads(nn.Module):
    """Attention whose heads are spelt out as numbers; `places` is what the queries are multiplied by."""

    def __init__(self, chunk: int = 0) -> None:
        super().__init__()
        self.heads, self.size, self.chunk = 4, 4, chunk
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def places(self, length: int, device: torch.device) -> torch.Tensor:
        return torch.ones(length, 1, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, self.size).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q * self.places(length, x.device), k, v).transpose(1, 2)
        if self.chunk:  # pieces of a few tokens: the number has nothing to do with the heads
            y = F.pad(y, (0, 0, 0, 0, 0, -length % self.chunk))
            y = y.reshape(batch, -1, self.chunk, self.heads, self.size).flatten(1, 2)[:, :length]
        return self.o(y.flatten(2))


class Remembered(Heads):
    """The table is made once for each length, and then kept outside of the model."""

    @functools.lru_cache(maxsize=32)  # noqa: B019
    def places(self, length: int, device: torch.device) -> torch.Tensor:
        angles = torch.arange(length, device=device).unsqueeze(1) / 7
        return angles.sin() + angles.cos() + 2


def test_a_table_that_only_the_first_forward_makes() -> None:
    torch.manual_seed(0)
    small = half(Remembered().eval(), torch.randn(2, 6, 16))
    assert small.proof.holds
    assert (small.model.heads, small.model.q.out_features) == (2, 8)


def test_a_number_that_is_the_heads_by_chance_is_left() -> None:
    torch.manual_seed(0)
    small = half(Heads(chunk=4).eval(), torch.randn(2, 6, 16))
    assert small.proof.holds
    assert (small.model.heads, small.model.chunk) == (2, 4)


class Growing(nn.Module):
    """A bias for each head, kept for the longest sequence seen and used in part for shorter ones."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("slopes", torch.rand(4, 1, 1))
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        if self.bias is None or self.bias.shape[-1] < length:
            places = torch.arange(length, device=x.device)
            self.bias = -(places[:, None] - places).abs() * self.slopes
        q, k, v = (part(x).unflatten(2, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) / 2 + self.bias[:, :length, :length]
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_kept_bias_that_must_grow_is_found_by_a_longer_sequence() -> None:
    """The bias was kept for 6 tokens before the cut; behind 6, it is made anew for all heads."""
    torch.manual_seed(0)
    model = nn.Sequential(Growing(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 6, 16)
    model(x)
    small = half(model, x)
    assert (2, 9, 16) in {case.shapes[0] for case in small.proof.cases}
    assert small.model[0].q.out_features == 16
    assert small.model[1].out_features == 4
    with torch.no_grad():
        small.model(torch.randn(2, 12, 16))


class Routed(nn.Module):
    """As many rows go through the second layer as have a positive score: another cut, other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(12, 3)
        self.last = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(x), 3, dtype=x.dtype)
        rows = (self.last(self.score(x).relu()).squeeze(1) > 0).nonzero().squeeze(1)
        return found.index_add(0, rows, self.down(self.up(x[rows]).relu()))


def test_shapes_that_values_decide_are_not_compared() -> None:
    torch.manual_seed(0)
    small = half(Routed().eval(), torch.randn(32, 6))
    assert small.proof.holds
    assert small.model.up.out_features == 6


class Looking(nn.Module):
    """A recurrent layer in a forward that looks at values, which is recorded on real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 2.0 if bool(x.abs().max() > 0) else 1.0
        return self.last(self.lstm(self.first(x) * scale)[0])


def test_a_recurrent_layer_is_looked_into_on_real_tensors_too() -> None:
    torch.manual_seed(0)
    small = half(Looking().eval(), torch.randn(2, 5, 4))
    assert small.proof.holds
    assert (small.model.lstm.input_size, small.model.lstm.hidden_size) == (4, 3)


class Written(nn.Module):
    """Two widths are written into the forward as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu().reshape(x.shape[0], 8)
        return self.c(self.b(x).relu().reshape(x.shape[0], 12))


def recordings_of_shrink(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often `shrink` records the cut forward, behind `prune`, which has tried a cut of the same widths."""
    x, made = torch.randn(2, 6), []
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    rerun = fit._Search.rerun
    monkeypatch.setattr(fit._Search, "rerun", lambda *args: made.append(1) or rerun(*args))
    small = sc.shrink(model, masks, x)
    assert small.proof.holds
    assert (small.model.a.out_features, small.model.b.out_features) == (4, 6)
    return len(made)


def test_shrink_uses_the_recording_that_prune_made(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    assert recordings_of_shrink(Written().eval(), monkeypatch) == 0


def test_rewrites_that_say_where_something_begins_are_searched_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(fit, "_PLACED", frozenset({"reshape"}))
    assert recordings_of_shrink(Written().eval(), monkeypatch) > 1
