"""LAMP against numbers worked by hand and against the published definition written out."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.lamp import Lamp


def test_worked_by_hand():
    # squares 1, 4, 9: 1 / (1 + 4 + 9), 4 / (4 + 9), 9 / 9
    assert Lamp().reduce(torch.tensor([[1.0], [-2.0], [3.0]])).tolist() == pytest.approx(
        [1 / 14, 4 / 13, 1.0]
    )
    # equal squares have equal scores, and count in each other's sum: 1 / 6, 1 / 6, 4 / 4
    assert Lamp().reduce(torch.tensor([[1.0], [-1.0], [2.0]])).tolist() == pytest.approx([1 / 6, 1 / 6, 1.0])
    # units of several weights by their norms: 5 and 12 -> 25 / 169, 144 / 144
    assert Lamp().reduce(torch.tensor([[3.0, 4.0], [12.0, 0.0]])).tolist() == pytest.approx([25 / 169, 1.0])
    assert Lamp().reduce(torch.zeros(3, 1)).tolist() == [0.0] * 3


def test_weights_of_any_size_keep_the_scores():
    weights = torch.tensor([[1.0], [-2.0], [3.0]])
    for scale in (1e-25, 1e25):
        assert Lamp().reduce(weights * scale).tolist() == pytest.approx([1 / 14, 4 / 13, 1.0])


def test_as_published_on_a_layer_without_ties():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, bias=False)
    squares = layer.weight.detach().double().flatten().square()
    order = squares.sort()
    left = order.values.sum() - order.values.cumsum(0) + order.values  # from this one on
    wanted = torch.empty_like(squares)
    wanted[order.indices] = order.values / left
    scores = Lamp().scores(layer, select(layer), Context())["weight"]
    assert torch.allclose(Lamp().reduce(scores.reshape(-1, 1)).double(), wanted, rtol=1e-5)


def test_one_budget_over_layers_of_any_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight.data.copy_(model[0].weight.data * 1000)
    masks = sc.prune(model, "lamp", budget=sc.budget.Overall(0.5))
    assert [row.kept for row in masks.summary()] == [200, 200]  # magnitude would empty the first
