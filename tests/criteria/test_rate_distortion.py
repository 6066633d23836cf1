"""Squared weights over the bits that keeping them adds, worked by hand."""

import math

import pytest
import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.rate_distortion import RateDistortion
from secateur.errors import OptionError


def scores(criterion: RateDistortion) -> list[float]:
    model = nn.Linear(4, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, 2.0, 0.0, -3.0]]))
    return criterion.scores(model, select(model), Context())["weight"][0].tolist()


def test_worked_by_hand() -> None:
    # 3 of 4 are not zero: with half of one seen before of each kind, 3.5 / 5 = 0.7. "Is not zero" takes -log2(0.7)
    # bits and "is zero" -log2(0.3): keeping a weight saves log2(7 / 3) of the 2.5 bits of its value.
    bits = 2.5 - math.log2(7 / 3)
    assert scores(RateDistortion()) == pytest.approx([1 / bits, 4 / bits, 0.0, 9 / bits], rel=1e-5)


def test_bits_have_a_floor() -> None:
    assert scores(RateDistortion(value_bits=0)) == [1.0, 4.0, 0.0, 9.0]
    assert scores(RateDistortion(value_bits=0, least_bits=0.5)) == [2.0, 8.0, 0.0, 18.0]


@pytest.mark.parametrize(
    ("options", "text"), [({"value_bits": -1}, "value_bits"), ({"least_bits": 0}, "least_bits")]
)
def test_bits_out_of_range(options: dict[str, float], text: str) -> None:
    with pytest.raises(OptionError, match=f"{text} of rate_distortion: expected"):
        RateDistortion(**options)
