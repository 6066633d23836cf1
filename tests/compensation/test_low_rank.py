"""`factorise`: hand-worked ranks, the decomposition's optimality, the proof, and what is refused."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.compensation import low_rank
from secateur.errors import NothingToDoError, OptionError, PatternError, ProofError, StructureError


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    ).eval()


EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_a_diagonal_weight_keeps_its_largest_values():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 4.0, 3.0, 2.0])))
    small = sc.factorise(model, {"0": 1}, torch.ones(1, 4))
    product = small.model[0][1].weight @ small.model[0][0].weight
    assert torch.allclose(product, torch.diag(torch.tensor([0.0, 4.0, 0.0, 0.0])), atol=1e-6)
    assert (small.parameters_before, small.parameters_after) == (20, 12)


def test_data_decide_which_value_stays():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 4.0, 3.0, 2.0])))
    inputs = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0]))  # 1 * 9 is more than 4 * 1
    small = sc.factorise(model, {"0": 1}, torch.ones(1, 4), data=[inputs])
    product = small.model[0][1].weight @ small.model[0][0].weight
    assert torch.allclose(product, torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0])), atol=1e-6)


def test_a_share_gives_the_largest_rank_within_it_and_the_model_given_stays():
    model = _net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = sc.factorise(model, 0.5, EXAMPLE)
    # 8 x 27 = 216: 108 // 35 = 3; 10 x 128 = 1280: 640 // 138 = 4
    assert small.ranks == {"0": 3, "3": 4}
    assert small.parameters_after == 3 * 35 + 8 + 4 * 138 + 10
    assert small.proof_error < 1e-9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_data_lower_the_error_of_a_convolution_on_them():
    model = _net()
    data = torch.randn(64, 1, 8, 8) * torch.tensor([1.0, 0.1, 3.0])[None, :, None, None]
    with torch.no_grad():
        off = [
            float((sc.factorise(model, {"0": 2}, EXAMPLE, data=given).model[0](data) - model[0](data)).norm())
            for given in (None, [data])
        ]
    assert off[1] < 0.9 * off[0]


def test_a_fresh_model_takes_the_weights_and_what_comes_out_shrinks():
    low = sc.factorise(_net(), 0.5, EXAMPLE)
    again = sc.factorise(_net(), low.ranks, EXAMPLE).model
    again.load_state_dict(low.model.state_dict())
    assert torch.equal(again(EXAMPLE), low.model(EXAMPLE))
    small = sc.shrink(low.model, sc.prune(low.model, "l2", "channel", 0.5, example=EXAMPLE), EXAMPLE)
    assert small.proof.holds
    assert sum(p.numel() for p in small.model.parameters()) < low.parameters_after


def test_a_wrong_factor_is_refused_by_the_proof(monkeypatch):
    right = low_rank._pair

    def wrong(*args):
        pair, product = right(*args)
        with torch.no_grad():
            pair[0].weight[0] *= 1.001
        return pair, product

    monkeypatch.setattr(low_rank, "_pair", wrong)
    with pytest.raises(ProofError, match="expected the outputs of the truncated dense weights"):
        sc.factorise(_net(), 0.5, EXAMPLE)


def test_a_layer_whose_weight_the_model_reads_itself_is_refused():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(StructureError, match="reads a layer's weight itself"):
        sc.factorise(model, {"linear1": 2}, torch.randn(2, 3, 8))


@pytest.mark.parametrize(
    ("ranks", "error", "text"),
    [
        ({"3": 10}, OptionError, r"3: expected a whole number from 1 to 9, the largest rank .* got 10"),
        ({"2": 1}, PatternError, "'2' is no layer that can be factorised"),
        (1.5, OptionError, r"share of weights kept in \(0, 1\), got 1.5"),
        (0.01, NothingToDoError, "no layer is left to factorise"),
    ],
)
def test_what_cannot_be_is_said(ranks, error, text):
    with pytest.raises(error, match=text):
        sc.factorise(_net(), ranks, EXAMPLE)


def test_tied_weights_are_left():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert list(sc.factorise(model, 0.5, torch.randn(2, 8)).ranks) == ["2"]


def test_a_layer_that_the_data_never_reach_is_named():
    model = _net()
    model.spare = nn.Linear(8, 8)
    model.forward = lambda inputs: nn.Sequential(*list(model)[:4])(inputs)
    with pytest.raises(StructureError, match="spare did not run on the data"):
        sc.factorise(model, 0.5, EXAMPLE, data=[EXAMPLE])
