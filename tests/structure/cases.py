"""Hand-made worst cases: small models each of which holds one thing that is easily followed wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A model, an input, and the shapes that must come out when half of every group leaves."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    shapes: dict[str, tuple[int, ...]]


CASES: dict[str, Case] = {}


def case(
    example: Callable[[], Any], **shapes: tuple[int, ...]
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(kind: type[nn.Module]) -> type[nn.Module]:
        wanted = {name.replace("__", "."): shape for name, shape in shapes.items()}
        CASES[kind.__name__] = Case(kind, example, wanted)
        return kind

    return register


def image(channels: int = 3, size: int = 8) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def sequence(width: int = 12, length: int = 5) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, length, width, generator=torch.Generator().manual_seed(1))


@case(image(), a__weight=(4, 3, 3, 3), b__weight=(6, 3, 1, 1), fc__weight=(5, 10))
class UnevenConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.cat([F.relu(self.a(x)), torch.sigmoid(self.b(x))], 1).mean((2, 3)))


@case(image(), conv__weight=(4, 3, 3, 3), fc__weight=(7, 4 * 36))
class FlattenToLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


@case(image(), conv__weight=(4, 3, 1, 1), mix__weight=(3, 4, 3, 3), last__weight=(5, 3, 1, 1))
class Shuffle(nn.Module):
    """A channel shuffle between two convolutions: positions d of both halves must leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.last(F.relu(self.mix(y)))


@case(image(), conv__weight=(8, 3, 1, 1), up__weight=(5, 4, 1, 1))
class Gated(nn.Module):
    """chunk: the halves of one convolution are multiplied, so channel d and d + 8 leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.up(F.silu(a) * b)


class _Shortcut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


@case(image(), stem__weight=(2, 3, 3, 3), conv__weight=(4, 2, 3, 3), fc__weight=(5, 4))
class PaddedShortcut(nn.Module):
    """ResNet-20's shortcut: channels are padded with zeros on both sides, by numbers written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.bn = nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.shortcut, self.fc = _Shortcut(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        return self.fc(F.relu(self.bn(self.conv(x)) + self.shortcut(x)).mean((2, 3)))


@case(image(), stem__weight=(4, 3, 1, 1), a__weight=(2, 4, 3, 3), fc__weight=(3, 8))
class ResidualAndDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.b, self.bn, self.fc = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.cat([x, F.relu(self.a(x))], 1)
        z = x + self.bn(self.b(y))
        return self.fc(torch.cat([x, z], 1).amax((2, 3)))


@case(image(), up__weight=(4, 3, 1, 1), depth__weight=(4, 1, 3, 3), down__weight=(6, 4, 1, 1))
class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.bn, self.down = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu6(self.bn(self.depth(self.up(x)))))


@case(image(), up__weight=(4, 3, 1, 1), depth__weight=(8, 1, 3, 3), down__weight=(6, 8, 1, 1))
class DepthMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.depth, self.down = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 16, 3, groups=8),
            nn.Conv2d(16, 6, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.depth(self.up(x))))


@case(image(), a__weight=(8, 3, 1, 1), g__weight=(12, 4, 3, 3), b__weight=(5, 12, 1, 1))
class GroupedPattern(nn.Module):
    """Two groups of eight: the same pattern leaves in both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, groups=2), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.g(F.relu(self.a(x)))))


@case(image(), a__weight=(8, 3, 1, 1), g__weight=(8, 2, 3, 3), b__weight=(5, 8, 1, 1))
class GroupedWhole(nn.Module):
    """Eight groups of two: groups leave whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.g(F.relu(self.a(x)))))


@case(image(), a__weight=(4, 3, 3, 3), t__weight=(4, 3, 4, 4), out__weight=(2, 3, 1, 1))
class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.t = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 4, stride=2)
        self.bn, self.out = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(
            F.interpolate(self.bn(self.t(torch.relu(self.a(x)))), scale_factor=2, mode="bilinear")
        )


@case(image(), a__weight=(8, 3, 3, 3), b__weight=(3, 2, 1, 1))
class Pixels(nn.Module):
    """Pixel shuffle: the four channels of a pixel leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.pixel_shuffle(self.a(x), 2))


@case(image(), a__weight=(4, 3, 3, 3), squeeze__weight=(2, 4, 1, 1), excite__weight=(4, 2, 1, 1))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.b(F.hardswish(x * scale))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


@case(sequence(16), q__weight=(8, 16), k__weight=(4, 16), v__weight=(4, 16), out__weight=(16, 8))
class GroupedQueries(nn.Module):
    """Four query heads share two key-value heads, with rotary positions: a pair of queries leaves with its key."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = 4, 2, 4
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8, bias=False), nn.Linear(16, 8)
        self.out = nn.Linear(16, 16)
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        angles = torch.outer(torch.arange(n, dtype=self.frequencies.dtype, device=x.device), self.frequencies)
        angles = torch.cat([angles, angles], -1)[None, None].to(x.dtype)
        q, k = (t * angles.cos() + rotate_half(t) * angles.sin() for t in (q, k))
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.head_dim), -1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


