"""LatentTraining: levels, gradients, the pull of the bits and the price, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from secateur.errors import NothingToDoError, OptionError
from secateur.quantize.latent_training import LatentOptions, LatentTraining
from secateur.quantize.prices import nonzero_bits

OPTIONS = LatentOptions(target=1, steps=100, until=0.5, most=2, scale=1.0)


def layer() -> nn.Linear:
    """Root mean square of the weights that are not zero: 2."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -2.0, 0.0, 2.0], [0.0, 0.0, -2.0, 0.0]]))
        model.bias.zero_()
    return model


def test_weights_are_multiples_of_the_step_inside_and_after() -> None:
    model = layer()
    with torch.no_grad():
        model.weight[0, 2], model.weight[1, 0] = 0.9, 1.1  # half a step is 1, or a little less with these
        model.weight[1, 3] = 100.0
    first = model.weight
    kept = model.weight.detach()[model.weight.detach() != 0]
    step = float(kept.square().mean().sqrt()) * 0.05
    options = LatentOptions(target=1, steps=100, most=3, scale=0.05)
    with LatentTraining(model, options) as training:
        levels = training.levels()["weight"]
        assert levels.tolist() == [[1, -1, 0, 1], [1, 0, -1, 3]]
        assert torch.allclose(model.weight, levels * step, rtol=1e-6)
        inside = training.state()
        assert sorted(inside) == ["bias", "weight"]
        assert torch.equal(inside["weight"], model.weight.detach())
    assert list(model.state_dict()) == ["weight", "bias"]  # in their order: a file may leave its names to it
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight is first
    assert torch.allclose(model.weight, levels * step, rtol=1e-6)


def test_the_gradient_passes_the_rounding_and_the_step_learns() -> None:
    model = layer()
    with LatentTraining(model, OPTIONS) as training:
        (model.weight * torch.arange(8.0).reshape(2, 4)).sum().backward()
        part = model.parametrizations.weight[0]
        latent = model.parametrizations.weight.original
        assert torch.equal(latent.grad, torch.arange(8.0).reshape(2, 4))
        # d/d(log step) of the sum is the sum itself: 2 * (0 - 1 + 3 - 6).
        assert part.log_step.grad.item() == pytest.approx(-8.0)
        assert training.levels()["weight"].abs().sum() == 4


def test_the_pull_is_the_price_times_the_difference_of_the_bits() -> None:
    model = layer()
    with LatentTraining(model, OPTIONS) as training:
        part = model.parametrizations.weight[0]
        latent = model.parametrizations.weight.original
        with torch.no_grad():
            latent[0, 0], latent[0, 2] = (
                3.0,
                0.5,
            )  # levels 2 and 0: 3 / 2 is nearer to 2 (ties to even), 0.5 / 2 is 0
        training.measured(1000)
        latent.grad = torch.zeros_like(latent)
        part.pull(latent, price=0.5)
        levels = training.levels()["weight"]
        assert levels.tolist() == [[2, -1, 0, 1], [0, 0, -1, 0]]
        # Magnitudes: three of 1 and one of 2, half an occurrence of each more: 5 in all.
        one, two = 1 + math.log2(5 / 3.5), 1 + math.log2(5 / 1.5)
        # latent 3.0 lies between levels 1 and 2; a level is 2.0 wide
        assert latent.grad[0, 0].item() == pytest.approx(0.5 * (two - one) / 2.0, rel=1e-5)
        assert latent.grad[0, 2].item() > 0
        assert latent.grad[1, 0].item() == 0.0  # exactly zero: there is no side to pull from
        assert latent.grad[0, 1].item() == pytest.approx(-0.5 * (two - one) / 2.0, rel=1e-5)


