"""What one piece is, for each kind of layer, against small weights written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import OptionError, UnknownNameError
from secateur.pruning.scoring import unit_scores

KINDS = {
    "conv1d": (nn.Conv1d(4, 6, 3), 24, 6),
    "conv2d": (nn.Conv2d(4, 6, 3), 24, 6),
    "conv3d": (nn.Conv3d(4, 6, 2), 24, 6),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), 12, 6),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), 4, 4),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), 24, 6),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3), 24, 6),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), 24, 6),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), 12, 6),
    "linear": (nn.Linear(4, 6), 24, 6),
    "embedding": (nn.Embedding(6, 4), 24, 6),
}


def units(layer: nn.Module, granularity: Any) -> Any:
    return sc.granularity.registry.make(granularity).units(layer, select(layer), Context())[0]


@pytest.mark.parametrize("kind", KINDS)
def test_how_many_pieces_each_kind_of_layer_has(kind: str) -> None:
    layer, kernels, filters = KINDS[kind]
    assert units(layer, "element").count == layer.weight.numel()
    assert units(layer, "kernel").count == kernels
    assert units(layer, "filter").count == filters


def outputs_changed(layer: nn.Module, inputs: torch.Tensor, masks: sc.Masks) -> list[int]:
    """Which output channels are dead once the masks are applied: what a filter is in any layout."""
    with torch.no_grad():
        layer.bias.zero_()
        out = masks.apply(layer)(inputs)
    return [channel for channel in range(out.shape[1]) if not bool(out[:, channel].any())]


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(4, 6, 3), (5,)),
        (nn.Conv2d(4, 6, 3, groups=2), (5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), (5,)),
        (nn.ConvTranspose2d(4, 6, 3), (5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (5, 5)),
        (nn.ConvTranspose3d(4, 8, 2, groups=4), (4, 4, 4)),
        (nn.Linear(4, 6), ()),
    ],
)
def test_a_removed_filter_is_exactly_one_dead_output(layer: nn.Module, size: tuple[int, ...]) -> None:
    unit = units(layer, "filter")
    inputs = torch.randn(2, 4, *size)
    for gone in range(unit.count):
        keep = torch.arange(unit.count) != gone
        masks = sc.Masks({"weight": unit.members[0].scatter(keep, layer.weight.shape)})
        assert outputs_changed(layer, inputs, masks) == [gone]


def test_gpt2_linear_layer_has_its_outputs_on_axis_one() -> None:
    class Conv1D(nn.Module):  # as in transformers
        def __init__(self) -> None:
            super().__init__()
            self.nf = 3
            self.weight = nn.Parameter(torch.tensor([[1.0, 9.0, 2.0], [1.0, 9.0, 2.0]]))

    masks = sc.prune(Conv1D(), "l1", "filter", 1 / 3)
    assert masks["weight"].tolist() == [[False, True, True], [False, True, True]]


def test_kernels_go_by_the_sum_of_their_taps() -> None:
    layer = nn.Conv2d(2, 1, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[[[0.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [-1.0, 1.0]]]]))
    assert sc.prune(layer, "l1", "kernel", 0.5)["weight"][0, :, 0, 0].tolist() == [False, True]
    assert sc.prune(layer, "l2", "kernel", 0.5)["weight"][0, :, 0, 0].tolist() == [True, False]


def test_blocks_at_uneven_edges_compete_as_they_are() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 1.0, 5.0], [1.0, 1.0, 5.0], [9.0, 9.0, 3.5]]))
    block = sc.granularity.Block(2, 2)  # worth 4, 10, 18, 3.5
    mask = sc.prune(layer, "l1", block, 0.25)["weight"]
    assert mask.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    mask = sc.prune(layer, "l1", block, 0.5)["weight"]
    assert mask.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_blocks_part_every_tensor_exactly(rows: int, rest: list[int], height: int, width: int) -> None:
    holder = nn.Module()
    holder.table = nn.Parameter(torch.zeros(rows, *rest))
    targets = select(holder, parameters="table")
    (unit,) = sc.granularity.Block(height, width).units(holder, targets, Context())
    (member,) = unit.members
    numbered = torch.arange(1.0, holder.table.numel() + 1).reshape(holder.table.shape)
    laid = member.gather(numbered)
    assert sorted(laid[laid > 0].tolist()) == numbered.flatten().tolist()
    assert member.sizes(numbered.shape).tolist() == (laid > 0).sum(1).tolist()
    for gone in range(unit.count):
        keep = torch.arange(unit.count) != gone
        removed = numbered[~member.scatter(keep, numbered.shape)]
        assert sorted(removed.tolist()) == sorted(laid[gone][laid[gone] > 0].tolist())


def test_bare_parameters_of_any_number_of_axes() -> None:
    holder = nn.Module()
    holder.scalar = nn.Parameter(torch.tensor(1.0))
    holder.line = nn.Parameter(torch.arange(1.0, 5.0))
    holder.cube = nn.Parameter(torch.arange(1.0, 25.0).reshape(2, 3, 4))
    for granularity in ("element", "kernel", "filter", sc.granularity.Block(1, 2)):
        masks = sc.prune(
            holder,
            "magnitude",
            granularity,
            0.5,
            options=sc.PruneOptions(parameters=["*"], allow_collapse=True),
        )
        assert set(masks) == {"scalar", "line", "cube"}
        assert masks["line"].tolist() == [False, False, True, True]
        assert masks["scalar"].item() is True  # half of one, rounded to even, is none
        assert not masks["cube"][0].all()
        assert masks["cube"][1].all()


def test_masks_of_filters_take_no_memory_of_their_own() -> None:
    layer = nn.Conv2d(16, 16, 3)
    mask = sc.prune(layer, "l1", "filter", 0.5)["weight"]
    assert mask.untyped_storage().nbytes() == 16
    assert mask.shape == layer.weight.shape
    assert mask.sum().item() == 8 * 16 * 9


@pytest.mark.parametrize(("height", "width"), [(0, 2), (2, -1), (2.0, 2), (True, 2)])
def test_a_block_of_no_size_is_refused(height: Any, width: Any) -> None:
    with pytest.raises(
        OptionError, match=r"block (height|width): expected a whole number of at least 1, got"
    ):
        sc.granularity.Block(height, width)


def test_an_unknown_granularity_names_its_neighbour() -> None:
    with pytest.raises(UnknownNameError, match="unknown granularity 'kernels': did you mean 'kernel'"):
        sc.prune(nn.Linear(2, 2), granularity="kernels")


@pytest.mark.parametrize(
    ("criterion", "combine", "worth", "leaves"),
    [
        ("l1", "sum", [6.0, 5.0, 10.0], 1),
        ("l1", "mean", [3.0, 2.5, 5.0], 1),
        ("l1", "max", [3.0, 4.5, 5.0], 0),
        ("l2", "sum", [18**0.5, 20.5**0.5, 50**0.5], 0),
        ("l2", "mean", [3.0, 2.5, 5.0], 1),
        ("l2", "max", [3.0, 4.5, 5.0], 0),
        ("taylor", "max", None, None),
    ],
)
def test_one_worth_of_several_tensors(criterion: str, combine: str, worth: Any, leaves: int | None) -> None:
    first, last = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
    first.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.5], [5.0, 0.0]])
    last.weight.data = torch.tensor([[3.0, 0.5, 5.0]])
    model, example = nn.Sequential(first, nn.ReLU(), last), torch.ones(1, 2)
    grain = sc.granularity.Channel(combine=combine)
    context = Context(example=example, data=[(example, torch.zeros(1, 1))], loss=nn.MSELoss())
    targets = select(model)
    pieces = grain.units(model, targets, context)
    rule = sc.criteria.registry.make(criterion)
    found = unit_scores(rule, model, targets, pieces, context)["0"]
    if worth is None:  # scores that are not the weights: those of each tensor add up, the larger counts
        scores = rule.scores(model, targets, context)
        worth = torch.stack([scores["0.weight"].sum(1), scores["2.weight"].sum(0)]).amax(0).tolist()
        leaves = int(torch.tensor(worth).argmin())
    assert found.tolist() == pytest.approx(worth, rel=1e-6)
    masks = sc.prune(model, criterion, grain, 0.34, example=example, data=context.data, loss=context.loss)
    assert masks["0.weight"].any(1).tolist() == [unit != leaves for unit in range(3)]


def test_heads_are_worth_by_sum_mean_or_max_too() -> None:
    layer, example = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval(), torch.ones(1, 3, 8)
    targets = select(layer, parameters="self_attn.in_proj_weight")
    context, found = Context(example=example), {}
    for combine in ("sum", "mean", "max"):
        pieces = sc.granularity.Head(combine=combine).units(layer, targets, context)
        found[combine] = unit_scores(sc.criteria.L1(), layer, targets, pieces, context)["self_attn"]
    # two tensors: that of queries, keys and values, and the layer that takes the heads in
    torch.testing.assert_close(found["mean"] * 2, found["sum"])
    assert bool((found["max"] > found["mean"]).all())
    assert bool((found["max"] < found["sum"]).all())


@pytest.mark.parametrize("grain", [sc.granularity.Channel, sc.granularity.Head])
def test_an_unknown_way_to_combine_is_refused(grain: Any) -> None:
    with pytest.raises(OptionError, match=r"combine: expected 'sum', 'mean' or 'max', got 'median'"):
        grain(combine="median")


class Branch(nn.Module):
    """A block of one linear layer around which its input goes."""

    def __init__(self, weight: list[list[float]]):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.fc.weight.data = torch.tensor(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(x)


@pytest.mark.parametrize(
    ("criterion", "worth"),
    [
        ("magnitude", [7.0, 5.0, 6.0]),
        ("l2", [5.0, 13**0.5, 20**0.5]),
        ("lamp", [25 / 25, 13 / (13 + 20 + 25), 20 / (20 + 25)]),
        ("fpgm", [45**0.5 + 38**0.5, 38**0.5 + 33**0.5, 45**0.5 + 33**0.5]),
    ],
)
def test_a_whole_block_is_scored_by_all_its_weights(criterion: str, worth: list[float]) -> None:
    model = nn.Sequential(
        Branch([[3.0, 0.0], [0.0, -4.0]]), Branch([[2.0, 3.0], [0.0, 0.0]]), Branch([[4.0, 0.0], [-2.0, 0.0]])
    )
    context, targets = Context(example=torch.ones(1, 2)), select(model)
    units = sc.granularity.Layer().units(model, targets, context)
    found = unit_scores(sc.criteria.registry.make(criterion), model, targets, units, context)
    assert found["layers"].tolist() == pytest.approx(worth, rel=1e-6)
    masks = sc.prune(model, criterion, "layer", 0.34, example=context.example)
    assert [name for name, mask in masks.items() if not mask.any()] == ["1.fc.weight", "1.fc.bias"]
    again = sc.prune(
        model, criterion, "layer", 0.67, example=context.example, options=sc.PruneOptions(masks=masks)
    )
    assert [name for name, mask in again.items() if not mask.any()][:2] == ["1.fc.weight", "1.fc.bias"]
    assert again.kept == 6


def test_own_matrices_of_a_block_take_part() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    context = Context(example=torch.ones(1, 3, 8))
    assert "layers.1.self_attn.in_proj_weight" in sc.granularity.Layer().own_weights(model, context)
