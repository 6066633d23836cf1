"""Models of `foreign.py` that no library has: recurrent, generative, tabular, fields, experts, and unusual inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Built = tuple[nn.Module, object, object]


class Recurrent(nn.Module):
    """Embedding, a recurrent layer of a kind, and a head on the last step."""

    def __init__(self, kind: str, layers: int = 1, both: bool = False):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.cell = getattr(nn, kind)(32, 48, layers, batch_first=True, bidirectional=both)
        self.head = nn.Sequential(nn.Linear(48 * (1 + both), 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Class scores of a batch of token rows."""
        return self.head(self.cell(self.embed(tokens))[0][:, -1])


class Dlrm(nn.Module):
    """A recommender: a dense tower, embedding bags, pairwise products, a top tower."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(3))
        self.top = nn.Sequential(nn.Linear(16 + 6, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """A score for each row."""
        x = self.bottom(dense)
        rows = [x, *(table(sparse[:, i]) for i, table in enumerate(self.tables))]
        z = torch.stack(rows, 1)
        products = z @ z.transpose(1, 2)
        left, right = torch.tril_indices(4, 4, -1)
        return self.top(torch.cat([x, products[:, left, right]], 1))


class Nerf(nn.Module):
    """A radiance field: Fourier features, a skip in the middle, density and colour."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(39, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.second = nn.ModuleList([nn.Linear(64 + 39, 64), nn.Linear(64, 64)])
        self.density, self.feature = nn.Linear(64, 1), nn.Linear(64, 64)
        self.colour = nn.Sequential(nn.Linear(64 + 3, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid())

    def forward(self, points: torch.Tensor, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour and density of points seen from directions."""
        waves = [f(2**k * points) for k in range(6) for f in (torch.sin, torch.cos)]
        encoded = x = torch.cat([points, *waves], -1)
        for layer in self.first:
            x = layer(x).relu()
        x = torch.cat([x, encoded], -1)
        for layer in self.second:
            x = layer(x).relu()
        return self.colour(torch.cat([self.feature(x), views], -1)), self.density(x).relu()


class Experts(nn.Module):
    """A mixture of experts whose weights are a softmax over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 32)
        self.gate = nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(4)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        x = self.start(x)
        weights = self.gate(x).softmax(-1)
        mixed = torch.stack([expert(x) for expert in self.experts], -1)
        return self.head(x + (mixed * weights.unsqueeze(-2)).sum(-1))


class Keywords(nn.Module):
    """Two inputs by keyword, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.text = nn.EmbeddingBag(50, 24)
        self.head = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores and the joint features."""
        joint = torch.cat([self.image(image), self.text(tokens)], 1)
        return {"scores": self.head(joint), "joint": joint}


@dataclass
class Sample:
    """An input of two tensors."""

    image: torch.Tensor
    extra: torch.Tensor


class OfDataclass(nn.Module):
    """One argument that is a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(16 + 4, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, sample: Sample) -> torch.Tensor:
        """Class scores."""
        return self.head(torch.cat([self.body(sample.image), sample.extra], 1))


class OfDict(nn.Module):
    """One argument that is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Class scores."""
        return self.body(batch["x"]) * batch["scale"]


class EmptyCat(nn.Module):
    """Joins lists that may be empty, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map and an empty tensor."""
        return self.body(x), torch.cat([x.new_zeros(0), x.new_zeros(0)])


class Siamese(nn.Module):
    """One tower called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """The distance of pairs."""
        return (self.tower(left) - self.tower(right)).abs().sum(1)


class Wave(nn.Module):
    """Dilated gated convolutions over time with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 32, 1)
        self.gates = nn.ModuleList(nn.Conv1d(32, 64, 3, padding=2**k, dilation=2**k) for k in range(3))
        self.outs = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(3))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores for every step."""
        x = self.start(x)
        skips = 0
        for gate, out in zip(self.gates, self.outs, strict=True):
            a, b = gate(x).chunk(2, 1)
            y = out(a.tanh() * b.sigmoid())
            x, skips = x + y, skips + y
        return self.end(skips)


def _generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(16, 64, 4), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def _critic() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 1),
    )  # fmt: skip


def _vae() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16), nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64)
    )


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(50, (rows, length))


def _recurrent(kind: str, layers: int = 1, both: bool = False) -> Callable[[], Built]:
    return lambda: (Recurrent(kind, layers, both), _tokens(2, 9), _tokens(3, 14))


def _rows(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    """A model of tensors of these shapes, and of one more row."""

    def built() -> Built:
        calls = [tuple(torch.randn(shape[0] + more, *shape[1:]) for shape in shapes) for more in (0, 1)]
        return make(), calls[0], calls[1]

    return built


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


OWN: dict[str, Callable[[], Built]] = {
    "rnn": _recurrent("RNN"),
    "lstm": _recurrent("LSTM"),
    "lstm_2_layers": _recurrent("LSTM", 2),
    "lstm_both_ways": _recurrent("LSTM", 1, True),
    "gru": _recurrent("GRU"),
    "gru_2_layers_both_ways": _recurrent("GRU", 2, True),
    "gan_generator": _rows(_generator, (2, 16, 1, 1)),
    "gan_discriminator": _rows(_critic, (2, 3, 32, 32)),
    "autoencoder": _rows(_vae, (2, 64)),
    "dlrm": lambda: (
        Dlrm(),
        (torch.randn(2, 13), torch.randint(100, (2, 3, 4))),
        (torch.randn(3, 13), torch.randint(100, (3, 3, 5))),
    ),
    "nerf": _rows(Nerf, (4, 3), (4, 3)),
    "moe": _rows(Experts, (2, 16)),
    "keywords": lambda: (
        Keywords(),
        {"image": torch.randn(2, 3, 16, 16), "tokens": _tokens(2, 6)},
        {"image": torch.randn(3, 3, 24, 20), "tokens": _tokens(3, 9)},
    ),
    "dataclass": lambda: (
        OfDataclass(),
        (Sample(torch.randn(2, 3, 16, 16), torch.randn(2, 4)),),
        (Sample(torch.randn(3, 3, 24, 24), torch.randn(3, 4)),),
    ),
    "dict": lambda: (
        OfDict(),
        ({"x": torch.randn(2, 8), "scale": torch.ones(2, 1)},),
        ({"x": torch.randn(3, 8), "scale": torch.ones(3, 1)},),
    ),
    "empty_cat": _rows(EmptyCat, (2, 3, 16, 16)),
    "siamese": _rows(Siamese, (2, 16), (2, 16)),
    "wavenet": _rows(Wave, (2, 1, 64)),
    "transformer_encoder": _rows(_encoder, (2, 7, 32)),
    "transformer": _rows(lambda: nn.Transformer(32, 4, 1, 1, 64, batch_first=True), (2, 7, 32), (2, 5, 32)),
}
