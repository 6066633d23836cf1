"""Erdős–Rényi-kernel densities, worked by hand."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.budget.erdos_renyi import ErdosRenyi
from secateur.errors import BudgetNotMetError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 10, 3), nn.Flatten(), nn.Linear(10, 90))


def kept(masks: sc.Masks) -> list[int]:
    return [row.kept for row in masks.summary()]


def test_kernels_count_with_their_sides():
    # conv 10 x 2 x 3 x 3 = 180 weights, (10 + 2 + 3 + 3) / 180 = 1 / 10; linear 90 x 10 = 900, 100 / 900 = 1 / 9
    # 0.9 of 1080 go: 108 = e (18 + 100), e = 0.91525: densities 0.0915 and 0.1017, that is 16.5 and 91.5 weights
    masks = sc.prune(net(), budget=ErdosRenyi(0.9))
    assert (
        kept(masks)
        == [180 - round(180 * (1 - 108 / 118 / 10)), 900 - round(900 * (1 - 108 / 118 / 9))]
        == [16, 92]
    )


def test_a_layer_that_would_keep_more_than_all_is_dense():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    # 200 / 10000 = 0.02 and 102 / 200 = 0.51. Half of 10200 stays: e > 1 / 0.51, so the second is whole
    # and the first keeps 5100 - 200
    assert kept(sc.prune(model, budget=ErdosRenyi(0.5))) == [4900, 200]


def test_floors_and_earlier_masks_hold_and_others_make_up():
    model = net()
    before = sc.prune(model, budget=0.5, skip="0")  # 450 of the linear layer are gone
    masks = sc.prune(model, budget=ErdosRenyi(0.45), options=sc.PruneOptions(masks=before))
    # 594 of 1080 are to stay: the linear layer cannot keep more than 450, the convolution keeps the other 144
    assert kept(masks) == [144, 450]
    with pytest.raises(BudgetNotMetError, match="leave only 630"):
        sc.prune(model, budget=ErdosRenyi(0.4), options=sc.PruneOptions(masks=before))
    floor = sc.PruneOptions(at_least={"0": 100})
    assert kept(sc.prune(model, budget=ErdosRenyi(0.8), options=floor)) == [100, 116]
    with pytest.raises(BudgetNotMetError, match=r"floors .* keep 300"):
        sc.prune(model, budget=ErdosRenyi(0.8), options=sc.PruneOptions(at_least=150))


def test_filters_are_cut_by_the_same_densities():
    # rows of the linear layer: density 0.1017 of 90 is 9.2, filters 0.0915 of 10 is 0.9
    masks = sc.prune(net(), "l1", "filter", ErdosRenyi(0.9))
    assert [int(masks[name].flatten(1).any(1).sum()) for name in masks] == [1, 9]


def test_each_list_by_itself_loses_the_share_of_its_shape(monkeypatch: pytest.MonkeyPatch):
    seen = []
    choose = ErdosRenyi.choose
    monkeypatch.setattr(ErdosRenyi, "choose", lambda self, lists: seen.append(lists) or choose(self, lists))
    sc.prune(net(), budget=ErdosRenyi(0.9))
    apart = ErdosRenyi(0.9).apart(seen[0])
    assert [budget.sparsity for budget in apart.values()] == pytest.approx(
        [1 - 108 / 118 / 10, 1 - 108 / 118 / 9], abs=1e-6
    )
