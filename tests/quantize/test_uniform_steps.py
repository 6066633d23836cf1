"""Uniform steps: plain rounding, the choice of a step, and rounding that knows what a bit costs."""

import numpy as np
import pytest
import torch

from secateur.errors import OptionError
from secateur.quantize import Uniform
from secateur.quantize.methods.uniform import _bits, _envelope
from secateur.quantize.rates import entropy_bits, huffman_bits


def laplace(count: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=count)).float()


def integers_of(palette, weights):
    return palette.assign(weights) + palette.low


def test_plain_rounding_by_hand():
    weights = torch.tensor([-1.3, -0.26, -0.24, 0.0, 0.24, 0.26, 0.76])
    palette = Uniform(step=0.5).palette("w", weights, 0, 0)
    assert integers_of(palette, weights).tolist() == [-3, -1, 0, 0, 0, 1, 2]
    assert (palette.step, palette.low) == (0.5, -3)


def test_half_a_step_goes_to_the_lower_level():
    weights = torch.tensor([-0.75, -0.25, 0.25, 0.75, 1.0, -1.0])
    assert integers_of(Uniform(step=0.5).palette("w", weights, 0, 0), weights).tolist() == [
        -2,
        -1,
        0,
        1,
        2,
        -2,
    ]


def test_dead_zone():
    weights = torch.tensor([-0.8, -0.4, 0.4, 0.6, 0.8])
    assert integers_of(Uniform(step=0.5, dead_zone=1.0).palette("w", weights, 0, 0), weights).tolist() == [
        -2,
        0,
        0,
        1,
        2,
    ]
    assert (
        integers_of(Uniform(step=0.5, dead_zone=1.7).palette("w", weights, 0, 0), weights).tolist() == [0] * 5
    )


def test_bits_limit_the_levels():
    weights = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert integers_of(Uniform(step=1.0, bits=2).palette("w", weights, 0, 0), weights).tolist() == [
        -1,
        -1,
        0,
        1,
        1,
    ]


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_step_chosen_for_bits_is_near_the_best_of_a_fine_search(bits):
    weights = laplace(5000)
    limit = 2 ** (bits - 1) - 1

    def error(step: float) -> float:
        levels = torch.clamp(torch.round(weights.double() / step), -limit, limit)
        return float(((weights.double() - levels * step) ** 2).sum())

    palette = Uniform(bits=bits).palette("w", weights, 0, 0)
    top = float(weights.abs().max()) / limit
    assert error(palette.step) <= min(error(step) for step in np.linspace(top / 50, top, 200)) * 1.002
    assert max(abs(palette.values)) <= limit * palette.step * (1 + 1e-6)


def test_values_are_step_times_level_and_the_step_fits_four_bytes():
    weights = laplace(500).half()
    palette = Uniform(step=0.1).palette("w", weights, 0, 0)
    assert palette.step == float(np.float32(0.1))
    levels = palette.low + np.arange(palette.values.size)
    expected = torch.from_numpy(levels * palette.step).half().double().numpy()
    np.testing.assert_array_equal(palette.values, expected)


def test_half_precision_never_rounds_up_to_infinity():
    weights = torch.tensor([65504.0, -65504.0, 1.0]).half()
    palette = Uniform(step=40_000.0).palette("w", weights, 0, 0)
    assert np.isfinite(palette.values).all()


# -- coded bits ------------------------------------------------------------------------------------


def test_the_step_of_coded_bits_by_hand():
    # 7,000 numbers even over a width of 7. By a step of 1.25 five levels have 1.25 / 7 of them each, and the outer two
    # 0.375 / 7: 5 x 0.1786 x 2.485 + 2 x 0.0536 x 4.222 = 2.6715 bits. A larger step has fewer.
    weights = (torch.arange(7000) + 0.5) / 1000 - 3.5
    palette = Uniform(coded_bits=2.6715).palette("w", weights, 0, 0)
    assert palette.values.size == 7
    assert palette.step == pytest.approx(1.25, rel=2e-3)


@pytest.mark.parametrize("bits", [0.5, 2, 3.25, 6])
def test_plain_rounding_by_the_step_of_coded_bits_has_this_entropy(bits):
    weights = 1e-3 * laplace()
    palette = Uniform(coded_bits=bits).palette("w", weights, 0, 0)
    counts = torch.bincount(palette.assign(weights)).numpy()
    assert bits <= entropy_bits(counts) / weights.numel() < bits + 0.01


def test_coded_bits_that_no_step_reaches_are_refused():
    with pytest.raises(
        OptionError, match=r"fc: expected weights that take coded_bits=3 each, got fewer distinct"
    ):
        Uniform(coded_bits=3).palette("fc", torch.tensor([-1.0, 0.0, 0.5, 1.0]), 0, 0)
    assert Uniform(coded_bits=3).palette("fc", torch.zeros(4), 0, 0).values.tolist() == [0.0]


