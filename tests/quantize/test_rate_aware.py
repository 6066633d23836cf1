"""Rate-aware assignment: where a weight goes when a bit has a price, worked out by hand."""

import copy
import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import OptionError
from secateur.quantize import Prices, assign_by_rate, nonzero_bits
from secateur.quantize.share import ShareOptions


def test_without_a_price_every_weight_goes_to_the_nearest_value():
    weights, values = torch.tensor([0.1, 0.9, 1.4, 2.6]), torch.tensor([0.0, 1.0, 2.0])
    assert assign_by_rate(weights, values, zero=None, rate=0.0).tolist() == [0, 1, 1, 2]


def test_a_price_moves_a_weight_to_a_cheaper_value_just_when_it_pays():
    # Seven weights at 1.0, one at 1.6 beside 2.0. Nearest: 2.0 once. With half an occurrence of each value to start
    # from, 1.0 costs log2(9 / 7.5) = 0.263 bits and 2.0 log2(9 / 1.5) = 2.585. Errors: 0.36 to 1.0, 0.16 to 2.0.
    # So the weight moves where 0.36 + 0.263 r < 0.16 + 2.585 r: above r = 0.0861.
    weights, values = torch.tensor([1.0] * 7 + [1.6]), torch.tensor([1.0, 2.0])
    turn = (0.36 - 0.16) / (math.log2(9 / 1.5) - math.log2(9 / 7.5))
    assert turn == pytest.approx(0.0861, abs=1e-4)
    assert assign_by_rate(weights, values, None, 0.99 * turn).tolist() == [0] * 7 + [1]
    assert assign_by_rate(weights, values, None, 1.01 * turn).tolist() == [0] * 8


def test_importance_holds_a_weight_where_it_is():
    weights, values = torch.tensor([1.0] * 7 + [1.6]), torch.tensor([1.0, 2.0])
    importance = torch.tensor([1.0] * 7 + [10.0])
    assert assign_by_rate(weights, values, None, 0.2, importance).tolist() == [0] * 7 + [1]


def test_a_lonely_weight_pays_more_to_be_there_than_one_in_a_full_row():
    there = torch.zeros(8, 8, dtype=torch.bool)
    there[0] = True
    there[5, 3] = True
    yes, no = nonzero_bits(there)
    assert yes[5, 3] > yes[0, 3] + 2
    assert no[0, 3] > no[5, 3]
    # A place's two probabilities are one together.
    assert torch.allclose(2**-yes + 2**-no, torch.ones(8, 8), atol=1e-5)


def test_of_equal_weights_the_lonely_one_becomes_zero():
    weights = torch.zeros(8, 8)
    weights[0] = 1.0
    weights[5, 3] = 1.0
    values = torch.tensor([0.0, 1.0])
    yes, no = nonzero_bits(weights != 0)
    between = 1.0 / (yes[5, 3] - no[5, 3]).item() * 1.05  # pays for itself in the full row, not alone
    found = assign_by_rate(weights, values, 0, between, rounds=1)
    assert found[0].tolist() == [1] * 8
    assert found[5, 3] == 0


def test_masked_weights_stay_at_zero_however_large():
    weights, kept = torch.tensor([[5.0, 1.0, 1.0]]), torch.tensor([[False, True, True]])
    assert assign_by_rate(weights, torch.tensor([0.0, 1.0]), 0, 0.0, kept=kept).tolist() == [[0, 1, 1]]


def test_prices_add_up_to_the_bits_of_an_adaptive_code():
    indices = torch.tensor([0, 0, 0, 1])
    prices = Prices.of(indices, size=2, zero=None)
    assert prices.total(indices) == pytest.approx(3 * math.log2(5 / 3.5) + math.log2(5 / 1.5))


def sparse(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        model.weight *= torch.rand(30, 40) < 0.2
    return model


def test_share_with_a_rate_needs_fewer_bits_for_more_error():
    model = sparse()
    plain, priced = sc.share(model, bits=2), sc.share(model, bits=2, rate=0.05)

    def bits(shared):
        book = shared.codebooks["weight"]
        return Prices.of(book.indices, len(book.values), book.zero).total(book.indices)

    assert bits(priced) < bits(plain)
    assert priced.distortion["weight"] > plain.distortion["weight"]
    left = priced.codebooks["weight"].tensor() != 0
    assert torch.equal(priced.masks["weight"], left)
    assert not bool((left & (model.weight == 0)).any())
    assert priced.kept == int(left.sum()) < plain.kept


def test_a_higher_rate_never_needs_more_bits():
    model, last = sparse(), math.inf
    for rate in (0.0, 0.01, 0.03, 0.1, 0.3):
        book = sc.share(model, bits=2, rate=rate).codebooks["weight"]
        bits = Prices.of(book.indices, len(book.values), book.zero).total(book.indices)
        assert bits <= last
        last = bits


def test_training_with_a_rate_lets_weights_go_and_come_back():
    model = sparse()
    shared = sc.share(model, bits=2, rate=0.2)
    gone = (model.weight != 0) & (shared.model.weight == 0)
    assert bool(gone.any())
    target = torch.zeros(30, 40)
    target[gone] = 5.0
    with shared.train(model, remake_every=1, rate=0.2) as training:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            (model(torch.eye(40)) - target.T).square().sum().backward()
            optimizer.step()
    trained = shared.trained(training)
    assert bool((model.weight[gone] != 0).all())  # a weight at zero may come back
    assert bool((model.weight[~shared.masks["weight"] & ~gone] == 0).all())  # a masked one does not
    assert torch.equal(trained.masks["weight"], model.weight != 0)
    assert len(model.weight.unique()) <= 5


def test_options_that_cannot_be_meant_are_refused():
    with pytest.raises(OptionError, match="finite number of 0 or more, got -1"):
        sc.share(sparse(), bits=2, rate=-1)
    with pytest.raises(OptionError, match="give remake_every= too"):
        sc.share(sparse(), bits=2).train(rate=0.1)
    with pytest.raises(OptionError, match="per='tensor'"):
        sc.share(sparse(), bits=2, rate=0.1, per="channel")
    with pytest.raises(OptionError, match="importance of shape"):
        sc.share(sparse(), bits=2, rate=0.1, options=ShareOptions(importance={"weight": torch.ones(3)}))
    with pytest.raises(OptionError, match="importance is given, but not for it"):
        sc.share(sparse(), bits=2, rate=0.1, options=ShareOptions(importance={"wight": torch.ones(3)}))


@pytest.mark.filterwarnings("error")  # torch warns where it has to copy
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_weights_with_channels_innermost_stay_so_when_chosen_anew(rate):
    torch.manual_seed(0)
    model = nn.Conv2d(8, 4, 3, bias=False)
    with torch.no_grad():
        model.weight *= torch.rand(4, 8, 3, 3) > 0.5
    plain, inner = copy.deepcopy(model), model.to(memory_format=torch.channels_last)
    books = []
    for one in (plain, inner):
        shared = sc.share(one, bits=2, rate=rate)
        with shared.train(one, remake_every=1, rate=rate) as training:
            training.remake()
            if one is inner:
                assert one.weight.is_contiguous(memory_format=torch.channels_last)
            books.append(training.codebooks()["weight"])
    assert torch.equal(books[0].indices, books[1].indices)
    torch.testing.assert_close(books[0].values, books[1].values)