def test_a_level_that_most_weights_take_is_no_refuge_from_the_price() -> None:
    model = layer()
    with LatentTraining(model, OPTIONS):
        part = model.parametrizations.weight[0]
        latent = model.parametrizations.weight.original
        with torch.no_grad():
            latent.mul_(2.0)  # all four of level 2, which costs no more than level 1
        part.estimate(latent)
        # The step up from 2 costs nothing. Level 1 has half an occurrence of five: log2(10) bits and a sign. Level 2
        # costs no less, and the mean of two levels is half of that.
        nonzero, zeroed = nonzero_bits(latent != 0)
        quarter = (nonzero - zeroed + 1 + math.log2(5 / 0.5)) / 2 / 4
        assert torch.allclose(part.slopes[0, 0], quarter[0, 0])
        assert bool((part.slopes[latent != 0] > 0).all())


def test_bits_of_an_empty_row_pull_harder_than_those_of_a_full_one() -> None:
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0] = 1.0
        model.weight[5, 0] = 1.0
    with LatentTraining(model, OPTIONS):
        part = model.parametrizations.weight[0]
        latent = model.parametrizations.weight.original
        with torch.no_grad():
            latent.fill_(0.4)
            latent[0] = 0.9
            latent[5, 0] = 0.9
        part.estimate(latent)
        assert part.slopes[5, 0] > part.slopes[0, 0]
        assert part.slopes[7, 7] > part.slopes[0, 7]


def test_the_price_rises_while_there_are_too_many_bytes_and_falls_below() -> None:
    model = layer()
    options = LatentOptions(target=100, steps=5000, until=0.001, ahead=0.0)
    with LatentTraining(model, options) as training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        training.measured(150)
        prices = []
        for size in (150, 150, 99, 99):
            training.measured(size)
            for _ in range(10):
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
            prices.append(training.price)
        assert prices[1] > prices[0] > 1e-6
        assert prices[3] < prices[2] < prices[0]


def test_far_from_the_bytes_wanted_the_price_is_a_hundred_times_its_slow_part() -> None:
    with LatentTraining(layer(), LatentOptions(target=10, steps=100, until=0.001, price=1e-6)) as training:
        training.measured(10_000)
        training._numbers[0] = 50
        assert training.price == pytest.approx(1e-4)
        training.measured(1)
        assert training.price == pytest.approx(1e-8)


@pytest.mark.parametrize(
    ("rate", "size", "over"),
    [
        (0.1, 130, 0.0),  # the highest rate: 30 % more than the target is wanted
        (0.05, 115, 0.0),  # half of it: 15 %
        (0.05, 120, math.log(120 / 115) / 0.5),  # and the price follows twice as fast
        (0.0, 100, 0.0),
        (0.0, 101, math.log(1.01) / 0.05),  # 20 times as fast at most
    ],
)
def test_the_lower_the_rate_the_less_is_wanted_and_the_faster_the_price_follows(rate, size, over) -> None:
    model = layer()
    with LatentTraining(model, LatentOptions(target=100, steps=10_000, until=0.0001)) as training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training.measured(size)
        for optimizer.param_groups[0]["lr"] in (0.1, rate):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        training.measured(size)
        slow = float(training._numbers[3])
        assert math.log(training.price) - slow == pytest.approx(8.0 * over, abs=1e-3)


def test_where_the_rate_stays_high_the_last_step_wants_the_target() -> None:
    model = layer()
    with LatentTraining(model, LatentOptions(target=100, steps=1000, until=0.5)) as training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training.measured(100)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        for done, wanted in ((500, 130.0), (750, 115.0), (1000, 100.0)):
            training._numbers[0] = done
            training._numbers[2] = wanted / (training.bits / 8)
            assert math.log(training.price) == pytest.approx(float(training._numbers[3])), done


def test_without_ahead_neither_wanted_bytes_nor_price_look_at_the_rate() -> None:
    model = layer()
    with LatentTraining(model, LatentOptions(target=100, steps=10_000, until=0.0001, ahead=0.0)) as training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training.measured(120)
        for optimizer.param_groups[0]["lr"] in (0.1, 0.01):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        training.measured(120)
        slow = float(training._numbers[3])
        assert math.log(training.price) - slow == pytest.approx(8.0 * math.log(1.2), abs=1e-9)


