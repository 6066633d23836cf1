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


@dataclass
class Rays:
    """Points along rays, and the direction of each ray."""

    points: torch.Tensor
    views: torch.Tensor


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


class Translator(nn.Module):
    """GRU encoder, attention over its steps, GRU cell as decoder: sequence to sequence with the targets given."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 24), nn.Embedding(50, 24)
        self.encoder = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.bridge, self.key = nn.Linear(64, 48), nn.Linear(64, 48)
        self.cell, self.out = nn.GRUCell(24 + 64, 48), nn.Linear(48, 50)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scores of the next word at every step of the target."""
        memory, _ = self.encoder(self.source(source))
        state, keys = self.bridge(memory[:, -1]).tanh(), self.key(memory)
        found = []
        for word in self.target(target).unbind(1):
            weights = (keys @ state.unsqueeze(-1)).softmax(1)
            state = self.cell(torch.cat([word, (weights * memory).sum(1)], -1), state)
            found.append(self.out(state))
        return torch.stack(found, 1)


class Gan(nn.Module):
    """Generator and discriminator in one module, weights of both normalised by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = _generator(), _critic()

    def forward(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures, and how real they look."""
        made = self.generator(noise)
        return made, self.critic(made)


class DictRecommender(nn.Module):
    """Tables by the name of a field, numbers beside them, deep and cross layers: the input is one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(30, 8) for name in ("user", "item", "shop")})
        self.numbers = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.cross, self.out = nn.Linear(40, 40), nn.Linear(72, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The score of each row."""
        parts = [table(batch[name]) for name, table in self.tables.items()]
        x = torch.cat([*parts, self.numbers(batch["numbers"])], -1)
        crossed = x * self.cross(x) + x
        return {"score": self.out(torch.cat([self.deep(x), crossed], -1)).squeeze(-1).sigmoid()}


class RoutedExperts(nn.Module):
    """Every token goes to its two best experts of four; their outputs are added up at its place."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gate = nn.Linear(16, 32), nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 96), nn.SiLU(), nn.Linear(96, 32)) for _ in range(4)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores of every token."""
        tokens = self.start(x).flatten(0, 1)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == index)
            out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, rank, None])
        return self.head(out + tokens).view(*x.shape[:2], -1)


