"""Weights are recognised by what a layer states about itself, or by the operator that uses them, never by a class."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur as sc
from secateur.core.targets import select, stated_layer
from secateur.structure.cut.attributes import check_attribute


class Own(nn.Module):
    """A linear layer of another library: outputs first, with its widths as torch_geometric's `Linear` has them."""

    def __init__(self, ins: int, outs: int):
        super().__init__()
        self.in_channels, self.out_channels = ins, outs
        self.weight = nn.Parameter(torch.randn(outs, ins))
        self.bias = nn.Parameter(torch.randn(outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class Turned(Own):
    """The same, stored inputs first."""

    def __init__(self, ins: int, outs: int):
        super().__init__(ins, outs)
        self.weight = nn.Parameter(torch.randn(ins, outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class OwnConv(nn.Module):
    """A convolution of another library."""

    def __init__(self, ins: int, outs: int):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = ins, outs, 1
        self.weight = nn.Parameter(torch.randn(outs, ins, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, padding=1)


class Unstated(nn.Module):
    """Two products with parameters of any name, and no width stated anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear((x @ self.up).relu(), self.down)


class UnstatedConv(nn.Module):
    """Two convolutions with parameters of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(2, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.conv2d(x, self.first).relu(), self.second)


def proved(model: nn.Module, x: torch.Tensor) -> sc.Shrunk:
    """Half of every group gone, proved at two shapes and in both gradient modes."""
    small = sc.shrink(model.eval(), sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert small.proof.holds
    assert len({case.shapes for case in small.proof.cases}) >= 2
    assert {case.mode for case in small.proof.cases} == {"eager", "no_grad"}
    return small


CHANCE = torch.Generator().manual_seed(0)
ROWS, IMAGE = torch.randn(4, 5, generator=CHANCE), torch.randn(2, 3, 6, 6, generator=CHANCE)


@pytest.mark.parametrize(
    ("layer", "x", "first", "second"),
    [
        (Own, ROWS, (4, 5), (3, 4)),
        (Turned, ROWS, (5, 4), (4, 3)),
        (OwnConv, IMAGE, (4, 3, 3, 3), (3, 4, 3, 3)),
    ],
)
def test_a_layer_that_states_its_widths_is_cut_and_states_the_new_ones(
    layer: Callable[[int, int], nn.Module], x: torch.Tensor, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(x.shape[1], 8), nn.ReLU(), layer(8, 3))
    assert [target.name for target in select(model)] == ["0.weight", "2.weight"]
    small = proved(model, x)
    assert (tuple(small.model[0].weight.shape), tuple(small.model[2].weight.shape)) == (first, second)
    assert (small.model[0].out_channels, small.model[2].in_channels) == (4, 4)
    assert (small.model[0].in_channels, small.model[2].out_channels) == (x.shape[1], 3)
    assert (model[0].out_channels, model[2].in_channels) == (8, 8)


def test_which_axis_puts_out_is_read_from_the_stated_widths() -> None:
    """The rows of weight (out, in) are filters; of (in, out) the columns are."""
    for layer, wanted in ((Own(5, 2), (0, 1)), (Turned(5, 2), (1, 0))):
        (target,) = select(layer)
        assert (target.kind, target.out_axis, target.in_axis) == ("linear", *wanted)
        masks = sc.prune(layer, "l2", "filter", 0.5, options=sc.PruneOptions(allow_collapse=True))
        assert masks["weight"].any(dim=1 - wanted[0]).sum() == 1


class Around(nn.Module):
    """Repeats the widths of the layers inside it and shows them; `read` lets its forward look at one."""

    def __init__(self, ins: int, outs: int, read: bool = False):
        super().__init__()
        self.in_channels, self.out_channels, self.read = ins, outs, read
        self.lin = Own(ins, outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)

    def __repr__(self) -> str:
        return f"Around({self.in_channels}, {self.out_channels})"


class Reading(Around):
    """Looks at the width that it repeats: its own forward is not to be changed by the text."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) * (8 / self.out_channels)


class Squeezed(nn.Module):
    """As wide at its end as at its start; the layer inside is fed by another one, of which other channels leave."""

    def __init__(self, width: int):
        super().__init__()
        self.in_channels, self.out_channels = width, width
        self.pre, self.lin = nn.Sequential(nn.Linear(width, width), nn.ReLU()), Own(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(self.pre(x))

    __repr__ = Around.__repr__


def test_a_module_shows_the_widths_that_the_layer_inside_it_has() -> None:
    torch.manual_seed(0)
    small = proved(nn.Sequential(Around(5, 8), nn.ReLU(), Around(8, 3)), ROWS)
    assert [str(small.model[0]), str(small.model[2])] == ["Around(5, 4)", "Around(4, 3)"]
    fresh = nn.Sequential(Around(5, 8), nn.ReLU(), Around(8, 3))
    assert str(small.plan.apply_(fresh)[0]) == "Around(5, 4)"


def test_a_number_that_a_forward_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    small = proved(nn.Sequential(Reading(5, 8), nn.ReLU(), nn.Linear(8, 3)), ROWS)
    assert small.model[0].lin.out_channels == 4
    assert small.model[0].out_channels == 8


def test_widths_that_are_equal_by_chance_are_told_apart_by_what_enters_and_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Squeezed(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    budget = sc.budget.PerLayer({"0": 0.25, "2.pre.0": 0.5, "2.lin": 0.75})
    small = sc.shrink(model, sc.prune(model, "l2", "channel", budget, example=ROWS), ROWS).model
    assert (small[0].out_features, small[2].lin.in_channels, small[2].lin.out_channels) == (6, 4, 2)
    assert str(small[2]) == "Around(6, 2)"


def test_a_weight_that_does_not_agree_with_the_stated_widths_is_not_a_layers() -> None:
    layer = Own(5, 2)
    layer.out_channels = 7
    assert stated_layer(layer) is None
    assert stated_layer(nn.LayerNorm(4)) is None


@pytest.mark.parametrize(
    ("model", "x", "shapes"),
    [
        (Unstated, ROWS, {"up": (5, 4), "down": (3, 4)}),
        (UnstatedConv, IMAGE, {"first": (4, 3, 3, 3), "second": (2, 4, 1, 1)}),
    ],
)
def test_parameters_are_weights_by_the_operator_that_uses_them(
    model: Callable[[], nn.Module], x: torch.Tensor, shapes: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    dense = model()
    found = sc.explain(dense, x, budget=0.5)
    assert [(row.count, row.removed, row.by_name) for row in found.groups] == [(8, 4, False)]
    small = proved(dense, x)
    assert {name: tuple(p.shape) for name, p in small.model.named_parameters()} == shapes


def test_own_weights_are_skipped_by_name_and_left_out_by_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), Unstated())
    options = sc.PruneOptions(only="0")
    whole = sc.prune(model, "l2", "channel", 0.5, example=ROWS)
    only = sc.prune(model, "l2", "channel", 0.5, example=ROWS, options=options)
    skipped = sc.prune(model, "l2", "channel", 0.5, example=ROWS, skip="3")
    assert whole["3.up"].any(dim=0).sum() == 4
    assert "3.up" not in only
    assert skipped["3.up"].any(dim=0).all()
    assert not skipped["0.weight"].all()


class Experts(nn.Module):
    """Three matrices in one parameter, all of them applied."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 5, 8)), nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(torch.bmm(x.expand(3, *x.shape), self.up).relu(), self.down).sum(0)


def test_tables_of_matrices_are_asked_for_by_name() -> None:
    found = sc.explain(Experts(), ROWS, budget=0.5)
    assert [(row.removed, row.by_name) for row in found.groups] == [(0, True)]
    assert "PruneOptions(parameters=...): up" in found.table()


def test_a_plan_still_sets_no_attribute_but_a_smaller_width() -> None:
    layer = Own(5, 2)
    check_attribute("0", layer, "out_channels", 1)
    for key, value in (("out_channels", 3), ("forward", 1), ("_private", 1), ("training", 0)):
        with pytest.raises(sc.errors.PlanError, match="the plan sets"):
            check_attribute("0", layer, key, value)


@pytest.mark.zoo
@pytest.mark.skipif(importlib.util.find_spec("torch_geometric") is None, reason="needs torch_geometric")
@pytest.mark.parametrize("name", ["GCN", "GAT", "GraphSAGE", "GIN", "PNA"])
def test_graph_networks(name: str) -> None:
    from torch_geometric import nn as graphs

    torch.manual_seed(0)
    options = {
        "GAT": {"heads": 4},
        "PNA": {
            "aggregators": ["mean", "max"],
            "scalers": ["identity"],
            "deg": torch.ones(5, dtype=torch.long),
        },
    }
    model = getattr(graphs, name)(8, 16, 2, 4, **options.get(name, {}))
    example = (torch.randn(10, 8), torch.randint(0, 10, (2, 30)))
    small = sc.shrink(model.eval(), sc.prune(model, "l2", "channel", 0.5, example=example), example)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small.model))
    assert small.proof.holds
    assert len({case.shapes for case in small.proof.cases}) >= 2
    assert 1 - after / before > 0.4
    if name != "GIN":  # shows the network inside it
        first = (8, 4) if name == "GAT" else (8, 8)  # GAT states the width of one of its two heads
        assert [(conv.in_channels, conv.out_channels) for conv in small.model.convs] == [first, (8, 4)]


def test_channels_between_weight_norms_are_worth_their_scales() -> None:
    """Both layers compute their weights, and no tensor of a channel but the scales may be masked."""
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Conv1d(1, 8, 3)), nn.ELU(), norm(nn.ConvTranspose1d(8, 4, 3)), nn.ELU(), nn.Conv1d(4, 1, 1)
    )
    for layer in (model[0], model[2]):
        layer.parametrizations.weight.original0.data = torch.tensor([3.0, 8, 1, 6, 2, 7, 4, 5])[:, None, None]
    x = torch.randn(2, 1, 12)
    masks = sc.prune(model.eval(), "l2", "channel", 0.5, example=x)
    small = sc.shrink(model, masks, x)
    assert small.proof.holds
    assert small.model[0].parametrizations.weight.original0.flatten().tolist() == [8, 6, 7, 5]


class Beside(nn.Module):
    """Two products with parameters of the module's own, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 6))
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a((x @ self.up).relu() @ self.down).relu())


@pytest.mark.parametrize("criterion", ["wanda", "obs", "activation"])
def test_criteria_that_look_at_what_arrives_at_layers_choose_among_those(criterion: str) -> None:
    torch.manual_seed(0)
    model, data = Beside(), torch.randn(32, 6)
    masks = sc.prune(model, criterion, "channel", 0.5, data=[data])
    assert {"a.weight", "b.weight"} <= set(masks)
    assert "up" not in masks  # its channels come and go between parameters alone
    assert ("down" in masks) == (criterion != "activation")  # it puts out what a layer takes in
    assert sc.shrink(model, masks, data).proof.holds
