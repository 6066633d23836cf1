"""How many go and which: every budget against counts and thresholds worked out plainly."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.budget import NOfM, Overall, Percentile, PerLayer, PerTensor, StdDev, share_of
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError, PatternError


def linear(*rows: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data.copy_(torch.tensor(rows))
    return layer


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))


def kept(masks: sc.Masks) -> list[int]:
    return [row.kept for row in masks.summary()]


# -- counts
@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True), st.integers(0, 4), st.integers(0, 10))
def test_the_count_is_exact_whatever_the_ties(count: int, share: float, values: int, seed: int) -> None:
    layer = nn.Linear(count, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data.copy_(torch.randint(0, values + 1, (1, count), generator=generator).float())
    wanted = round(share * count)
    for budget in (PerTensor(share), Overall(share), PerLayer({"weight": share})):
        if wanted == 0:
            with pytest.raises(NothingToDoError):
                sc.prune(layer, budget=budget)
            continue
        mask = sc.prune(layer, budget=budget, options=sc.PruneOptions(allow_collapse=True))["weight"][0]
        assert int((~mask).sum()) == wanted
        order = sorted(range(count), key=lambda i: layer.weight[0, i].item())
        assert set(order[:wanted]) == set((~mask).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.5, 5, 2), (0.5, 7, 4), (0.3, 10, 3), (0.95, 3, 3)])
def test_shares_round_half_to_even_once(share: float, count: int, wanted: int) -> None:
    assert share_of(share, count) == wanted


def test_equal_weights_keep_exactly_the_number_asked_and_the_first_go() -> None:
    layer = nn.Linear(10, 10, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    mask = sc.prune(layer, budget=0.37)["weight"].flatten()
    assert mask.tolist() == [False] * 37 + [True] * 63


# -- overall
def test_overall_lets_all_units_compete() -> None:
    model = nn.Sequential(linear([1.0, 2.0, 3.0]), linear([0.1], [0.2], [9.0]))
    masks = sc.prune(model, budget=Overall(0.5))
    assert masks["0.weight"].tolist() == [[False, True, True]]
    assert masks["1.weight"].tolist() == [[False], [False], [True]]


def test_overall_counts_units_or_weights() -> None:
    wide = linear([1.0] * 10, [2.0] * 10)
    model = nn.Sequential(wide, linear([3.0, 30.0], [4.0, 40.0], [5.0, 50.0], [6.0, 60.0]))
    by_units = sc.prune(
        model, "l1", "filter", Overall(0.5), options=sc.PruneOptions(allow_collapse=True)
    )  # those worth 10, 20, 33
    assert kept(by_units) == [0, 6]
    by_weights = sc.prune(
        model, "l1", "filter", Overall(0.5, by="weights"), options=sc.PruneOptions(allow_collapse=True)
    )
    assert by_weights.numel == 28
    assert by_weights.numel - by_weights.kept == 10  # the next filter would make 20, and 14 may go
    exact = sc.prune(
        model, "l1", "filter", Overall(10 / 28, by="weights"), options=sc.PruneOptions(allow_collapse=True)
    )
    assert exact.numel - exact.kept == 10  # just as many as may go


def test_floors_hold_and_the_total_stays_exact() -> None:
    model = chain(20, 10, 30, 5)
    model[0].weight.data.mul_(0.001)
    for share in (0.5, 0.8):
        masks = sc.prune(
            model, "l1", "filter", Overall(share), options=sc.PruneOptions(at_least={"0": 4, "*": 1, "2": 2})
        )
        filters = [int(masks[f"{i}.weight"].any(1).sum()) for i in range(3)]
        assert sum(filters) == 45 - round(share * 45)
        assert filters[0] >= 1
        assert filters[2] >= 2
    text = r"removes 40 of 45 units, .* let only 36 go: .* sparsity is 0\.8;"
    with pytest.raises(BudgetNotMetError, match=text):
        sc.prune(model, "l1", "filter", Overall(0.9), options=sc.PruneOptions(at_least=3))


def test_a_floor_keeps_the_best_of_its_layer() -> None:
    model = nn.Sequential(linear([1.0, 3.0, 2.0]), linear([7.0], [8.0], [9.0]))
    masks = sc.prune(model, budget=Overall(0.5), options=sc.PruneOptions(at_least={"0": 2}))
    assert masks["0.weight"].tolist() == [[False, True, True]]
    assert masks["1.weight"].flatten().tolist() == [False, False, True]


def test_caps_hold_per_layer() -> None:
    model = chain(20, 10, 30)
    model[0].weight.data.mul_(0.001)
    masks = sc.prune(model, budget=Overall(0.5), options=sc.PruneOptions(at_most={"0": 0.29}))
    assert [row.numel - row.kept for row in masks.summary()] == [58, 192]
    masks = sc.prune(model, budget=0.5, options=sc.PruneOptions(at_most=0.29))
    assert [row.numel - row.kept for row in masks.summary()] == [58, 87]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_overall_under_floors_is_the_best_exact_choice(
    sizes: list[int], share: float, floor: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Module()
    for index, size in enumerate(sizes):
        values = torch.randint(1, 6, (size,), generator=generator).float()
        model.register_parameter(f"p{index}", nn.Parameter(values))
    total, wanted = sum(sizes), round(share * sum(sizes))
    free = sum(max(0, size - floor) for size in sizes)
    options = sc.PruneOptions(parameters=["*"], at_least=floor, allow_collapse=True)
    if wanted > free:
        with pytest.raises(BudgetNotMetError):
            sc.prune(model, budget=Overall(share), options=options)
        return
    if wanted == 0:
        with pytest.raises(NothingToDoError):
            sc.prune(model, budget=Overall(share), options=options)
        return
    masks = sc.prune(model, budget=Overall(share), options=options)
    assert total - masks.kept == wanted
    assert all(int(masks[f"p{i}"].sum()) >= min(size, floor) for i, size in enumerate(sizes))
    # Nothing that stayed though it was free to go is worth less than anything that went.
    going = [model.get_parameter(name).detach()[~mask] for name, mask in masks.items()]
    worst = max(float(part.max()) for part in going if part.numel())
    for name, mask in masks.items():
        if int(mask.sum()) > floor:
            assert float(model.get_parameter(name).detach()[mask].min()) >= worst


# -- thresholds
def test_std_dev_removes_what_is_below_the_multiple() -> None:
    model = chain(50, 40, 30)
    masks = sc.prune(model, budget=StdDev(0.5))
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().numpy()
        assert np.array_equal(mask.numpy(), np.abs(weight) >= 0.5 * weight.std(dtype=np.float64))
    torch.manual_seed(0)
    nn.init.normal_(model[0].weight)
    assert sc.prune(
        model, budget=StdDev.at(0.6), options=sc.PruneOptions(only="0")
    ).sparsity == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.64, 0.9])
@pytest.mark.parametrize("size", [5, 12, 101])
def test_percentile_is_numpys(q: float, size: int) -> None:
    generator = np.random.default_rng(size)
    values = generator.integers(-4, 5, size).astype(np.float32) + generator.integers(0, 2, size) * 0.25
    layer = linear(values.tolist())
    line = np.percentile(np.abs(values).astype(np.float64), q * 100)
    if not (np.abs(values) < line).any():
        pytest.skip("nothing lies below the line")
    mask = sc.prune(layer, budget=Percentile(q), options=sc.PruneOptions(allow_collapse=True))["weight"][
        0
    ].numpy()
    assert np.array_equal(mask, np.abs(values) >= line)


def test_percentile_of_the_network_and_of_what_is_left() -> None:
    model = nn.Sequential(linear([1.0, 2.0, 3.0, 0.0]), linear([4.0], [5.0], [0.0], [6.0]))
    one = sc.prune(model, budget=Percentile(0.5, scope="network"))  # of 0 0 1 2 3 4 5 6: 2.5
    assert kept(one) == [1, 3]
    rest = sc.prune(model, budget=Percentile(0.3, scope="network", of="nonzero"))  # of 1 2 3 4 5 6: 2.5
    assert kept(rest) == [1, 3]
    assert kept(sc.prune(model, budget=Percentile(0.3, scope="network"))) == [2, 3]  # of all eight: 1.1


def test_what_lies_on_the_percentile_stays_or_goes() -> None:
    layer = linear([5.0, 1.0, 3.0, 2.0, 4.0])  # the middle one is the line
    assert kept(sc.prune(layer, budget=Percentile(0.5))) == [3]
    assert kept(sc.prune(layer, budget=Percentile(0.5, equal="go"))) == [2]
    assert kept(sc.prune(layer, budget=Percentile(0.4, equal="go"))) == [
        3
    ]  # between two: the same either way
    assert kept(sc.prune(layer, budget=Percentile(0.4))) == [3]


def test_a_percentile_of_its_own_for_every_layer() -> None:
    model = nn.Sequential(
        linear([1.0, 2.0, 3.0, 4.0]), linear([1.0, 2.0, 3.0, 4.0]), linear([1.0, 2.0, 3.0, 4.0])
    )
    masks = sc.prune(model, budget=Percentile({"*": 0.5, "2": 0.9}), skip="1")
    assert kept(masks) == [2, 1]
    part = sc.prune(model, budget=Percentile({"0": 0.5}))
    assert kept(part) == [2, 4, 4]
    again = sc.prune(model, budget=Percentile({"2": 0.5}), options=sc.PruneOptions(masks=part))
    assert kept(again) == [2, 4, 2]


def test_a_percentile_of_equal_weights_removes_nothing_where_a_count_removes_half() -> None:
    layer = linear([2.0] * 8)
    assert sc.prune(layer, budget=0.5).kept == 4
    with pytest.raises(NothingToDoError, match=r"Percentile\(q=0.5.*removes nothing from Linear"):
        sc.prune(layer, budget=Percentile(0.5))


def test_a_floor_holds_under_a_threshold() -> None:
    layer = linear([1.0, 2.0, 3.0, 100.0])
    assert sc.prune(layer, budget=StdDev(1.0)).kept == 1
    assert sc.prune(layer, budget=StdDev(1.0), options=sc.PruneOptions(at_least=3))["weight"].tolist() == [
        [False, True, True, True]
    ]


# -- tables
def test_a_table_of_layers_leaves_the_others_dense_and_later_rows_hold() -> None:
    model = chain(10, 10, 10, 10)
    masks = sc.prune(model, budget=PerLayer({"[01]": 0.5, "1": 0.2}))
    assert kept(masks) == [50, 80, 100]
    by_type = sc.prune(model, budget=PerLayer({"type:Linear": 0.3}))
    assert kept(by_type) == [70, 70, 70]


def test_a_row_that_means_no_layer_is_an_error_with_its_neighbour() -> None:
    model = nn.ModuleDict({"classifier": nn.Linear(4, 4)})
    text = r"PerLayer: pattern 'clasifier' matches no .*did you mean 'classifier'"
    with pytest.raises(PatternError, match=text):
        sc.prune(model, budget=PerLayer({"clasifier": 0.5}))
    with pytest.raises(PatternError, match=r"at_least: pattern 'fc' matches no layer that is being pruned"):
        sc.prune(model, options=sc.PruneOptions(at_least={"fc": 2}))


def test_a_table_of_none_or_of_nonsense_is_refused() -> None:
    for table in ({}, "fc", None, 0.5, {"fc": 1.5}):
        with pytest.raises(OptionError):
            PerLayer(table)  # type: ignore[arg-type]


# -- n of m
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.sampled_from(["in", "out"])
)
def test_every_group_keeps_n_of_m(n: int, more: int, groups: int, seed: int, axis: str) -> None:
    m = n + more
    torch.manual_seed(seed)
    layer = nn.Conv2d(m * groups, m * groups, 3, bias=False)
    layer.weight.data.round_(decimals=1)
    mask = sc.prune(layer, budget=NOfM(n, m, axis))["weight"]
    side = 1 if axis == "in" else 0
    parts = mask.movedim(side, -1).unflatten(-1, (groups, m))
    assert bool((parts.sum(-1) == n).all())
    worth = layer.weight.detach().abs().movedim(side, -1).unflatten(-1, (groups, m))
    gone = worth.masked_fill(parts, 0.0).amax(-1)
    assert bool((gone <= worth.masked_fill(~parts, math.inf).amin(-1)).all())


def test_two_of_four_runs_along_the_inputs_of_transposed_layers_too() -> None:
    layer = nn.ConvTranspose2d(8, 3, 2)
    assert bool((sc.prune(layer, budget=NOfM())["weight"].unflatten(0, (2, 4)).sum(1) == 2).all())


def test_a_short_group_is_refused_kept_or_shared() -> None:
    layer = nn.Linear(6, 2, bias=False)
    text = r"no multiple of 4 in 'weight' \(6\); leave these layers out with skip="
    with pytest.raises(OptionError, match=text):
        sc.prune(layer, budget=NOfM(2, 4))
    assert sc.prune(layer, budget=NOfM(2, 4, tail="keep"))["weight"].sum(1).tolist() == [4, 4]
    assert sc.prune(layer, budget=NOfM(2, 4, tail="share"))["weight"].sum(1).tolist() == [3, 3]


def test_filters_are_taken_in_a_row_and_kernels_on_their_grid() -> None:
    layer = nn.Conv2d(4, 8, 3)
    filters = sc.prune(layer, "l1", "filter", NOfM(1, 4))["weight"].flatten(1).any(1)
    assert filters.unflatten(0, (2, 4)).sum(1).tolist() == [1, 1]
    kernels = sc.prune(layer, "l1", "kernel", NOfM(1, 4, axis=1))["weight"].flatten(2).any(2)
    assert kernels.sum(1).tolist() == [1] * 8


# -- options
@pytest.mark.parametrize("bad", [-0.1, 1.0, 5, math.nan, "0.5", None, True, math.inf, [0.5]])
@pytest.mark.parametrize("budget", [PerTensor, Overall, Percentile])
def test_a_share_that_is_none_is_refused(budget: Any, bad: Any) -> None:
    text = r"is the share removed: expected a number with 0 <= (sparsity|q) < 1, got"
    with pytest.raises(OptionError, match=text):
        budget(bad)


def test_the_text_says_what_was_probably_meant() -> None:
    with pytest.raises(OptionError, match=r"got 50; for 50 % write 0\.5$"):
        PerTensor(50)
    with pytest.raises(OptionError, match=r"got '0\.5', which is text; write the number without quotes$"):
        PerTensor("0.5")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"got 1\.0; that would remove everything$"):
        PerTensor(1.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StdDev(-1), "StdDev sensitivity: expected a number of at least 0, got -1"),
        (lambda: StdDev(math.nan), "StdDev sensitivity"),
        (lambda: StdDev(-1e-9), "StdDev sensitivity"),
        (lambda: Overall(0.5, by="size"), "Overall by: expected 'units' or 'weights', got 'size'"),
        (lambda: Percentile(0.5, scope="layer"), "Percentile scope: expected 'tensor' or 'network'"),
        (lambda: Percentile(0.5, of="some"), "Percentile of: expected 'all' or 'nonzero', got 'some'"),
        (lambda: Percentile(0.5, equal="both"), "Percentile equal: expected 'stay' or 'go', got 'both'"),
        (
            lambda: Percentile({"a": 0.5}, scope="network"),
            "Percentile q: expected a share, or a table of layer",
        ),
        (lambda: Percentile({"a": 50}), "q of 'a' is the share removed: expected a number"),
        (lambda: NOfM(4, 4), "n must be below m; got n=4, m=4"),
        (lambda: NOfM(0, 4), "NOfM n: expected a whole number of at least 1, got 0"),
        (lambda: NOfM(2, 4, axis="row"), "NOfM axis: expected 'in', 'out' or a number, got 'row'"),
        (lambda: NOfM(2, 4, tail="drop"), "NOfM tail: expected 'error', 'keep' or 'share', got 'drop'"),
    ],
)
def test_options_out_of_range(make: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("bad", [-1, 1.5, True, "2"])
def test_a_floor_that_counts_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(OptionError, match="at_least counts units: expected a whole number of at least 0"):
        sc.prune(chain(4, 4), options=sc.PruneOptions(at_least=bad))


def test_the_share_that_masks_have_removed_already_may_be_asked_for_again() -> None:
    model = chain(6, 8)
    first = sc.prune(model, budget=PerTensor(0.5))
    again = sc.prune(model, budget=PerTensor(0.5), options=sc.PruneOptions(masks=first))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(BudgetNotMetError, match=r"masks only grow; ask for a sparsity of at least 0\.5"):
        sc.prune(model, budget=PerTensor(0.25), options=sc.PruneOptions(masks=first))


def test_a_threshold_of_zero_deviations_is_a_budget():
    assert StdDev(0).sensitivity == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("50%", r"budget: expected a number .*got the text '50%'; write 0\.5"),
        ("0.25", r"got the text '0\.25'; write the number 0\.25 without quotes"),
        ({"0": 0.5}, r"a table is sc\.budget\.PerLayer\(\{'0': 0\.5\}\)"),
    ],
)
def test_a_share_as_text_and_a_bare_table_name_what_to_write(value, said):
    with pytest.raises(OptionError, match=said):
        sc.prune(nn.Sequential(nn.Linear(4, 4)), budget=value)


# -- lists of channels
def narrow() -> tuple[nn.Module, torch.Tensor]:
    """Groups of two and of eight channels; of the two, the second has the larger weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.data[1] = 3.0
    return model, torch.zeros(1, 4)


