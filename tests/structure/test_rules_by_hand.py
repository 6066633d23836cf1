"""What single rules follow, seen from outside: which layers `shrink` cuts, and that the outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(
        self, first: nn.Module, between: Callable[[torch.Tensor], torch.Tensor], second: nn.Module
    ) -> None:
        super().__init__()
        self.first, self.between, self.second = first, between, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


def widths(model: nn.Module, example: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes of the weights after half of the channels are cut."""
    masks = sc.prune(model, "l1", "channel", 0.5, example=example)
    small = sc.shrink(model, masks, example)
    assert small.proof.holds
    return [tuple(p.shape) for name, p in small.model.named_parameters() if name.endswith("weight")]


@pytest.mark.parametrize("bounds", [(-1.0, 0.0), (0.0, 1.0), (None, 0.0), (0.0, None), (-1.0, None)])
def test_a_clamp_whose_range_holds_zero_lets_channels_pass(bounds: tuple[float | None, float | None]) -> None:
    torch.manual_seed(0)
    model = Between(nn.Linear(3, 8), lambda x: x.clamp(*bounds), nn.Linear(8, 2))
    assert widths(model, torch.randn(2, 3)) == [(4, 3), (2, 4)]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_columns_of_a_table_are_cut_and_its_rows_are_not(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(10, 8), nn.Linear(8, 2))
    assert widths(model, torch.tensor([[1, 2], [3, 9]])) == [(10, 4), (2, 4)]


