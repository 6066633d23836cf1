"""Block influence: 1 - mean cosine of what a block takes and gives, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import OptionError


class Shift(nn.Module):
    """Adds a constant to what it takes."""

    def __init__(self, *by: float):
        super().__init__()
        self.by = nn.Linear(len(by), len(by))
        self.by.weight.data.zero_()
        self.by.bias.data = torch.tensor(by)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.by(x)


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, attention_mask=attention_mask)
        return x


def influences(model: nn.Module, *batches: object) -> list[float]:
    scores = sc.criteria.BlockInfluence().scores(model, select(model), Context(data=list(batches)))
    return [score.max().item() for score in scores.values()]


def test_the_mean_over_rows_and_batches() -> None:
    model = Chain(Shift(0.0, 3.0), Shift(0.0, 0.0))
    # (4, 0) -> (4, 3): cosine 0.8; (0, 1) -> (0, 4): 1; (-4, 0) -> (-4, 3): 0.8
    found = influences(model, torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[-4.0, 0.0]]))
    assert found == pytest.approx([1 - 2.6 / 3, 0.0], abs=1e-6)


def test_tokens_are_compared_one_by_one_and_padding_is_left_out() -> None:
    tokens = torch.tensor([[[4.0, 0.0], [0.0, 1.0], [-3.0, -4.0]]])
    model = Chain(Shift(0.0, 3.0))
    # the third: (-3, -4) -> (-3, -1): 13 / (5 * sqrt(10))
    assert influences(model, {"x": tokens}) == pytest.approx([1 - (1.8 + 13 / 250**0.5) / 3], abs=1e-6)
    padded = {"x": tokens, "attention_mask": torch.tensor([[1, 1, 0]])}
    assert influences(model, padded) == pytest.approx([1 - 1.8 / 2], abs=1e-6)


def test_an_image_is_one_vector() -> None:
    class Brighter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.conv.weight.data.zero_()
            self.conv.bias.data.fill_(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x)

    # (1, 0) -> (2, 1): 2 / sqrt(5)
    found = influences(nn.Sequential(Brighter()), torch.tensor([[[[1.0, 0.0]]]]))
    assert found == pytest.approx([1 - 2 / 5**0.5], abs=1e-6)


def test_the_block_that_changes_least_leaves() -> None:
    model = Chain(Shift(0.0, 3.0), Shift(0.1, 0.0), Shift(-5.0, 0.0))
    masks = sc.prune(model, "block_influence", "layer", 0.34, data=[torch.tensor([[4.0, 1.0], [2.0, 1.0]])])
    assert [name for name, mask in masks.items() if not mask.any()] == [
        "blocks.1.by.weight",
        "blocks.1.by.bias",
    ]


def test_it_needs_data_and_blocks() -> None:
    with pytest.raises(sc.errors.DataError, match="block_influence scores on data"):
        sc.prune(Chain(Shift(0.0, 3.0)), "block_influence", "layer", 0.5)


def test_another_granularity_is_refused() -> None:
    model = Chain(Shift(0.0, 1.0), Shift(1.0, 0.0))
    with pytest.raises(
        OptionError,
        match=r"criterion BlockInfluence\(\) scores whole blocks: expected granularity 'layer', got",
    ):
        sc.prune(model, "block_influence", "channel", 0.5, example=torch.ones(1, 2), data=[torch.ones(1, 2)])


def test_no_loss_is_asked_for() -> None:
    with pytest.raises(
        sc.errors.DataError, match=r"pass data= \(batches of inputs; it asks for no labels and no loss"
    ):
        sc.prune(torch.nn.Linear(4, 4), "wanda", budget=0.5)
