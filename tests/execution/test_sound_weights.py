"""NaN weights prove nothing: every verb that compares outputs refuses them by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NonFiniteError
from secateur.execution.sound_weights import check_sound


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("name", ["3.bias", "1.running_mean"])
def test_nan_is_named_and_infinity_is_let_through(name):
    model = net()
    model.state_dict()[name][1] = math.nan
    with pytest.raises(
        NonFiniteError, match=f"'{name}': 1 of . are NaN, so the outputs are or may be, and so it is"
    ):
        check_sound(model, "so it is")
    model.state_dict()[name][1], model.state_dict()[name][0] = math.inf, -math.inf
    check_sound(model, "so it is")


def test_floats_of_eight_bits_and_weights_yet_to_be_made_are_passed(tmp_path):
    model = nn.Sequential(nn.LazyLinear(3), net())
    model[1][0].weight = nn.Parameter(
        model[1][0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False
    )
    check_sound(model, "so it is")


def test_a_model_that_broke_after_pruning_is_not_proved(tmp_path):
    model, x = net(), torch.randn(5, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    model[3].bias.data[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"'3\.bias': 1 of 3 are NaN.*NaN on both sides proves nothing"):
        sc.shrink(model, masks, x)
    with pytest.raises(NonFiniteError, match=r"'3\.bias'.*comparing them with the file's says nothing"):
        sc.export(model, tmp_path / "a.pt2", x)
    assert not list(tmp_path.iterdir())
    with pytest.raises(NonFiniteError, match="accuracy: outputs of the model are NaN"):
        sc.measure(model, x, [(x, torch.zeros(5, dtype=torch.int64))], what="accuracy")