class AttentionUnet(nn.Module):
    """A U-Net with skips, and attention of heads over the pixels of its lowest level."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, 16), _double(16, 32)
        self.low, self.qkv, self.back = _double(32, 64), nn.Conv2d(64, 192, 1), nn.Conv2d(64, 64, 1)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.out = _double(64, 32), _double(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A map of two classes."""
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        low = self.low(nn.functional.max_pool2d(two, 2))
        b, c, h, w = low.shape
        q, k, v = self.qkv(low).reshape(b, 3, 4, c // 4, h * w).transpose(-1, -2).unbind(1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        low = low + self.back(seen.transpose(-1, -2).reshape(b, -1, h, w))
        two = self.join2(torch.cat([self.up2(low), two], 1))
        return self.out(self.join1(torch.cat([self.up1(two), one], 1)))


class SiameseImages(nn.Module):
    """One convolutional tower for two pictures; a head on the difference and the product of what it makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            _double(3, 16), nn.MaxPool2d(2), _double(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24)
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Whether they show the same."""
        a, b = self.tower(left), self.tower(right)
        return self.head(torch.cat([(a - b).abs(), a * b], 1))


class CausalWave(nn.Module):
    """WaveNet as it is published: padding on the left only, gates, residual and skip outputs of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 32, 1)
        self.gates = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**k) for k in range(4))
        self.both = nn.ModuleList(nn.Conv1d(32, 32 + 24, 1) for _ in range(4))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(24, 32, 1), nn.ReLU(), nn.Conv1d(32, 10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores for every step, from the steps before it."""
        x, skips = self.start(x), torch.zeros(())
        for gate, both in zip(self.gates, self.both, strict=True):
            inner = gate(nn.functional.pad(x, (gate.dilation[0], 0)))
            filtered, gated = inner.chunk(2, 1)
            residual, skip = both(filtered.tanh() * gated.sigmoid()).split([32, 24], 1)
            x, skips = x + residual, skips + skip
        return self.end(skips)


class GraphByMatmul(nn.Module):
    """Graph convolutions with a dense matrix of neighbours, normalised inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 48), nn.Linear(48, 48), nn.Linear(48, 32)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(48), nn.BatchNorm1d(48), nn.BatchNorm1d(32)])
        self.head = nn.Linear(64, 3)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Class scores of each graph of a batch."""
        edges = edges + torch.eye(edges.shape[-1], dtype=edges.dtype)
        scale = edges.sum(-1, keepdim=True).rsqrt()
        edges = edges * scale * scale.transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            nodes = norm((edges @ layer(nodes)).transpose(1, 2)).transpose(1, 2).relu()
        return self.head(torch.cat([nodes.mean(1), nodes.amax(1)], -1))


class SkippingField(nn.Module):
    """A radiance field whose first layer is joined again half way, with density, normals and a colour of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(27 + 64 * (k > 0) if k in (0, 3) else 64, 64) for k in range(6))
        self.density, self.colour = (
            nn.Linear(64, 1),
            nn.Sequential(nn.Linear(64 + 3, 32), nn.ELU(), nn.Linear(32, 3)),
        )

    def forward(self, rays: Rays) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour and density at the points of rays; the directions are those of the rays."""
        waves = [f(2.0**k * rays.points) for k in range(4) for f in (torch.sin, torch.cos)]
        encoded = x = torch.cat([rays.points, *waves], -1)
        for k, layer in enumerate(self.layers):
            x = nn.functional.softplus(layer(torch.cat([x, encoded], -1) if k == 3 else x))
        views = rays.views[:, None].expand(-1, x.shape[1], -1)
        return self.colour(torch.cat([x, views], -1)).sigmoid(), self.density(x).relu()


class Forecaster(nn.Module):
    """Two LSTM layers over the past, their state goes on as the first state of a decoder over known future inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.past, self.future = nn.LSTM(6, 40, 2, batch_first=True), nn.LSTM(3, 40, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(40), nn.Sequential(nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """Mean and spread for every step of the future."""
        _, state = self.past(past)
        return self.out(self.norm(self.future(future, state)[0]))


def _double(ins: int, outs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True),
        nn.Conv2d(outs, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True),
    )  # fmt: skip


def _fields(rows: int) -> dict[str, torch.Tensor]:
    return {
        **{name: torch.randint(30, (rows,)) for name in ("user", "item", "shop")},
        "numbers": torch.randn(rows, 5),
    }


def _graphs(rows: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    links = (torch.rand(rows, nodes, nodes) > 0.7).float()
    return torch.randn(rows, nodes, 12), torch.maximum(links, links.transpose(1, 2))


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
    "translator": lambda: (
        Translator(),
        (_tokens(2, 7) % 40, _tokens(2, 5)),
        (_tokens(3, 9) % 40, _tokens(3, 8)),
    ),
    "gan": _rows(Gan, (2, 16, 1, 1)),
    "dict_recommender": lambda: (DictRecommender(), (_fields(4),), (_fields(7),)),
    "routed_experts": lambda: (RoutedExperts(), torch.randn(2, 6, 16), torch.randn(3, 9, 16)),
    "attention_unet": lambda: (AttentionUnet(), torch.randn(2, 3, 16, 16), torch.randn(1, 3, 24, 32)),
    "siamese_images": lambda: (
        SiameseImages(),
        (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)),
        (torch.randn(3, 3, 20, 24), torch.randn(3, 3, 20, 24)),
    ),
    "causal_wavenet": lambda: (CausalWave(), torch.randn(2, 1, 40), torch.randn(3, 1, 57)),
    "graph_by_matmul": lambda: (GraphByMatmul(), _graphs(2, 6), _graphs(3, 9)),
    "skipping_field": lambda: (
        SkippingField(),
        (Rays(torch.randn(2, 5, 3), torch.randn(2, 3)),),
        (Rays(torch.randn(3, 8, 3), torch.randn(3, 3)),),
    ),
    "forecaster": lambda: (
        Forecaster(),
        (torch.randn(2, 9, 6), torch.randn(2, 4, 3)),
        (torch.randn(3, 12, 6), torch.randn(3, 7, 3)),
    ),
}
