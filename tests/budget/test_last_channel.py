"""Which budgets leave one channel of every group, as the guide says, and which may take all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import budget as b
from secateur.errors import CollapseError
from secateur.pruning.cost import CostModel

KEPT = [
    b.PerTensor(0.9),
    b.PerLayer({"*": 0.9}),
    b.ErdosRenyi(0.9),
    b.LeastChange(0.9),
    b.Macs(keep=0.01),
    b.Params(keep=0.01),
    b.Size(keep=0.2),
    b.Latency(keep=0.01),
]
TAKEN = [
    b.Overall(0.6),
    b.Isomorphic(0.6),
    b.Percentile(0.6, scope="network"),
    b.StdDev(30.0),
]


@pytest.fixture
def small():
    """64 channels of tiny weights, which any comparison of all takes first, then 64 of large ones."""
    torch.manual_seed(0)
    ends = (nn.Linear(6, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU())
    model = nn.Sequential(*ends, nn.Linear(64, 3, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[2].weight.mul_(1e-3)
    return model, torch.randn(2, 6)


def left(masks):
    return [int(mask.flatten(1).any(1).sum()) for mask in masks.values()]


@pytest.mark.parametrize("budget", KEPT, ids=lambda each: type(each).__name__)
def test_one_channel_stays(budget, small, monkeypatch):
    model, example = small

    def time(costs, chosen, *_, **__):  # the multiply-accumulates in place of a clock
        return 1.0, costs.remaining("macs", chosen) / costs.dense("macs")

    monkeypatch.setattr(CostModel, "time", time)
    masks = sc.prune(model, "l2", "channel", budget, data=[example], example=example)
    assert min(left(masks)) >= 1
    assert masks.sparsity > 0


@pytest.mark.parametrize("budget", TAKEN, ids=lambda each: type(each).__name__)
def test_a_group_may_lose_all_unless_one_is_asked_for(budget, small):
    model, example = small
    with pytest.raises(CollapseError):
        sc.prune(model, "l2", "channel", budget, example=example)
    masks = sc.prune(model, "l2", "channel", budget, example=example, options=sc.PruneOptions(at_least=1))
    assert min(left(masks)) >= 1
