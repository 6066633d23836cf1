"""Whole layers and channels under one budget: worked out by hand, and which of them is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import granularity
from secateur.core.context import Context
from secateur.core.measurement import Measurement
from secateur.errors import BudgetNotMetError, OptionError
from secateur.pruning.cost import CostModel
from secateur.pruning.unit_masks import masks_of

X = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """x + out(relu(fc(x))): 4 x 8 and 8 x 4 weights, 64 multiply-accumulates; 8 for each of its 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.fc(x).relu())


class Net(nn.Module):
    """8 + 3 x 64 + 8 = 208 multiply-accumulates an example."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 4, bias=False)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


def built(idle_block: bool = False, idle_channels: int = 0) -> nn.Module:
    """The net with positive weights; block 1, or the first channels of every block, may be idle."""
    torch.manual_seed(0)
    net = Net().eval()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    with torch.no_grad():
        if idle_block:
            net.blocks[1].fc.weight.fill_(1e-3)
            net.blocks[1].out.weight.zero_()
        for block in net.blocks:
            block.fc.weight[:idle_channels] = 1e-4
            block.out.weight[:, :idle_channels] = 0.0
    return net


def macs(model: nn.Module) -> int:
    return int(sc.measure(model, X[:1], what="macs")["macs"].value)


def cut(model: nn.Module, budget: sc.budget.Budget, **options: object) -> sc.Shrunk:
    """The model shrunk by layers and the channels inside blocks."""
    only = sc.PruneOptions(only=["blocks.*"])
    masks = sc.prune(model, "l2", ["layer", "channel"], budget, example=X, options=only, **options)
    return sc.shrink(model, masks, X)


def widths(small: sc.Shrunk) -> list[int]:
    return [block.fc.out_features for block in small.model.blocks]


def test_the_same_budget_takes_a_layer_where_that_changes_nothing_and_channels_where_those_do() -> None:
    """At most 0.7 x 208 = 145.6 may remain: one block of 64 leaves 144, and so do 8 channels of 8."""
    budget = sc.budget.Macs(keep=0.7)
    for net, left in ((built(idle_block=True), [8, 8]), (built(idle_channels=3), [5, 5, 6])):
        small = cut(net, budget)
        assert sorted(widths(small)) == left
        assert macs(small.model) == 144
        assert small.proof.holds
        torch.testing.assert_close(small.model(X), net(X))
    assert small.plan.layers == {}


def test_a_layer_and_channels_leave_together() -> None:
    """0.4 x 208 = 83.2: without block 1, 144 remain; 4 channels in each of the others leave 144 - 64 = 80."""
    net = built(idle_block=True, idle_channels=4)
    small = cut(net, sc.budget.Macs(keep=0.4))
    assert small.plan.layers == {"blocks": ("0", "2")}
    assert widths(small) == [4, 4]
    assert macs(small.model) == 80
    torch.testing.assert_close(small.model(X), net(X))


def test_parameters_are_met() -> None:
    net = built()
    small = cut(net, sc.budget.Params(keep=0.5))
    assert 0.4 * 208 < sum(each.numel() for each in small.model.parameters()) <= 0.5 * 208
    assert small.proof.holds


def test_the_bytes_of_the_file_are_met(tmp_path: Path) -> None:
    net = built()
    whole = sc.save(net, tmp_path / "whole.sct").size
    small = cut(net, sc.budget.Size(bytes=whole - 150))
    assert sc.save(small.model, tmp_path / "small.sct", plan=small.plan).size <= whole - 150


def test_latency_measures_how_many_layers_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block takes 1 ms whatever its widths, and 0.1 ms for each MAC besides: only layers halve that time."""
    read: list[tuple[int, int]] = []

    def milliseconds(model: nn.Module) -> float:
        return 10.0 * len(model.blocks) + macs(model) / 208

    def compare(a: nn.Module, b: nn.Module, example: object, **options: object) -> sc.Measurements:
        times = milliseconds(a), milliseconds(b)
        read.append((len(b.blocks), macs(b)))
        rows = [Measurement("latency", time) for time in times]
        return sc.Measurements([*rows, Measurement("speedup", times[0] / times[1])])

    monkeypatch.setattr("secateur.pruning.cost.compare", compare)
    monkeypatch.setattr("secateur.pruning.cost._TIMES", {})
    small = cut(built(idle_channels=4), sc.budget.Latency(keep=0.7, repetitions=3))
    assert len(small.model.blocks) == 2
    assert {blocks for blocks, _ in read} == {2, 3}, "no deeper cut is timed once layers alone are enough"
    with pytest.raises(BudgetNotMetError, match=r"fastest of \d+ shrunk models"):
        cut(built(), sc.budget.Latency(keep=0.1, repetitions=3))


def test_the_same_model_is_saved_and_loaded(tmp_path: Path) -> None:
    small = cut(built(idle_block=True, idle_channels=4), sc.budget.Macs(keep=0.4))
    sc.save(small.model, tmp_path / "small.sct", plan=small.plan)
    again = sc.load(tmp_path / "small.sct", into=Net()).eval()
    assert torch.equal(again(X), small.model(X))