@pytest.mark.parametrize(
    "budget",
    [PerTensor(0.75), PerLayer({"*": 0.75}), sc.budget.LeastChange(0.75, most=1)],
    ids=lambda budget: type(budget).__name__,
)
def test_a_share_of_few_channels_leaves_the_one_that_explain_says_stays(budget: sc.budget.Budget) -> None:
    model, x = narrow()
    found = sc.explain(model, x, budget=0.75)
    assert {row.name: row.removed for row in found.groups} == {"0": 1, "2": 6}  # 0.75 of 2 is rounded to 2
    masks = sc.prune(model, "l2", "channel", budget, example=x)
    assert masks["0.weight"].any(1).tolist() == [False, True]
    small = sc.shrink(model, masks, x).model
    assert [small[i].out_features for i in (0, 2, 4)] == [1, 2, 3]
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    assert before - after == found.removed_parameters


@pytest.mark.parametrize(
    "budget", [sc.budget.ErdosRenyi(0.75), sc.budget.Params(keep=0.25), sc.budget.Macs(keep=0.2)], ids=str
)
def test_other_budgets_that_leave_one_channel_of_each_group(budget: sc.budget.Budget) -> None:
    """The two channels of the first group are worse than all eight of the second."""
    model, x = narrow()
    model[0].weight.data *= 1e-3
    masks = sc.prune(model, "l2", "channel", budget, example=x)
    assert masks["0.weight"].any(1).sum() == 1