def test_a_pixel_unshuffle_cuts_the_channel_with_its_positions() -> None:
    """Each of the 4 channels becomes 4: half of them cut leaves 2, and 8 of the next layer's 16 inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1))
    assert widths(model, torch.randn(1, 3, 6, 4)) == [(2, 3, 1, 1), (2, 8, 1, 1)]


def test_a_pixel_shuffle_cuts_the_positions_of_a_channel_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1))
    assert widths(model, torch.randn(1, 3, 6, 4)) == [(8, 3, 1, 1), (2, 2, 1, 1)]


def test_channels_pass_a_resampling_of_space() -> None:
    torch.manual_seed(0)
    grid = torch.rand(1, 5, 7, 2) * 2 - 1
    for between in (
        lambda x: F.grid_sample(x, grid, align_corners=False),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    ):
        model = Between(nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 2, 1))
        assert widths(model, torch.randn(1, 3, 6, 4)) == [(4, 3, 1, 1), (2, 4, 1, 1)]


def test_distances_between_rows_need_every_channel() -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(3, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(self.a(x), self.b(x))

    text = str(sc.explain(Distances(), torch.randn(5, 3)))
    assert "distances over the axis" in text
    assert "a.weight[0]" in text
    assert "b.weight[0]" in text


def test_a_bilinear_layer_is_cut_by_its_outputs() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pair, self.last = nn.Linear(3, 4), nn.Bilinear(4, 4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.last(self.pair(y, y))

    torch.manual_seed(0)
    assert widths(Bilinear(), torch.randn(2, 3)) == [(4, 3), (4, 4, 4), (2, 4)]


def test_a_scatter_follows_the_other_axes() -> None:
    index = torch.tensor([[0], [2]])

    def put(x: torch.Tensor) -> torch.Tensor:
        rows = index.expand(2, x.shape[1])
        return torch.zeros_like(x[:1]).expand(3, -1).clone().scatter(0, rows, x)

    torch.manual_seed(0)
    model = Between(nn.Linear(3, 8), put, nn.Linear(8, 2))
    text = str(sc.explain(model, torch.randn(2, 3)))
    assert "first" in text


def locked(between: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor | None = None) -> str:
    """The text of `explain` for a function between two linear layers."""
    torch.manual_seed(0)
    model = Between(nn.Linear(3, 8), between, nn.Linear(8, 2))
    return str(sc.explain(model, torch.randn(2, 3) if example is None else example))


def test_a_scatter_of_part_of_an_axis_needs_every_channel() -> None:
    """The index has four columns of eight: the others are not written."""
    index = torch.zeros(2, 4, dtype=torch.long)
    text = locked(lambda x: torch.zeros_like(x).scatter(0, index, x))
    assert "scatter of part of an axis" in text


def test_a_scatter_of_one_axis_is_along_that_axis() -> None:
    index = torch.arange(8)
    text = locked(lambda x: torch.zeros_like(x[0]).scatter(-1, index, x[0])[None])
    assert "scatter along the axis" in text


@pytest.mark.parametrize(
    ("bounds", "free"),
    [((-1.0, 0.0), True), ((0.0, 1.0), True), ((0.5, 1.0), False), ((-1.0, -0.5), False)],
)
def test_a_sum_over_clamped_channels_can_lose_zeros_alone(bounds: tuple[float, float], free: bool) -> None:
    text = locked(lambda x: x.clamp(*bounds).sum(1, keepdim=True) + 0 * x)
    assert ("96.0% of the parameters can be cut" in text) is free


def test_groups_of_a_convolution_are_locked_to_leave_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 2, 1))
    torch.manual_seed(0)
    assert widths(model, torch.randn(1, 3, 6, 6)) == [(4, 3, 1, 1), (4, 1, 3, 3), (2, 4, 1, 1)]
    pairs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1))
    text = str(sc.explain(pairs, torch.randn(1, 3, 6, 6)))
    assert "groups of a convolution are removed whole" in text


def test_channels_laid_out_along_space_are_locked_by_what_works_on_space() -> None:
    assert "the axis is space to" in locked(lambda x: F.adaptive_max_pool1d(x, 8))
    assert "the axis is space to" in locked(lambda x: F.avg_pool1d(x, 1))


def test_rows_of_a_table_are_said_to_be_looked_up() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 2))
    assert "looked up by index" in str(sc.explain(model, torch.tensor([[1, 2]])))


def test_what_a_mask_picks_is_locked() -> None:
    chosen = torch.ones(2, 8, dtype=torch.bool)
    assert "indexed by a mask" in locked(lambda x: x[chosen].reshape(2, 8))


def test_windows_fix_their_axis_and_leave_the_other() -> None:
    """Windows over the samples; the channels pass."""
    assert "96.0% of the parameters can be cut" in locked(lambda x: x.unfold(0, 2, 1)[..., 0])
    assert "cut into windows" in locked(lambda x: x.unfold(1, 2, 1)[..., 0].repeat(1, 2)[:, :8])


def test_each_channel_becomes_as_many_positions_as_the_patch_has() -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(3, 4, 1), lambda x: F.unfold(x, 2).transpose(1, 2), nn.Linear(16, 2))
    assert widths(model, torch.randn(1, 3, 5, 4)) == [(2, 3, 1, 1), (2, 8)]


def mixed_kernels(transposed: bool) -> nn.Module:
    """A convolution for each row of the batch, whose kernels are a mixture that no channel can leave."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mix, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), nn.Conv2d(8, 2, 1)
            self.kernels = nn.Parameter(torch.randn(4, 8, 8, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x).relu()
            b, c, h, w = y.shape
            share = self.mix(y.mean((2, 3))).softmax(-1)
            kernels = torch.einsum("bk,koihw->boihw", share, self.kernels).reshape(-1, c, 3, 3)
            convolve = F.conv_transpose2d if transposed else F.conv2d
            y = convolve(y.reshape(1, -1, h, w), kernels, padding=1, groups=b)
            return self.out(y.view(b, -1, h, w).relu())

    return Mixed()


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_that_a_computed_kernel_takes_whole_stay(transposed: bool) -> None:
    torch.manual_seed(0)
    model, x = mixed_kernels(transposed), torch.randn(2, 3, 8, 8)
    locks = {name for lock in sc.explain(model, x).locks for name, _ in lock.axes}
    assert {"first.weight", "first.bias"} <= locks
    rows = (torch.arange(8) < 4)[:, None, None, None]
    masks = sc.Masks({"first.weight": rows.expand_as(model.first.weight)})
    with pytest.raises(sc.errors.NothingToDoError, match="no channel of Mixed can be removed"):
        sc.shrink(model, masks, x)


class GatedConvolution(nn.Module):
    """The convolution module of a Conformer: a gated linear unit, a depthwise or grouped convolution, batch norm."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv1d(3, 16, 1), nn.GLU(dim=1)
        self.middle, self.norm = nn.Conv1d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm1d(8)
        self.last = nn.Conv1d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.silu(self.norm(self.middle(self.gate(self.first(x))))))


@pytest.mark.parametrize(("groups", "middle"), [(1, (4, 4, 3)), (2, (4, 2, 3)), (8, (4, 1, 3))])
def test_a_gated_linear_unit_cuts_value_and_gate_together(groups: int, middle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = GatedConvolution(groups).eval()
    assert widths(model, torch.randn(2, 3, 9)) == [(8, 3, 1), middle, (4,), (2, 4, 1)]
    x = torch.randn(2, 3, 9)
    first = sc.prune(model, "l1", "channel", 0.5, example=x)["first.weight"].flatten(1).all(1)
    assert torch.equal(first[:8], first[8:])


def test_a_gate_that_is_constant_keeps_its_value_whole() -> None:
    """The second half of the axis is no channel of a layer, so that the first cannot lose one."""
    constant = torch.randn(1, 8)
    text = locked(lambda x: F.glu(torch.cat([x, constant.expand(x.shape[0], -1)], 1)))
    assert "0.0% of the parameters can be cut" in text


class RelativeAttention(nn.Module):
    """Transformer-XL's attention: queries with two biases meet keys, and projections of relative positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.pos = nn.Linear(width, width, bias=False)
        self.u, self.w = (nn.Parameter(torch.randn(heads, self.size)) for _ in range(2))
        self.register_buffer("table", torch.randn(5, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size)
        k, v = (
            layer(x).view(batch, length, self.heads, self.size).transpose(1, 2) for layer in (self.k, self.v)
        )
        r = self.pos(self.table[:length]).view(length, self.heads, self.size).transpose(0, 1)
        scores = (q + self.u).transpose(1, 2) @ k.mT + (q + self.w).transpose(1, 2) @ r.mT
        mixed = (scores / self.size**0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.size))


@pytest.mark.parametrize(
    ("granularity", "heads", "bias"),
    [("channel", 2, (1, 4)), ("head", 2, (1, 4)), ("head_size", 2, (2, 2)), ("head_size", 4, (4, 1))],
)
def test_relative_attention_loses_heads_or_positions_of_all(
    granularity: str, heads: int, bias: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model, x = RelativeAttention(8, heads).eval(), torch.randn(2, 5, 8)
    small = sc.shrink(model, sc.prune(model, "l1", granularity, 0.5, example=x), x)
    assert small.proof.holds
    assert tuple(small.model.u.shape) == tuple(small.model.w.shape) == bias
    for name in ("q", "k", "v", "pos"):
        assert tuple(small.model.get_submodule(name).weight.shape) == (4, 8), name


def test_a_table_of_positions_does_not_stop_the_channels_beside_it() -> None:
    """Both axes of the table meet the outputs of one layer; the channels are cut, not the length."""

    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 40), nn.Linear(8, 2)
            self.positions = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).view(-1, 5, 8) + self.positions)

    torch.manual_seed(0)
    assert widths(Generated(), torch.randn(2, 3)) == [(20, 3), (2, 4)]


