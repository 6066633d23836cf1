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