def test_a_criterion_for_each_granularity() -> None:
    """Block influence scores layers, by which block 1 leaves first although its weights are the largest."""
    net = built(idle_block=True)
    with torch.no_grad():
        net.blocks[1].fc.weight.fill_(9.0)
    options = sc.PruneOptions(only=["blocks.*"])
    budget = sc.budget.Macs(keep=0.7)
    kinds = ["layer", "channel"]
    masks = sc.prune(net, ["block_influence", "l2"], kinds, budget, data=[X], options=options)
    assert sc.shrink(net, masks, X).plan.layers == {"blocks": ("0", "2")}
    with pytest.raises(OptionError, match="one for each of the 2 granularities"):
        sc.prune(net, ["l2", "l2", "l2"], kinds, budget, data=[X])
    with pytest.raises(OptionError, match="scores whole blocks: expected granularity 'layer', got Channel"):
        sc.prune(net, "block_influence", kinds, budget, data=[X])


def test_scores_of_layers_and_channels_are_not_ranked_together() -> None:
    with pytest.raises(OptionError, match="take a budget on a cost"):
        cut(built(), sc.budget.Overall(0.5))


def test_a_share_is_that_of_every_list() -> None:
    """A third of the three blocks, and 3 of every 8 channels (8 / 3 = 2.67)."""
    small = cut(built(), sc.budget.PerTensor(1 / 3))
    assert widths(small) == [5, 5]


def test_earlier_masks_count() -> None:
    """Block 1 is gone before: the budget of 145.6 is met by it, and nothing else leaves."""
    net = built()
    before = sc.Masks(
        {
            name: torch.zeros_like(each, dtype=torch.bool)
            for name, each in net.named_parameters()
            if "blocks.1" in name
        }
    )
    options = sc.PruneOptions(only=["blocks.*"], masks=before)
    masks = sc.prune(net, "l2", ["layer", "channel"], sc.budget.Macs(keep=0.7), example=X, options=options)
    small = sc.shrink(net, masks, X)
    assert small.plan.layers == {"blocks": ("0", "2")}
    assert widths(small) == [8, 8]


def test_what_is_counted_is_what_the_shrunk_transformer_computes() -> None:
    """Heads, channels and layers, where products of two activations belong to no weight."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    x = torch.randn(2, 6, 16)
    grain = granularity.registry.make(["layer", "head", "channel"])
    units = grain.units(net, sc.select(net), Context(example=x))
    costs = CostModel(net, units, Context(example=x))
    chosen = {each.name: torch.arange(each.count) >= each.count // 4 for each in units}
    small = sc.shrink(net, masks_of(net, units, chosen, None), x)
    assert len(small.model.layers) == 3
    assert small.model.layers[0].self_attn.num_heads == 3
    assert costs.remaining("macs", chosen) == sc.measure(small.model, x, what="macs")["macs"].value
    with torch.no_grad():
        error, whole = (small.model(x) - net(x)).double().square().sum(), net(x).double().square().sum()
    assert costs.change(chosen) == pytest.approx(float(error / whole))


def test_lists_of_two_granularities_are_taken_once() -> None:
    """Granularity channel gives heads too, so that head besides it adds nothing."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    context = Context(example=torch.zeros(1, 6, 16))
    alone, both = (
        granularity.registry.make(kinds).units(layer, sc.select(layer), context)
        for kinds in ("channel", ["channel", "head"])
    )
    assert [each.name for each in both] == [each.name for each in alone]
    with pytest.raises(OptionError, match="at least one"):
        granularity.registry.make([])


def test_single_weights_beside_layers_are_measured_by_what_they_change() -> None:
    """Without block 1, which does next to nothing, 144 of 208 remain: no single weight has to go."""
    net = built(idle_block=True)
    nn.init.constant_(net.blocks[1].out.weight, 1e-4)
    only = sc.PruneOptions(only=["blocks.*"])
    masks = sc.prune(net, "l2", ["layer", "element"], sc.budget.Params(keep=0.7), example=X, options=only)
    small = sc.shrink(net, masks, X)
    assert small.plan.layers == {"blocks": ("0", "2")}


def test_data_follows_the_model_s_type() -> None:
    net = built(idle_block=True).double()
    masks = sc.prune(net, "l1", "layer", sc.budget.LeastChange(0.34), example=X.double(), data=[X], loss=None)
    assert sc.shrink(net, masks, X.double()).plan.layers == {"blocks": ("0", "2")}


def test_outputs_that_cannot_be_compared_are_an_error() -> None:
    budget = sc.budget.LeastChange(0.34, compare=lambda output, inputs: output.argmax(-1))
    with pytest.raises(
        OptionError, match=r"cannot be compared .*: floating-point tensors of shapes \[\] and \[\]; give"
    ):
        sc.prune(built(), "l1", "layer", budget, example=X)


def test_one_threshold_for_layers_and_channels_is_refused() -> None:
    with pytest.raises(OptionError, match="ranks all units by their scores"):
        cut(built(), sc.budget.Percentile(0.5, scope="network"))
