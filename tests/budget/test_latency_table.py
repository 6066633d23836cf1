"""A budget on the sum of times in a table: worked by hand, with the narrowest width that pays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.budget import Candidates, Selection
from secateur.budget.latency_table import LatencyTable
from secateur.core.units import Units
from secateur.errors import BudgetNotMetError, OptionError

STEPS = {8: 4.0, 6: 3.0, 4: 2.0, 2: 1.0, 1: 1.0}  # pays in twos, down to 2


def chosen(budget: LatencyTable, **scores: list[float]) -> dict[str, int]:
    lists = tuple(Candidates(Units(name, len(each), ()), torch.tensor(each)) for name, each in scores.items())
    return {name: int(keep.sum()) for name, keep in budget.choose(Selection(lists, nn.Identity())).items()}


LOW, HIGH = [1.0, 2, 3, 4, 5, 6, 7, 8], [11.0, 12, 13, 14, 15, 16, 17, 18]


def test_all_units_compete_and_no_list_falls_below_what_pays():
    # 8 ms in all; 5 may remain: `low` loses its 6 lowest and then takes 1 ms, the other is whole: 5 ms
    assert chosen(LatencyTable({"low": STEPS, "high": STEPS}, ms=5.0), low=LOW, high=HIGH) == {
        "low": 2,
        "high": 8,
    }
    # 4 ms: below 2 units `low` saves nothing, so `high` gives 2
    assert chosen(LatencyTable({"low": STEPS, "high": STEPS}, keep=0.5), low=LOW, high=HIGH) == {
        "low": 2,
        "high": 6,
    }


def test_what_costs_no_time_comes_back():
    # 6 ms: `low` must come to 2 ms, at 4 units. With the units mixed, `a` loses 3 and `b` 2: 3 + 3 ms with 5 + 6
    # units, and the one that saved nothing comes back
    mixed = {"a": [1.0, 3, 5, 21, 22, 23, 24, 25], "b": [2.0, 4, 26, 27, 28, 29, 30, 31]}
    assert chosen(LatencyTable({"a": STEPS, "b": STEPS}, ms=6.0), **mixed) == {"a": 6, "b": 6}


def test_lists_that_are_not_named_stay_whole():
    assert chosen(LatencyTable({"high": STEPS}, keep=0.5), low=LOW, high=HIGH) == {"low": 8, "high": 4}


def test_it_prunes_channels_of_a_model():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    x = torch.zeros(1, 1, 4, 4)
    budget = LatencyTable({"0": STEPS, "2": {str(width): time for width, time in STEPS.items()}}, keep=0.5)
    masks = sc.prune(model, "l2", "channel", budget, example=x)
    small = sc.shrink(model, masks, x).model
    widths = small[0].out_channels, small[2].out_channels
    assert sum(STEPS[width] for width in widths) <= 4.0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: LatencyTable({"low": STEPS}), OptionError, "give either ms= .* or keep="),
        (lambda: LatencyTable({}, keep=0.5), OptionError, "at least one list of units, got an empty table"),
        (
            lambda: LatencyTable({"low": {8: 1.0, 4: 2.0}}, keep=0.5),
            OptionError,
            "got 2 ms for 4 and 1 ms for 8",
        ),
        (lambda: LatencyTable({"low": {"x": 1}}, keep=0.5), OptionError, "expected a table of widths"),
        (
            lambda: chosen(LatencyTable({"lo": STEPS}, ms=1), low=LOW),
            OptionError,
            "names 'lo', which is no list",
        ),
        (
            lambda: chosen(LatencyTable({"low": {4: 1}}, ms=1), low=LOW),
            OptionError,
            "its whole width, 8, got widths up to 4",
        ),
        (
            lambda: chosen(LatencyTable({"low": STEPS}, ms=0.5), low=LOW),
            BudgetNotMetError,
            "1 ms remain of 4 at the",
        ),
        (lambda: LatencyTable.at(0.5), OptionError, "a share alone is not enough"),
    ],
)
def test_what_cannot_be_is_said(make, error, text):
    with pytest.raises(error, match=text):
        make()
