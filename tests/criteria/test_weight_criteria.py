"""random, magnitude, l1, l2, fpgm: worked by hand, the definitions written out, ties, number ranges."""

import math
import random as python_random

import pytest
import torch
from torch import nn

from secateur import criteria
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria import fpgm as fpgm_module
from secateur.criteria.fpgm import Fpgm
from secateur.criteria.l1 import L1
from secateur.criteria.l2 import L2
from secateur.criteria.magnitude import Magnitude
from secateur.criteria.random import Random
from secateur.errors import NonFiniteError, OptionError, UnknownNameError

UNITS = torch.tensor([[3.0, -4.0], [0.0, 0.0], [-6.0, -8.0], [3.0, -4.0]])


def one_layer(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


def evidence(criterion, weight: torch.Tensor, seed: int = 0) -> torch.Tensor:
    layer = one_layer(weight)
    return criterion.scores(layer, select(layer), Context(seed=seed))["weight"]


def worth(criterion, weight: torch.Tensor) -> torch.Tensor:
    return criterion.reduce(evidence(criterion, weight))


@pytest.mark.parametrize(
    ("criterion", "by_hand"),
    [
        (Magnitude(), [7.0, 0.0, 14.0, 7.0]),
        (L1(), [7.0, 0.0, 14.0, 7.0]),
        (L2(), [5.0, 0.0, 10.0, 5.0]),
        # (3,-4) to (0,0): 5; to (-6,-8): sqrt(81 + 16); (0,0) to (-6,-8): 10; each against three
        (Fpgm(), [5 + math.sqrt(97), 5 + 10 + 5, 10 + 2 * math.sqrt(97), 5 + math.sqrt(97)]),
    ],
)
def test_worth_of_units_worked_by_hand(criterion, by_hand):
    assert worth(criterion, UNITS).tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("criterion", [Magnitude(), L1(), L2()])
def test_a_single_weight_is_worth_exactly_its_absolute_value(criterion):
    weight = torch.tensor([[0.1], [-0.3], [1e-30], [-1e30]])
    assert torch.equal(worth(criterion, weight), weight.abs()[:, 0])


@pytest.mark.parametrize(
    "name", ["random", "magnitude", "level", "l1", "l2", "fpgm", "taylor", "snip", "grasp", "synflow"]
)
def test_every_criterion_answers_to_its_name(name):
    assert isinstance(criteria.registry.make(name), criteria.Criterion)


def test_level_is_magnitude_and_a_misspelt_name_is_helped():
    assert criteria.registry.make("level") == Magnitude()
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'fgpm': did you mean 'fpgm'\?"):
        criteria.registry.make("fgpm")


# -- random --------------------------------------------------------------------------------------------------


def test_random_depends_on_the_seed_and_the_name_and_on_nothing_else():
    weight = torch.zeros(5, 4)
    first = evidence(Random(), weight, seed=3)
    layer = one_layer(weight + 1)
    torch.manual_seed(99)
    python_random.seed(99)
    before = torch.get_rng_state()
    again = Random().scores(layer, select(layer), Context(seed=3))["weight"]
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, evidence(Random(), weight, seed=4))
    two = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False))
    scores = Random().scores(two, select(two), Context(seed=3))
    assert not torch.equal(scores["0.weight"], scores["1.weight"])
    alone = Random().scores(two, select(two, only=["1"]), Context(seed=3))
    assert torch.equal(scores["1.weight"], alone["1.weight"])


def test_random_bytes_stay_the_same_between_versions():
    # a promise: the same seed gives the same masks for ever
    drawn = evidence(Random(), torch.zeros(1, 3), seed=0)
    assert drawn[0].tolist() == pytest.approx(
        [0.8660754561424255, 0.5979416966438293, 0.2825489640235901], abs=0
    )


def test_random_does_not_favour_large_units():
    # a sum of uniforms would put every large unit above every small one
    small = Random().reduce(evidence(Random(), torch.zeros(400, 1), seed=1))
    large = Random().reduce(evidence(Random(), torch.zeros(400, 100), seed=2))
    assert abs(small.mean().item() - large.mean().item()) < 0.1
    assert 0.4 < large.mean().item() < 0.6


# -- norms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1e-20, 1e-18, 1.0, 1e18, 1e22, 1e30])
def test_l2_holds_where_squares_leave_float32(factor):
    got = worth(L2(), UNITS * factor)
    assert (got / factor).tolist() == pytest.approx([5.0, 0.0, 10.0, 5.0], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-300, 1e-162, 1e-158, 1.0, 1e160, 1e300])
