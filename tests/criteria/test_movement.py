"""Movement: the sum of -g * w over the steps of a copy, worked by hand."""

import pytest
import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.movement import Movement
from secateur.errors import OptionError


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def layer(*values: float) -> nn.Linear:
    made = nn.Linear(len(values), 1, bias=False)
    made.weight.data.copy_(torch.tensor([values]))
    return made


BATCH = (torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0]]))


def test_worked_by_hand_over_two_steps():
    # y = 2a - b at (1, 3) is -1, target 1: g = (-4, -12), -g w = (8, -12); with lr 0.01 w becomes (2.04, -0.88),
    # y = -0.6, g = (-3.2, -9.6), -g w = (6.528, -8.448)
    model = layer(2.0, -1.0)
    found = Movement(lr=0.01).scores(model, select(model), Context(data=[BATCH] * 2, loss=squared))
    assert found["weight"][0].tolist() == pytest.approx([14.528, -20.448], rel=1e-5)
    assert model.weight.tolist() == [[2.0, -1.0]]


def test_weights_that_are_zero_stay_so():
    # without the second weight y = 2a: at (1, 3) it is 2, target 1: g = 2, -g w = -4; w becomes 1.9, g = 1.8
    model = layer(2.0, 0.0)
    found = Movement(lr=0.05).scores(model, select(model), Context(data=[BATCH] * 2, loss=squared))
    assert found["weight"][0].tolist() == pytest.approx([-4.0 - 1.8 * 1.9, 0.0], rel=1e-5)


def test_what_is_no_target_trains_as_well():
    # L = (a b)^2 / 2 at a = b = 1, lr 0.5: -g w of a is -1; then a = b = 0.5 and it is -0.0625
    model = nn.Sequential(layer(1.0), layer(1.0))
    context = Context(data=[(torch.ones(1, 1), None)] * 2, loss=lambda out, _: out.square().mean() / 2)
    found = Movement(lr=0.5).scores(model, select(model, only="0"), context)
    assert found["0.weight"].item() == pytest.approx(-1.0625)


def test_the_rate_is_checked():
    with pytest.raises(OptionError, match="lr: expected a number above 0, got 0"):
        Movement(lr=0)
