"""Forwards that people write: each is cut and compared anew at other shapes and modes, or refused by operator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.core.nested import tensors_in
from secateur.errors import NothingToDoError

Shapes = Sequence[tuple[int, ...]]
IMAGES, ROWS = ((2, 3, 8, 8), (3, 3, 12, 16)), ((2, 6, 12), (3, 9, 12))
MADE: dict[str, tuple[type[Odd], Shapes, float]] = {}
"""By name: the class, two input shapes, and the least share of the parameters that must leave."""


class Odd(nn.Module):
    """A module with the parts that its class lists: layers, parameters and buffers."""

    parts: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        for name, make in self.parts.items():
            part = make()
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def odd(shapes: Shapes, least: float = 0.4, **parts: Callable[[], Any]) -> Callable[[type[Odd]], type[Odd]]:
    """List a class with its parts."""

    def listed(kind: type[Odd]) -> type[Odd]:
        kind.parts = parts
        MADE[kind.__name__] = (kind, shapes, least)
        return kind

    return listed


def conv(ins: int = 3, outs: int = 16, size: int = 3, **options: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(ins, outs, size, padding=size // 2, **options)


def lin(ins: int = 12, outs: int = 32) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(ins, outs)


def own(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


@odd(IMAGES, a=conv(), o=lin(16, 5))
class ViewMinusOne(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y.view(x.size(0), -1, x.size(2) * x.size(3)).mean(-1))


@odd(ROWS, a=lin(12, 64), b=lin(8, 12), c=lin(96, 3))
class Unflattened(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.c(self.b(self.a(x).unflatten(-1, (8, 8)).relu()).flatten(-2))


@odd(IMAGES, a=conv(3, 30), b=conv(10, 8, 1), c=conv(20, 8, 1), o=conv(8, 4, 1))
class SplitBySizes(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        p, q = torch.split(self.a(x).relu(), [10, 20], 1)
        return self.o((self.b(p) + self.c(q)).relu())


@odd(IMAGES, a=conv(3, 30), o=conv(10, 4, 1))
class ThreeChunks(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        p, q, r = self.a(x).chunk(3, 1)
        return self.o(p.sigmoid() * q.tanh() + r)


@odd(IMAGES, 0.3, a=conv(), o=conv(16, 4, 1))
class Rolled(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.a(x).relu().roll((3, 2), (1, 3)).flip(1))


@odd(IMAGES, a=conv(3, 1), b=conv(), o=conv(16, 4, 1))
class Expanded(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.b(x)
        return self.o(y * self.a(x).expand_as(y).sigmoid())


@odd(IMAGES, a=conv(), o=conv(8, 4, 1), p=conv(8, 4, 1))
class EverySecond(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y[:, ::2]) + self.p(y[:, 1::2])


@odd(IMAGES, a=conv(3, 8), o=lin(72, 6), b=lin(6, 3))
class Windows(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.o(F.unfold(self.a(x).relu(), 3, padding=1).transpose(1, 2)).relu())


@odd(IMAGES, a=conv(3, 8), b=lin(32, 32), o=conv(8, 4, 1))
class FoldedBack(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.b(F.unfold(self.a(x).relu(), 2, stride=2).transpose(1, 2)).transpose(1, 2)
        return self.o(F.fold(y, (x.shape[2], x.shape[3]), 2, stride=2))


@odd(IMAGES, a=conv(), b=conv(16, 64), o=conv(16, 3))
class PixelsShuffled(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(F.pixel_shuffle(self.b(self.a(x).relu()), 2).relu())


@odd(IMAGES, a=conv(3, 32), b=conv(32, 32, groups=4), o=conv(32, 4, 1))
class ChannelsShuffled(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.b(F.channel_shuffle(self.a(x), 4)).relu())


@odd(ROWS, a=lin(), b=lin(32, 32), o=lin(32, 4))
class SumsAlong(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.b(self.a(x).relu().cumsum(1)).cumsum(-1))


@odd(ROWS, a=lin(), o=lin(32, 4))
class GatheredSteps(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        order = x[..., 0].argsort(1)[..., None].expand(-1, -1, y.shape[-1])
        return self.o(y.gather(1, order))


@odd(ROWS, q=lin(), k=lin(), v=lin(), o=lin(32, 12))
class HeadsByEinsum(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, 4, 8) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bthd,bshd->bhts", q, k).div(math.sqrt(8)).softmax(-1)
        return self.o(torch.einsum("bhts,bshd->bthd", weights, v).reshape(b, t, -1))


@odd(ROWS, q=lin(), k=lin(12, 16), v=lin(12, 16), o=lin(32, 12))
class SharedKeys(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 8).transpose(1, 2)
        k, v = (f(x).view(b, t, 2, 8).transpose(1, 2).repeat_interleave(2, 1) for f in (self.k, self.v))
        return self.o(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, -1)
        )


@odd(ROWS, a=lin(), o=lin(32, 4))
class DividedByMean(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y / y.mean(-1, keepdim=True).add(1))


@odd(ROWS, a=lin(), o=lin(32, 4))
class DividedBySize(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.o(y * (y.sum(-1, keepdim=True) / y.size(-1)))


@odd(ROWS, a=lin(), o=lin(32, 4))
class DividedByLength(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.a(x) / len(self.a.bias))


@odd(ROWS, a=lin(), o=lin(32, 4))
class UnitRows(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(F.normalize(self.a(x), dim=-1))


@odd(ROWS, a=lin(), b=lin(32, 32), o=lin(32, 4))
class ShareOfChannels(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.b(self.a(x).relu()).softmax(-1))


@odd(ROWS, a=lin(), h=lin(32, 32))
class TiedTransposed(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return F.linear(self.h(self.a(x).relu()).relu(), self.a.weight.t())


@odd(ROWS, a=lin(), o=lin(32, 4), scale=lambda: torch.rand(32) + 0.5)
class BufferAsScale(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o((self.a(x) * self.scale).relu())


@odd(ROWS, 0.2, a=lin(), o=lin(32, 4))
class WrittenInPlace(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu_() * 1
        y[..., 5] = 1.0
        return self.o(y.mul_(2))


@odd(ROWS, 0.2, a=lin(), o=lin(32, 4))
class OnePosition(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y) + y[..., 5, None]


@odd(ROWS, 0.2, a=lin(), o=lin(32, 4))
class OneSlice(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y) + y[..., 5:6] * y[..., -3:-2]


@odd(ROWS, a=lin(), o=lin(32, 4))
class PartsAddedUp(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y) + y[..., :20].sum(-1, keepdim=True) - 2 * y[..., 20:].sum(-1, keepdim=True)


@odd(IMAGES, a=conv(3, 32), d=lin(32, 8), u=lin(8, 32), o=conv(32, 4, 1))
class ChannelAttention(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        b, c, _, _ = y.size()
        scale = self.u(self.d(F.adaptive_avg_pool2d(y, 1).view(b, c)).relu()).sigmoid().view(b, c, 1, 1)
        return self.o(y * scale.expand_as(y))


@odd(IMAGES, a=conv(), b=conv(16, 16), o=conv(16, 4, 1))
class CalledThreeTimes(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        for _ in range(3):
            y = self.b(y).relu()
        return self.o(y)


@odd(IMAGES, a=conv(), t=lambda: nn.ConvTranspose2d(16, 32, 2, 2, groups=4), o=conv(32, 4, 1))
class TransposedInGroups(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.t(self.a(x).relu()).relu())


@odd(IMAGES, a=conv(3, 32), n=lambda: nn.GroupNorm(4, 32), o=conv(32, 4, 1))
class NormOfGroups(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.n(self.a(x)).relu())


@odd(
    IMAGES, a=conv(), n=lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True), o=conv(16, 4, 1)
)
class NormOfInstances(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.n(self.a(x)).relu())


@odd(IMAGES, a=conv(3, 32), o=conv(16, 4, 1))
class Maxout(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        b, c, h, w = y.shape
        return self.o(y.view(b, c // 2, 2, h, w).max(2)[0])


@odd(IMAGES, a=conv(), b=conv(3, 32), o=conv(32, 4, 1))
class PaddedChannels(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o((F.pad(self.a(x), (0, 0, 0, 0, 8, 8)) + self.b(x)).relu())


@odd(ROWS, a=lin(), b=lin(), o=lin(64, 4))
class StackedLast(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(torch.stack([self.a(x), self.b(x)], -1).flatten(-2))


@odd(
    ROWS,
    k=lin(12, 24),
    v=lin(12, 20),
    m=lambda: nn.MultiheadAttention(12, 4, kdim=24, vdim=20, batch_first=True),
    o=lin(12, 4),
)
class KeysOfOtherSizes(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.triu(x.new_full((x.shape[1], x.shape[1]), -torch.inf), 1)
        return self.o(self.m(x, self.k(x), self.v(x), attn_mask=hidden)[0])


@odd(ROWS, 0.1, m=lambda: nn.MultiheadAttention(12, 4, batch_first=True, add_bias_kv=True), o=lin(12, 4))
class WeightsOfHeads(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y, weights = self.m(x, x, x)
        return self.o(y), weights


@odd(ROWS, a=lin(12, 24), l=lambda: nn.LSTM(24, 32, 2, batch_first=True, proj_size=12), o=lin(12, 4))
class ProjectedLstm(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.l(self.a(x))[0])


@odd(ROWS, c=lambda: nn.LSTMCell(12, 32), o=lin(32, 4))
class CellInALoop(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        h = c = torch.zeros(x.shape[0], self.c.hidden_size, dtype=x.dtype)
        for step in x.unbind(1):
            h, c = self.c(step, (h, c))
        return self.o(h)


@odd(ROWS, a=lin(), b=lin(), o=lin(32, 4))
class ChosenElements(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.o(torch.where(y > 0, self.b(x), torch.ones_like(y)))


@odd(IMAGES, a=conv(), g=lin(16, 144), o=conv(16, 4, 1))
class KernelsFromTheInput(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        b, c, h, w = y.shape
        kernels = self.g(y.mean((2, 3))).view(b * c, 1, 3, 3)
        return self.o(
            F.conv2d(y.reshape(1, b * c, h, w), kernels, padding=1, groups=b * c).view(b, c, h, w).relu()
        )


@odd(IMAGES, a=conv(), g=lin(3, 32), n=lambda: nn.InstanceNorm2d(16), o=conv(16, 4, 1))
class StyleFromTheInput(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        scale, shift = self.g(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
        return self.o((self.n(self.a(x)) * (1 + scale) + shift).relu())


@odd(IMAGES, a=conv(3, 24), q=lin(24, 72), o=conv(24, 4, 1))
class AttentionInWindows(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y, n = self.a(x), 4
        b, c, h, w = y.shape
        z = y.view(b, c, h // n, n, w // n, n).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, c)
        q, k, v = self.q(z).reshape(z.shape[0], n * n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(z.shape)
        return self.o(z.view(b, h // n, w // n, n, n, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w) + y)


@odd(ROWS, a=lin(12, 16), g=own(16), h=own(1), w=own(16, 4))
class OwnParameters(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return (self.a(x) * self.g + self.h).relu() @ self.w


@odd(ROWS, a=lin(), n=lambda: nn.LayerNorm(12), s=lambda: nn.EmbeddingBag(9, 32, mode="sum"), o=lin(32, 4))
class SumOfEmbeddings(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        words = (x[..., :3].abs() * 4).long().clamp(max=8).flatten(0, 1)
        return self.o((self.a(self.n(x)).flatten(0, 1) + self.s(words)).relu())


REFUSED: dict[str, tuple[type[Odd], Shapes, str]] = {}


def refused(shapes: Shapes, because: str, **parts: Callable[[], Any]) -> Callable[[type[Odd]], type[Odd]]:
    """List a class of which nothing can be cut, with the reason that is given."""

    def listed(kind: type[Odd]) -> type[Odd]:
        kind.parts = parts
        REFUSED[kind.__name__] = (kind, shapes, because)
        return kind

    return listed


@refused(IMAGES, r"std over the axis \(std in the model\)", a=conv(), o=conv(16, 4, 1))
class DividedBySpread(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.o(y / y.std(1, keepdim=True))


@odd(IMAGES, a=conv(), w=own(16, 2), b=conv(16, 16, 1), o=conv(16, 4, 1))
class MixedByFourier(Odd):
    """Each channel is multiplied by a complex number of its own among frequencies."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        mixed = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(self.w)[:, None, None]
        return self.o(y + self.b(torch.fft.irfft2(mixed, s=y.shape[-2:], norm="ortho")).relu())