def test_l2_holds_where_squares_leave_float64(factor):
    got = worth(L2(), UNITS.double() * factor)
    assert got.dtype == torch.float64
    assert (got / factor).tolist() == pytest.approx([5.0, 0.0, 10.0, 5.0], rel=1e-14)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_fpgm_holds_where_squares_leave_float32(factor):
    got = worth(Fpgm(), UNITS * factor) / factor
    assert got.tolist() == pytest.approx(
        [5 + math.sqrt(97), 20.0, 10 + 2 * math.sqrt(97), 5 + math.sqrt(97)], rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("criterion", [Magnitude(), L1(), L2(), Fpgm(), Random()])
def test_other_types_are_summed_without_overflow(criterion, dtype):
    weight = torch.full((3, 4096), 100.0, dtype=dtype)  # sums to 409,600: past the largest half, 65,504
    weight[1] = 50.0
    got = worth(criterion, weight)
    assert got.shape == (3,)
    assert bool(torch.isfinite(got).all())
    if criterion in (Magnitude(), L1()):
        assert got.tolist() == [409600.0, 204800.0, 409600.0]


@pytest.mark.parametrize("criterion", [Magnitude(), L1(), L2(), Fpgm()])
@pytest.mark.parametrize("width", [2, 9, 27, 147, 577])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_units_are_worth_exactly_the_same_wherever_they_stand(criterion, width, dtype):
    torch.manual_seed(width)
    kinds = torch.randn(7, width, dtype=dtype)
    which = torch.arange(600) * 5 % 7
    got = criterion.reduce(criterion.scores(one := one_layer(kinds[which]), select(one), Context())["weight"])
    for kind in range(7):
        assert len(set(got[which == kind].tolist())) == 1


@pytest.mark.parametrize("name", ["random", "magnitude", "l1", "l2", "fpgm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_without_a_value_is_named(name, bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data[0, 1] = bad
    with pytest.raises(
        NonFiniteError, match=r"weight '1.weight': 1 of 4 are NaN or infinite; .* load a sound"
    ):
        criteria.registry.make(name).scores(model, select(model), Context())


# -- fpgm against the definition -----------------------------------------------------------------------------


def by_definition(units: torch.Tensor) -> torch.Tensor:
    """Sum over the others of the Euclidean distance, one pair at a time."""
    rows = units.double()
    return torch.stack([(rows - row).pow(2).sum(1).sqrt().sum() for row in rows])


@pytest.mark.parametrize("shape", [(2, 3), (40, 27), (300, 64), (700, 5)])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_fpgm_is_the_published_sum_of_distances(shape, spread):
    torch.manual_seed(0)
    units = torch.randn(shape[1]) + spread * torch.randn(
        shape
    )  # a small spread: cancellation in |a|^2+|b|^2-2ab
    want = by_definition(units)
    got = Fpgm().reduce(units).double()
    assert torch.allclose(got, want, rtol=2e-6, atol=0)
    assert torch.allclose(Fpgm().reduce(units.double()), want, rtol=1e-12, atol=0)


def test_fpgm_of_pairs_of_near_twins_is_exact_where_products_alone_are_not():
    torch.manual_seed(1)
    one = torch.randn(300, 50)
    units = torch.cat([one, one + 1e-4 * torch.randn(300, 50)])
    assert torch.allclose(Fpgm().reduce(units).double(), by_definition(units), rtol=2e-6, atol=0)
    near = fpgm_module._distances(
        one[:1], units[300:301], one[:1].square().sum(1), units[300:301].square().sum(1), False
    )
    assert near.item() == pytest.approx((one[0] - units[300]).norm().item(), rel=1e-5)


def test_fpgm_with_many_removed_filters_counts_each_of_them():
    torch.manual_seed(2)
    units = torch.randn(600, 12)
    units[::2] = 0.0
    units[1::6] = units[1]
    got = Fpgm().reduce(units)
    assert torch.allclose(got.double(), by_definition(units), rtol=2e-6, atol=0)
    assert got[::2].unique().numel() == 1
    assert got[1::6].unique().numel() == 1


def test_fpgm_of_filters_all_equally_far_apart_is_one_tie():
    got = Fpgm().reduce(torch.eye(300))
    assert got.unique().numel() == 1
    assert got[0].item() == pytest.approx(299 * math.sqrt(2), rel=1e-6)


def test_fpgm_of_single_weights_is_worked_out_on_the_line():
    torch.manual_seed(3)
    points = torch.randint(-20, 20, (500, 1)).float()
    assert torch.equal(Fpgm().reduce(points).double(), by_definition(points))


def test_fpgm_of_one_unit_and_of_equal_units_is_zero():
    assert Fpgm().reduce(torch.ones(1, 4)).tolist() == [0.0]
    assert Fpgm().reduce(torch.full((5, 3), 0.1)).tolist() == [0.0] * 5
    assert Fpgm().reduce(torch.zeros(4, 3)).tolist() == [0.0] * 4


def test_fpgm_in_small_blocks_is_the_same(monkeypatch):
    torch.manual_seed(4)
    units = torch.randn(50, 6)
    units[20] = units[3]
    want = by_definition(units)
    monkeypatch.setattr(fpgm_module, "_BLOCK", 8)
    monkeypatch.setattr(fpgm_module, "_STRIP", 12)
    got = Fpgm().reduce(units)
    assert torch.allclose(got.double(), want, rtol=2e-6, atol=0)
    assert got[20] == got[3]


def test_options_are_checked_when_made():
    with pytest.raises(OptionError, match="mode: expected one of 'as_found', 'train', 'eval', got 'test'"):
        criteria.registry.make("snip", mode="test")
    with pytest.raises(OptionError, match="temperature: expected a number above 0, got -1"):
        criteria.registry.make("grasp", temperature=-1)
    with pytest.raises(OptionError, match="biases: expected 'zero' or 'abs', got 'none'"):
        criteria.registry.make("synflow", biases="none")