class PositionBiases(nn.Module):
    """Fused attention with biases of positions, a table with a column for each head, and a mask of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 16, bias=False) for _ in range(3))
        self.table, self.out = nn.Embedding(4, 4), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (each(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for each in (self.q, self.k, self.v))
        places = torch.arange(x.shape[1])
        bias = self.table((places[:, None] - places).abs().clamp(max=3)).permute(2, 0, 1)[None]
        # Where a value is read the recording is of real tensors, with the fused operator as one.
        if mask is not None and mask.any():
            bias = bias + torch.where(mask[:, None, None], 0.0, -1e4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("masked", [False, True])
def test_heads_leave_with_their_columns_of_a_table_of_positions(masked: bool) -> None:
    """Whether or not the mask of the inputs is added to the biases: the fused operator takes both as its mask."""
    torch.manual_seed(0)
    model = PositionBiases().eval()
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    example = (torch.randn(2, 5, 6), mask) if masked else (torch.randn(2, 5, 6),)
    masks = sc.prune(model, "l1", "head", 0.5, example=example)
    small = sc.shrink(model, masks, example)
    assert small.proof.holds
    assert tuple(small.model.q.weight.shape) == (8, 6)
    assert tuple(small.model.table.weight.shape) == (4, 2)
    longer = torch.randn(3, 11, 6), torch.arange(11) > torch.tensor([[0], [3], [7]])
    with torch.no_grad():
        expected = masks.apply(model)(*longer)
        assert torch.allclose(small.model(*longer), expected, atol=1e-6)