@odd(ROWS, a=lin(), b=lin(32, 16), o=lin(16, 4))
class MixedAlongRows(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.b(torch.fft.fft(self.a(x), dim=1).real).relu())


@refused(ROWS, r"meets an axis that cannot be cut \(mul in the model\)", a=lin(), o=lin(32, 4))
class CountsItsChannels(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        return self.o(y * torch.arange(y.shape[-1], dtype=y.dtype))


@refused(ROWS, r"a Fourier transform along the axis \(_fft_r2c in the model\)", a=lin(), o=lin(17, 4))
class Frequencies(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(torch.fft.rfft(self.a(x), dim=-1).abs())


@refused(IMAGES, r"topk along the axis \(topk in the model\)", a=conv(), o=conv(4, 4, 1))
class LargestChannels(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.a(x).topk(4, 1)[0])


@refused(
    IMAGES, r"part of every n-th position is taken \(slice in the model\)", a=conv(3, 15), o=conv(8, 4, 1)
)
class EverySecondOfAnOddNumber(Odd):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.a(x)[:, ::2])


def difference(some: object, others: object) -> float:
    """The largest difference of outputs over the largest output."""
    pairs = list(zip(tensors_in(some), tensors_in(others), strict=True))
    largest = max(float(a.detach().abs().max()) for a, _ in pairs)
    return max(float((a - b).detach().abs().max()) for a, b in pairs) / largest


@pytest.mark.parametrize("name", MADE)
def test_a_cut_forward_computes_what_the_masked_one_does(name: str) -> None:
    kind, (shape, other), least = MADE[name]
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(shape)
    options = sc.PruneOptions(allow_collapse=True)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, options=options)
    small = sc.shrink(model, masks, x)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, small.model)]
    assert 1 - sizes[1] / sizes[0] >= least
    dense = copy.deepcopy(model)
    masks.apply_(dense)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        pair = [copy.deepcopy(each).to(dtype) for each in (dense, small.model)]
        for training in (False, True):
            for inputs in (x, torch.randn(other), torch.cat([x, x])):
                with torch.set_grad_enabled(training):
                    want, got = (each.train(training)(inputs.to(dtype)) for each in pair)
                assert difference(want, got) < bound, (dtype, training, inputs.shape)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_operator_and_module(name: str) -> None:
    kind, (shape, _), because = REFUSED[name]
    with pytest.raises(NothingToDoError, match=because):
        sc.prune(kind().eval(), "l2", "channel", 0.5, example=torch.randn(shape))