@case(sequence(12), qkv__weight=(18, 12), proj__weight=(12, 6))
class HardWritten(nn.Module):
    """Fused q, k, v and a reshape to the width of the input, which no attribute can mend."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


@case(sequence(12), attention__in_proj_weight=(18, 12), attention__out_proj__weight=(12, 6))
class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@case(
    lambda: torch.tensor([[1, 4, 2], [0, 3, 6]]), up__weight=(6, 8), down__weight=(8, 6), table__weight=(7, 8)
)
class TiedEmbedding(nn.Module):
    """The output layer is the embedding: one tensor, two names, and it must still be one afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(7, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


@case(lambda: torch.tensor([[1, 4, 2], [0, 3, 6]]), table__weight=(7, 4), head__weight=(7, 4))
class TiedThrough(nn.Module):
    """A tied table with no norm between: the width itself is cut, in both uses at once."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(tokens)))


@case(sequence(6), rnn__weight_hh_l0=(16, 4), fc__weight=(3, 4))
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


@case(sequence(6), rnn__weight_ih_l0=(12, 6), rnn__weight_ih_l1=(12, 4), fc__weight=(3, 4))
class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(6, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


@case(sequence(6), w=(6, 2, 5), u=(2, 5, 4))
class Einsum(nn.Module):
    """Bare parameters in an einsum: heads are cut, the size of a head stays with them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4, 5))
        self.u = nn.Parameter(torch.randn(4, 5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(torch.einsum("bnd,dhe->bnhe", x, self.w))
        return torch.einsum("bnhe,heo->bno", y, self.u)


@case(image(), stem__weight=(4, 3, 1, 1), block__weight=(4, 4, 3, 3), out__weight=(2, 4, 1, 1))
class SharedModule(nn.Module):
    """One layer used three times: its input and its output channels are the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.relu(self.block(x))
        return self.out(x)


@case(
    lambda: {"x": torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), "scale": 2.0},
    a__weight=(4, 6),
    shift=(4,),
    gain=(4,),
)
class BareAndBuffer(nn.Module):
    """A bare parameter and a buffer lie along the channels; the input is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return self.b(torch.cos(self.a(x) * self.gain * scale + self.shift))


@case(image(), conv__weight=(8, 3, 3, 3), norm__weight=(8,), out__weight=(4, 8, 1, 1))
class GroupNormed(nn.Module):
    """Four groups of four channels: whole groups leave, and what is left is normalised as before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.norm(self.conv(x))))


@case(
    image(), a__weight=(8, 3, 1, 1), b__weight=(4, 8, 1, 1), c__weight=(8, 4, 1, 1), out__weight=(5, 8, 1, 1)
)
class SplitByNumbers(nn.Module):
    """split with sizes that are attributes: they must follow what left on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = 6, 10
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.d, self.out = nn.Conv2d(6, 10, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        left, right = torch.split(x, [self.left, self.right], 1)
        extra = self.c(F.relu(self.b(x))).mean()
        return self.out(torch.cat([left + 0 * extra, F.relu(self.d(left)) + right], 1))


@case(image(), conv__weight=(4, 3, 3, 3), out__weight=(5, 36, 1, 1))
class Unfolded(nn.Module):
    """im2col: each channel becomes nine positions of a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(72, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.unfold(self.conv(x), 3, padding=1)
        return self.out(x.unflatten(-1, (8, 8)))


@case(image(), conv__weight=(4, 3, 3, 3), fc__weight=(2, 4))
class Instance(nn.Module):
    """Instance norm reshapes the batch into the channels and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.softplus(self.norm(self.conv(x))).mean((2, 3)))


@case(
    lambda: torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1)),
    a__weight=(4, 3, 2, 3, 3),
    b__weight=(5, 4, 1, 1, 1),
)
class ThreeD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv3d(3, 8, (2, 3, 3)), nn.BatchNorm3d(8), nn.Conv3d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.max_pool3d(self.bn(self.a(x)), 2))
