"""fisher and hessian: worked by hand, and the estimate against the exact diagonal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.fisher import Fisher
from secateur.criteria.hessian import Hessian
from secateur.errors import DataError, OptionError


def scored(criterion, model, data, loss, seed=0):
    return criterion.scores(model, select(model), Context(data=data, loss=loss, seed=seed))


def two_weights() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    return layer


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def test_fisher_worked_by_hand():
    # y = 2a - b. At (1, 3): y = -1, target 1, g = 2 * -2 * (1, 3) = (-4, -12); at (1, 0): y = 2, target 1, g = (2, 0)
    # mean squares (16 + 4) / 2 = 10 and 144 / 2 = 72; times w^2 / 2 = 2 and 1 / 2
    x, y = torch.tensor([[1.0, 3.0], [1.0, 0.0]]), torch.ones(2, 1)
    assert scored(Fisher(), two_weights(), [(x, y)], squared)["weight"].tolist() == [[20.0, 36.0]]
    # the same whatever the batches are: each example counts by itself
    assert scored(Fisher(), two_weights(), [(x[:1], y[:1]), (x[1:], y[1:])], squared)["weight"].tolist() == [
        [20.0, 36.0]
    ]


def test_fisher_reads_batches_of_every_form():
    class Keyed(nn.Linear):
        def forward(self, x, labels=None):
            return {"loss": squared(super().forward(x), labels)}

    model = Keyed(2, 1, bias=False)
    model.weight.data.copy_(two_weights().weight.data)
    x, y = torch.tensor([[1.0, 3.0], [1.0, 0.0]]), torch.ones(2, 1)
    got = Fisher().scores(model, select(model), Context(data=[{"x": x, "labels": y}]))
    assert got["weight"].tolist() == [[20.0, 36.0]]


def test_hessian_worked_by_hand():
    # L = mean of (y - t)^2, H = 2 x x^T = [[2, 6], [6, 18]] at (1, 3): v * Hv is 2 + 6 s and 18 + 6 s with s = v1 v2,
    # so that vectors of both signs average to the diagonal, 2 and 18; times w^2 / 2 = 2 and 1 / 2
    data = [(torch.tensor([[1.0, 3.0]]), torch.ones(1, 1))]
    seen = {
        tuple(scored(Hessian(samples=1), two_weights(), data, squared, seed)["weight"][0].tolist())
        for seed in range(12)
    }
    assert seen == {(16.0, 12.0), (8.0, 6.0)}  # |8| * 2, 24 / 2 and |-4| * 2, 12 / 2


def test_many_vectors_come_near_the_diagonal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 2, (6,))
    weight = model[0].weight.detach()

    def loss(flat):
        state = {**dict(model.named_parameters()), "0.weight": flat.reshape(weight.shape)}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    exact = torch.autograd.functional.hessian(loss, weight.flatten()).diagonal().abs()
    exact = exact * weight.flatten().square() / 2

    def away(samples):
        targets, context = select(model, only="0"), Context(data=[(x, y)], loss=F.cross_entropy)
        found = Hessian(samples=samples).scores(model, targets, context)["0.weight"].flatten()
        return float((found - exact).norm() / exact.norm())

    assert away(1000) < 0.15 < away(2)


def test_options_and_data_are_checked():
    with pytest.raises(OptionError, match="samples: expected a whole number of at least 1, got 0"):
        Hessian(samples=0)
    data = (batch for batch in [(torch.ones(1, 2), torch.ones(1, 1))])
    with pytest.raises(DataError, match="hessian reads the data 8 times"):
        scored(Hessian(), two_weights(), data, squared)
