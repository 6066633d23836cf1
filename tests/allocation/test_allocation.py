"""Searching for the share of each layer: every method on a space worked by hand, and on networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.allocation import Gone, Space
from secateur.allocation.amc import least_gone
from secateur.allocation.net_adapt import NetAdapt
from secateur.errors import BudgetNotMetError, DataError, NothingToDoError, OptionError

METHODS = [
    sc.allocation.NetAdapt(step=0.1),
    sc.allocation.Annealing(rounds=40),
    sc.allocation.Amc(episodes=40, warm=30),
    sc.allocation.FastNas(),
    sc.allocation.Knapsack(),
]


def space(limit: float = 0.6, losses=None) -> Space:
    """Two lists of ten; every unit costs a twentieth. A unit of a loses 1, one of b 3."""
    return Space(
        ("a", "b"), (10, 10), (9, 9), lambda g: 1 - sum(g) / 20, lambda g: -g[0] - 3.0 * g[1], limit, losses
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_keeps_the_limit_and_beats_equal_shares(method) -> None:
    asked = space()
    gone = method.search(asked, seed=0)
    assert asked.fits(gone)
    assert asked.value(gone) > asked.value(asked.fitted([0.0, 0.0]))  # (4, 4): -16
    assert method.search(space(), seed=0) == gone


@pytest.mark.parametrize(
    "method", [*METHODS, sc.allocation.GradNas()], ids=lambda method: type(method).__name__
)
def test_a_limit_that_cannot_be_met_says_how_far_it_goes(method) -> None:
    asked = space(0.05, lambda: [[1.0] * 9, [3.0] * 9])
    with pytest.raises(BudgetNotMetError, match=r"expected to keep at most 0\.0500 of the cost, got 0\.1000"):
        method.search(asked, seed=0)


def test_thresholds_take_the_largest_of_a_list_whose_losses_dip() -> None:
    # alone a loses 0, 5, 2: what more units lose counts as at least 5
    values = {0: 0.0, 1: 0.0, 2: 5.0, 3: 2.0}
    asked = Space(("a",), (4,), (3,), lambda g: 1 - g[0] / 4, lambda g: -values[g[0]], limit=0.75)
    assert sc.allocation.FastNas(levels=[0.25, 0.5, 0.75]).search(asked, seed=0) == (1,)


def test_net_adapt_lets_all_give_where_no_list_alone_saves_a_step() -> None:
    # a step of 0.5 is more than one list has: both give one unit at a time
    assert NetAdapt(step=0.5).search(space(0.8), seed=0) == (4, 0)
    assert NetAdapt(step=1.0).search(space(0.2), seed=0) == (9, 7)


def test_the_knapsack_lowers_its_own_limit_until_the_real_cost_fits() -> None:
    # costs multiply: alone 0.5 and 0.5 are saved, together 0.75, not 1
    def cost(gone: Gone) -> float:
        return (1 - gone[0] / 10) * (1 - gone[1] / 10)

    asked = Space(("a", "b"), (10, 10), (9, 9), cost, lambda g: -(g[0] ** 2) - g[1] ** 2, limit=0.5)
    gone = sc.allocation.Knapsack().search(asked, seed=0)
    assert gone == (3, 3)  # 0.49


def test_an_action_is_bounded_by_what_later_lists_can_give() -> None:
    assert [least_gone(space(), gone, at) for gone, at in (((0, 0), 0), ((5, 0), 1), ((9, 0), 1))] == [
        0,
        3,
        0,
    ]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


X = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def like_dense(dense: nn.Module):
    """Minus the mean distance of the outputs from the dense model's."""
    wanted = dense(X).detach()

    def evaluate(model: nn.Module) -> float:
        return -float((model(X) - wanted).square().mean())

    return evaluate


