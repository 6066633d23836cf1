"""LeastChange: sets of units are measured together, and exchanged as long as that helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import OptionError
from secateur.pruning.cost import CostModel

ONE = torch.ones(1, 1)
SIZES = sc.PruneOptions(parameters="*.bias")
"""Biases are scored too, so that l1 is the size of the constant."""


class Plus(nn.Module):
    """x + a constant."""

    def __init__(self, by: float):
        super().__init__()
        self.by = nn.Linear(1, 1)
        nn.init.zeros_(self.by.weight)
        nn.init.constant_(self.by.bias, by)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by(x)


def net() -> nn.Module:
    """1 + 1 + 3 + 2 - 3 + 8 = 12 from an input of 1."""
    return nn.Sequential(*(Plus(by) for by in (1.0, 3.0, 2.0, -3.0, 8.0))).eval()


def left(masks: sc.Masks, model: nn.Module) -> tuple[str, ...]:
    return sc.shrink(model, masks, ONE).plan.layers[""]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The changes that were measured."""
    seen: list[float] = []
    change = CostModel.change

    def noted(self: CostModel, *args: object) -> float:
        seen.append(change(self, *args))
        return seen[-1]

    monkeypatch.setattr(CostModel, "change", noted)
    return seen


def test_two_that_cancel_leave_together(measured: list[float]) -> None:
    """By size 1 and 2 leave, an error of 3 of 12; exchanged once 2 and -3, an error of 1; then 3 and -3, of 0."""
    model = net()
    masks = sc.prune(model, "l1", "layer", sc.budget.LeastChange(0.4), example=ONE, options=SIZES)
    assert left(masks, model) == ("0", "2", "4")
    assert measured[0] == pytest.approx((3 / 12) ** 2)
    assert (
        len(measured) == 1 + 3 * 2 * 3
    )  # three rounds of two removed by three that remain; the last betters nothing


def test_the_most_sets_are_held_and_the_best_of_them_is_taken(measured: list[float]) -> None:
    model = net()
    masks = sc.prune(model, "l1", "layer", sc.budget.LeastChange(0.4, most=1), example=ONE, options=SIZES)
    assert left(masks, model) == ("1", "3", "4")  # by their sizes, 1 and 2
    assert len(measured) == 1
    with pytest.raises(OptionError, match="at least 1 set"):
        sc.budget.LeastChange(0.4, most=0)


def test_compare_says_what_counts() -> None:
    """Modulo 3, removing 3 alone changes nothing, nor does removing -3; the first that betters the start is taken."""
    model = net()
    budget = sc.budget.LeastChange(0.2, compare=lambda output, inputs: torch.remainder(output, 3.0))
    assert left(sc.prune(model, "l1", "layer", budget, data=[ONE], options=SIZES), model) == (
        "0",
        "2",
        "3",
        "4",
    )


def test_layers_that_are_gone_stay_gone() -> None:
    model = net()
    gone = sc.prune(model, "l1", "layer", 0.2, example=ONE, options=SIZES)
    assert left(gone, model) == ("1", "2", "3", "4")
    options = sc.PruneOptions(masks=gone, parameters="*.bias")
    masks = sc.prune(model, "l1", "layer", sc.budget.LeastChange(0.4), example=ONE, options=options)
    assert left(masks, model) == (
        "1",
        "2",
        "4",
    )  # 1 and -3: a change of 2; with 2 it were 3, with 3 it were 4


class Needs(nn.Module):
    """Runs without its last block only if all others are there."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Plus(by) for by in (1.0, 3.0, 2.0, -3.0, 8.0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.blocks) < 4 and float(self.blocks[-1].by.bias.detach()) != 8.0:
            raise RuntimeError("the last block is needed with others gone")
        return self.blocks(x)


def test_sets_that_the_model_does_not_run_without_are_not_taken() -> None:
    """Exchanges that remove the last block are tried, do not run, and count as the worst."""
    model = Needs().eval()
    masks = sc.prune(model, "l1", "layer", sc.budget.LeastChange(0.4), example=ONE, options=SIZES)
    assert sc.shrink(model, masks, ONE).plan.layers["blocks"] == ("0", "2", "4")