@pytest.mark.parametrize("options", [{"coded_bits": 0}, {"coded_bits": 17}, {"coded_bits": 3, "step": 0.1}])
def test_coded_bits_stand_alone_and_lie_between_0_and_16(options):
    with pytest.raises(OptionError, match="coded_bits of uniform sharing"):
        Uniform(**options)


# -- rate ------------------------------------------------------------------------------------------


def test_the_envelope_is_the_best_level_for_every_weight():
    random = np.random.default_rng(0)
    levels = np.arange(-6, 7)
    prices = random.uniform(0, 3, size=levels.size)
    cuts = _envelope(levels, prices)
    assert (np.diff(cuts) >= 0).all()
    weights = random.uniform(-8, 8, size=5000)
    costs = (weights[:, None] - levels) ** 2 + prices
    chosen = np.searchsorted(cuts, weights, side="left")
    np.testing.assert_allclose(costs[np.arange(5000), chosen], costs.min(axis=1), atol=1e-12)


def test_half_an_occurrence_by_hand():
    assert _bits(np.array([3, 0])).tolist() == pytest.approx([np.log2(4 / 3.5), 3.0])


@pytest.mark.parametrize("zeros", [0, 30_000])
def test_a_price_on_bits_lowers_error_plus_price(zeros):
    weights, step, rate = laplace(), 0.3, 0.15

    def outcome(palette) -> tuple[float, float]:
        levels = integers_of(palette, weights)
        counts = torch.bincount(levels - int(levels.min())).numpy().copy()
        counts[-int(levels.min())] += zeros
        error = float(((weights.double() / palette.step - levels) ** 2).sum())
        return error, entropy_bits(counts)

    plain = outcome(Uniform(step=step).palette("w", weights, zeros, 0))
    priced = outcome(Uniform(step=step, rate=rate).palette("w", weights, zeros, 0))
    assert priced[1] < plain[1]
    assert priced[0] + rate * priced[1] < plain[0] + rate * plain[1]


def test_rate_aware_rounding_beats_a_coarser_step_at_equal_bits():
    # The point of it: at equal entropy, a smaller squared error than plain rounding with a larger step.
    weights = laplace(50_000)

    def outcome(method: Uniform) -> tuple[float, float]:
        palette = method.palette("w", weights, 0, 0)
        index = palette.assign(weights)
        error = float(((weights.double() - torch.from_numpy(palette.values)[index]) ** 2).mean())
        return entropy_bits(torch.bincount(index).numpy()) / weights.numel(), error

    bits, error = outcome(Uniform(step=0.5, rate=0.1))
    coarser = [outcome(Uniform(step=step)) for step in np.linspace(0.5, 1.0, 26)]
    rates, errors = zip(*sorted(coarser))
    assert error < np.interp(bits, rates, errors) * 0.99


def test_the_price_is_of_squared_steps_so_the_scale_of_the_weights_changes_nothing():
    weights = laplace()
    one = Uniform(step=0.3, rate=0.15).palette("w", weights, 0, 0)
    two = Uniform(step=0.3 * 64, rate=0.15).palette("w", weights * 64, 0, 0)
    assert torch.equal(integers_of(one, weights), integers_of(two, weights * 64))


def test_price_zero_is_plain_rounding():
    weights = laplace(1000)
    one, two = (Uniform(step=0.2, rate=rate).palette("w", weights, 0, 0) for rate in (0.0, 1e-12))
    assert torch.equal(integers_of(one, weights), integers_of(two, weights))


def test_options_say_what_is_wrong():
    for options, text in [
        ({"step": 0.0}, "step of uniform sharing"),
        ({"step": float("nan")}, "step of uniform sharing"),
        ({"bits": 1}, "whole number from 2 to 16"),
        ({"rate": -1.0}, "rate of uniform sharing"),
        ({"dead_zone": 0.2}, "dead_zone of uniform sharing"),
        ({"rounds": 0}, "rounds of uniform sharing"),
    ]:
        with pytest.raises(OptionError, match=text):
            Uniform(**options)
    with pytest.raises(OptionError, match=r"fc.weight: a step of 1e-06 needs 2,000,001 levels.*larger step"):
        Uniform(step=1e-6).palette("fc.weight", torch.tensor([-1.0, 1.0]), 0, 0)


# -- what a code costs -----------------------------------------------------------------------------


def test_huffman_by_hand():
    # Lengths 1, 2, 3, 4, 4 for counts 15, 7, 6, 6, 5 give 15+14+18+24+20; the best tree is 1, 3, 3, 3, 3.
    assert huffman_bits(np.array([15, 7, 6, 6, 5])) == 15 + 3 * (7 + 6 + 6 + 5)
    assert huffman_bits(np.array([0, 0])) == 0


@pytest.mark.parametrize("seed", range(5))
def test_huffman_is_within_a_bit_of_the_entropy(seed):
    counts = np.random.default_rng(seed).integers(0, 1000, size=33)
    assert entropy_bits(counts) <= huffman_bits(counts) < entropy_bits(counts) + counts.sum()