@pytest.mark.parametrize("name", ["net_adapt", "annealing", "fast_nas", "knapsack", "grad_nas"])
def test_a_network_is_cut_within_the_limit_and_stays_as_it_is(name: str) -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = [(X, model(X).argmax(1))]
    method = sc.allocation.Annealing(rounds=10) if name == "annealing" else name
    options = sc.AllocateOptions(data=data, loss=nn.functional.cross_entropy)
    found = sc.allocate(model, like_dense(model), method, keep=0.5, example=X[:1], options=options)
    assert found.cost <= 0.5
    if name in ("net_adapt", "annealing"):
        assert found.value >= found.uniform
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    masks = sc.prune(model, "l2", "channel", found.budget, example=X[:1])
    small = sc.shrink(model, masks, X[:1])
    macs = [sc.measure(each, X[:1], what="macs")["macs"].value for each in (model, small.model)]
    assert macs[1] / macs[0] == pytest.approx(found.cost)
    assert found.value == pytest.approx(like_dense(model)(masks.apply(model)))
    assert str(found).count("\n") == 2


def test_each_choice_is_tuned_on_a_copy_and_masked_again() -> None:
    model, seen = net(), []

    def tune(copied: nn.Module) -> None:
        seen.append(copied)
        for parameter in copied.parameters():
            parameter.data += 1.0

    def evaluate(now: nn.Module) -> float:
        return float(sum((parameter == 0).sum() for parameter in now.parameters()))

    options = sc.AllocateOptions(tune=tune)
    found = sc.allocate(model, evaluate, "net_adapt", keep=0.6, example=X[:1], options=options)
    assert len(seen) == found.tried - 1  # the dense model is not tuned
    assert found.value > 0
    assert all(each is not model for each in seen)


def test_what_cannot_be_searched_is_refused() -> None:
    model = net()
    with pytest.raises(OptionError, match="unknown allocation method 'netadapt': did you mean 'net_adapt'"):
        sc.allocate(model, like_dense(model), "netadapt", keep=0.5, example=X[:1])
    with pytest.raises(OptionError, match="keep is the share that REMAINS"):
        sc.allocate(model, like_dense(model), keep=50, example=X[:1])
    with pytest.raises(OptionError, match="grad_nas: expected data= and loss="):
        sc.allocate(model, like_dense(model), "grad_nas", keep=0.5, example=X[:1])
    no_data = sc.AllocateOptions(loss=nn.functional.cross_entropy)
    with pytest.raises(DataError, match="grad_nas: expected data="):
        sc.allocate(model, like_dense(model), "grad_nas", keep=0.5, example=X[:1], options=no_data)
    with pytest.raises(OptionError, match="of: expected one of macs, params, got 'time'"):
        sc.AllocateOptions(of="time")
    with pytest.raises(OptionError, match="levels: expected rising shares"):
        sc.allocation.FastNas(levels=[0.5, 0.5])
    with pytest.raises(NothingToDoError, match=r"at_least=100 leaves no unit that may go"):
        sc.allocate(
            model, like_dense(model), keep=0.5, example=X[:1], options=sc.AllocateOptions(at_least=100)
        )


def test_a_recipe_prunes_by_what_was_found(tmp_path) -> None:
    recipe = sc.Recipe.parse("""
        name = "found"
        data = {name = "digits", limit = 120, size = 28, channels = 1}
        model = {name = "lenet5"}
        lab = {threads = 1}
        step = [
          {kind = "train", epochs = 1, lr = 0.02, batch_size = 30},
          {kind = "allocate", method = {name = "annealing", rounds = 3}, keep = 0.5, subset = 10},
          {kind = "shrink"},
          {kind = "measure", what = ["accuracy", "macs"]},
        ]
    """)
    ran = sc.lab.run(recipe, sc.Store(tmp_path / "runs"))
    assert not ran.failures
    rows = {item.name: item for item in ran.measurements}
    assert rows["allocated_accuracy"].value >= rows["uniform_accuracy"].value
    assert set(rows["chosen_sparsity"].per_layer) == {"conv1", "conv2", "fc1"}