def test_a_training_reaches_the_bytes_asked_for_and_keeps_what_matters() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 32)
    wanted = 2.0 * inputs[:, :1] - inputs[:, 1:2]  # two of 32 inputs matter
    model = nn.Linear(32, 1)
    with torch.no_grad():
        model.weight.normal_(0, 0.5)
    with LatentTraining(model, LatentOptions(target=4, steps=400)) as training:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        training.measured(math.ceil(training.bits / 8))
        begin = training.estimated_bytes
        for _ in range(400):
            optimizer.zero_grad()
            (model(inputs) - wanted).square().mean().backward()
            optimizer.step()
        levels = training.levels()["weight"][0]
        assert training.estimated_bytes < 0.6 * begin
    assert levels[0] > 0 > levels[1]
    assert int((levels != 0).sum()) <= 4
    assert (model(inputs) - wanted).square().mean() < 0.05 * wanted.square().mean()


def test_what_cannot_be_trained_is_refused() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(NothingToDoError, match="Linear: no weight to train for bytes that is not zero"):
        LatentTraining(model, OPTIONS)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(OptionError, match=r"0.weight: 1.weight is the same tensor"):
        LatentTraining(tied, OPTIONS)
    with pytest.raises(OptionError, match="until: expected a share 0 < until <= 1, got 0"):
        LatentOptions(target=1, steps=1, until=0)
    with pytest.raises(OptionError, match=r"ahead: expected a share 0 <= ahead <= 1, got -0\.1"):
        LatentOptions(target=1, steps=1, ahead=-0.1)


def test_an_error_inside_leaves_the_model_with_parameters() -> None:
    model = layer()
    with pytest.raises(RuntimeError, match="stop"), LatentTraining(model, OPTIONS):
        raise RuntimeError("stop")
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


def test_biases_are_pulled_by_what_they_cost_and_are_zero_where_the_file_rounds_them_to_zero() -> None:
    model = layer()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.6, -0.02]))
    options = LatentOptions(target=1, steps=100, most=2, scale=1.0, biases=3)
    with LatentTraining(model, options) as training:
        weights = LatentTraining(layer(), OPTIONS)
        with weights:
            weights.measured(1000)
        training.measured(1000)
        # Three bits: a step is the root mean square, sqrt((0.36 + 0.0004) / 2) = 0.4245; levels 1 and 0.
        step = math.sqrt((0.6**2 + 0.02**2) / 2)
        assert training._biases.step == pytest.approx(step)
        # One of two is not zero, half an occurrence of each more: one bit each; the one level: 1 + log2(1.5 / 1.5).
        assert training.bits - weights.bits == pytest.approx(1 + 1 + 1)
        model.bias.grad = torch.zeros(2)
        training._biases.pull(price=0.5)
        # Levels 0 and 1 are (1 + 1) - 1 = 1 bit apart; 0.6 is above the highest, where a quarter of that holds.
        assert model.bias.grad.tolist() == pytest.approx([0.125 / step, -0.5 / step])
    assert model.bias.tolist() == pytest.approx([0.6, 0.0])
    assert bool((model.bias[1] == 0).all())
    model.bias.data[1] = 0.02
    with LatentTraining(model, OPTIONS):
        pass
    assert bool((model.bias != 0).all())  # without a number of bits they are left alone


def test_biases_are_pulled_only_after_their_bits_were_estimated() -> None:
    model = layer()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.6, -0.02]))
    with LatentTraining(model, LatentOptions(target=1, steps=100, most=2, scale=1.0, biases=3)) as training:
        training._biases._ratio()  # the step is known, the slopes are not
        training._biases.slopes = None
        model.bias.grad = torch.zeros(2)
        training._biases.pull(price=0.5)
        assert model.bias.grad.tolist() == [0.0, 0.0]


def test_a_block_left_by_an_error_leaves_the_biases() -> None:
    model = layer()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.6, -0.02]))
    options = LatentOptions(target=1, steps=9, biases=3)
    with pytest.raises(ValueError, match="within"), LatentTraining(model, options):
        raise ValueError("within")
    assert model.bias.tolist() == pytest.approx([0.6, -0.02])