@pytest.mark.parametrize("budget", [Overall(0.8), Percentile(0.9, scope="network"), StdDev(5.0)], ids=str)
def test_budgets_that_may_take_all_channels_of_a_group_say_what_keeps_one(budget: sc.budget.Budget) -> None:
    """The two channels of the first group are worse than all eight of the second."""
    model, x = narrow()
    model[4].weight.data *= 100.0
    with pytest.raises(sc.errors.CollapseError, match=r"nothing is left of .*at_least=1"):
        sc.prune(model, "l2", "channel", budget, example=x)
    masks = sc.prune(model, "l2", "channel", budget, example=x, options=sc.PruneOptions(at_least=1))
    assert masks["0.weight"].any(1).sum() == 1


def test_a_share_of_rows_may_take_all_of_them_and_says_so() -> None:
    model, _ = narrow()
    with pytest.raises(sc.errors.CollapseError, match=r"nothing is left of '0\.weight'.*at_least=1"):
        sc.prune(model, "l2", "filter", 0.75, skip="4")


def test_masks_that_left_no_channel_are_no_error_at_the_same_share() -> None:
    model, x = narrow()
    none = sc.Masks({"0.weight": torch.zeros(2, 4).bool()})
    options = sc.PruneOptions(masks=none, allow_collapse=True)
    masks = sc.prune(model, "l2", "channel", 0.75, example=x, options=options)
    assert not masks["0.weight"].any()
