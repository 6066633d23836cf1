"""`prune` as a whole: what it leaves alone, rounds, masks of before, lists that overlap, and its errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.core.units import AxisMember, Units
from secateur.errors import (
    BudgetNotMetError,
    CollapseError,
    DataError,
    MaskMismatchError,
    NonFiniteError,
    NothingToDoError,
    OptionError,
    PatternError,
    UnknownNameError,
)


def prune_with(model: nn.Module, given: dict[str, Any]) -> sc.Masks:
    """`prune` with these arguments, those of `PruneOptions` among them."""
    rare = {one.name for one in dataclasses.fields(sc.PruneOptions)}
    options = sc.PruneOptions(**{key: value for key, value in given.items() if key in rare})
    return sc.prune(model, options=options, **{k: v for k, v in given.items() if k not in rare})


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# -- what is left alone
def test_the_model_is_bit_for_bit_as_before_and_so_is_the_random_state() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [parameter._version for parameter in model.parameters()]
    rng = torch.get_rng_state()
    images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = [(images, torch.tensor([0, 1, 2, 0]))]
    for criterion in ("magnitude", "random", "snip"):
        sc.prune(
            model,
            criterion,
            budget=0.3,
            data=batches,
            loss=nn.CrossEntropyLoss(),
            options=sc.PruneOptions(schedule=2),
        )
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [parameter._version for parameter in model.parameters()] == versions
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)


def test_only_skip_and_parameters_say_which_weights() -> None:
    model = mlp(8, 8, 8, 8)
    assert list(sc.prune(model, options=sc.PruneOptions(only="0"))) == ["0.weight"]
    assert list(sc.prune(model, skip=["0", "4"])) == ["2.weight"]
    assert list(sc.prune(model, options=sc.PruneOptions(only="0", parameters="2.bias"))) == [
        "0.weight",
        "2.bias",
    ]


def test_half_precision_filters_are_summed_in_single_precision() -> None:
    layer = nn.Linear(3, 3, bias=False).to(torch.bfloat16)
    layer.weight.data.copy_(torch.tensor([[256.0, 1.0, 0.0], [256.0, 0.5, 0.0], [256.0, 2.0, 0.0]]))
    assert sc.prune(layer, "l1", "filter", 1 / 3)["weight"].any(1).tolist() == [True, False, True]
    huge = nn.Linear(3, 2, bias=False).to(torch.float16)
    huge.weight.data.copy_(torch.tensor([[60000.0] * 3, [59000.0] * 3]))
    assert sc.prune(huge, "l1", "filter", 0.5)["weight"].any(1).tolist() == [True, False]


# -- rounds
@dataclass(frozen=True)
class Remaining(sc.criteria.Criterion):
    """Worth that depends on what is left, and a diary of what was seen."""

    diary: list[float]
    rescore: ClassVar[bool] = True

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        weights = {target.name: target.of(model).detach() for target in targets}
        self.diary.append(sum(float((w == 0).sum()) for w in weights.values()))
        return Scores({name: w.abs() for name, w in weights.items()})


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (None, [0.9]),
        (sc.Iterative(3), [0.3, 0.6, 0.9]),
        ([0.5, 0.8, 0.9], [0.5, 0.8, 0.9]),
        (sc.Gradual(steps=3), [1 - 0.1 - 0.9 * (2 / 3) ** 3, 1 - 0.1 - 0.9 / 27, 0.9]),
        (sc.Exponential(3), [1 - 0.1 ** (1 / 3), 1 - 0.1 ** (2 / 3), 0.9]),
    ],
)
def test_each_round_scores_what_the_rounds_before_left(schedule: Any, levels: list[float]) -> None:
    model, diary = mlp(10, 20, 10), []
    budget = sc.budget.Overall(0.9)
    masks = sc.prune(
        model,
        Remaining(diary),
        budget=budget,
        options=sc.PruneOptions(schedule=schedule, allow_collapse=True),
    )
    assert diary == [0.0, *(float(round(level * 400)) for level in levels[:-1])]
    assert 400 - masks.kept == 360


def test_a_criterion_that_need_not_be_asked_again_is_asked_once() -> None:
    class Once(Remaining):
        rescore = False

    diary: list[float] = []
    sc.prune(mlp(10, 10), Once(diary), options=sc.PruneOptions(schedule=sc.Exponential(50)))
    assert diary == [0.0]


def test_synflow_in_a_hundred_rounds_leaves_every_layer_alive() -> None:
    model = mlp(20, *[20] * 6, 5)
    example = torch.randn(1, 20)
    options: dict[str, Any] = {"criterion": "synflow", "budget": sc.budget.Overall(0.97), "example": example}
    masks = sc.prune(model, options=sc.PruneOptions(schedule=sc.Exponential(100)), **options)
    assert round(0.97 * masks.numel) == masks.numel - masks.kept
    assert all(row.kept for row in masks.summary())


def test_a_training_loop_of_ones_own() -> None:
    model, masks, seen = mlp(10, 20, 10), None, []
    for level in sc.Gradual(steps=4).levels(0.8):
        masks = sc.prune(model, budget=sc.budget.Overall(level), options=sc.PruneOptions(masks=masks))
        masks.apply_(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)  # what was pruned would now be the largest of the small ones
        seen.append(masks)
    assert [400 - m.kept for m in seen] == [round(level * 400) for level in sc.Gradual(steps=4).levels(0.8)]
    for before, after in pairwise(seen):
        assert all(bool((~after[name] | before[name]).all()) for name in after)


def test_a_per_layer_table_walks_to_each_of_its_ends() -> None:
    model = mlp(10, 10, 10)
    diary: list[float] = []
    masks = sc.prune(
        model,
        Remaining(diary),
        budget=sc.budget.PerLayer({"0": 0.8, "2": 0.4}),
        options=sc.PruneOptions(schedule=sc.Iterative(2)),
    )
    assert diary == [0.0, 60.0]
    assert [row.kept for row in masks.summary()] == [20, 60]


# -- masks of before
def test_what_was_removed_counts_and_stays_removed_unless_regrow() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    before = sc.Masks({"weight": torch.tensor([[False, True, True, True]])})
    assert sc.prune(layer, budget=0.5, options=sc.PruneOptions(masks=before))["weight"].tolist() == [
        [False, True, True, False]
    ]
    regrown = sc.prune(layer, budget=0.5, options=sc.PruneOptions(masks=before, regrow=True))
    assert regrown["weight"].tolist() == [[True, True, False, False]]
    text = r"'weight', but the masks given have already removed 3 .* 0\.75, or"
    with pytest.raises(BudgetNotMetError, match=text):
        sc.prune(layer, budget=0.5, options=sc.PruneOptions(masks=sc.prune(layer, budget=0.75)))
    with pytest.raises(BudgetNotMetError, match="already removed 3"):
        sc.prune(
            layer, budget=sc.budget.Overall(0.5), options=sc.PruneOptions(masks=sc.prune(layer, budget=0.75))
        )
    with pytest.raises(BudgetNotMetError, match=r"2 of 4 units must stay .* leave only 1"):
        sc.prune(layer, budget=0.8, options=sc.PruneOptions(masks=sc.prune(layer, budget=0.75), at_least=2))


def test_what_was_removed_counts_whatever_the_criterion_thinks_of_it_now() -> None:
    model = mlp(10, 10, 10)
    for granularity in ("element", "filter"):
        for criterion in ("random", "fpgm"):
            before = sc.prune(model, "magnitude", granularity, 0.2)
            for budget in (0.5, sc.budget.Overall(0.5), sc.budget.PerLayer({"*": 0.5})):
                after = sc.prune(model, criterion, granularity, budget, options=sc.PruneOptions(masks=before))
                assert after.sparsity == 0.5
                assert all(bool((~after[name] | before[name]).all()) for name in after)


def test_weights_removed_one_by_one_do_not_count_for_their_filter() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[9.0, 9.0, 1.0], [2.0, 2.0, 2.0]]))
    before = sc.Masks({"weight": torch.tensor([[False, False, True], [True, True, True]])})
    for criterion in ("l1", "fpgm", "magnitude"):
        masks = sc.prune(layer, criterion, "filter", 0.5, options=sc.PruneOptions(masks=before))
        if criterion != "fpgm":
            assert masks["weight"].tolist() == [[False] * 3, [True] * 3]
        assert not masks["weight"][0, :2].any()


def test_masks_of_tensors_not_asked_about_are_taken_over() -> None:
    model = mlp(4, 4, 4)
    first = sc.prune(model, options=sc.PruneOptions(only="0"))
    both = sc.prune(model, options=sc.PruneOptions(only="2", masks=first))
    assert set(both) == {"0.weight", "2.weight"}
    assert torch.equal(both["0.weight"], first["0.weight"])


# -- several lists over one tensor
@dataclass(frozen=True)
class Coupled(sc.granularity.Granularity):
    """Channels between two linear layers, and the inputs of the first: `0.weight` takes part in two lists."""

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        def each(count: int) -> torch.Tensor:
            return torch.arange(count)[:, None]

        hidden = (
            AxisMember("0.weight", 0, each(4)),
            AxisMember("0.bias", 0, each(4), scored=False),
            AxisMember("2.weight", 1, each(4)),
        )
        return Units("hidden", 4, hidden), Units("inputs", 3, (AxisMember("0.weight", 1, each(3)),))


def test_coupled_tensors_are_cut_together_and_lists_over_one_tensor_are_anded() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rows = [[1.0, 9.0, 9.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0], [1.0, 9.0, 9.0]]
    model[0].weight.data.copy_(torch.tensor(rows))
    model[2].weight.data.copy_(torch.tensor([[1.0, 1.0, 90.0, 1.0], [1.0, 1.0, 90.0, 1.0]]))
    masks = sc.prune(model, "l1", Coupled(), sc.budget.PerLayer({"hidden": 0.5, "inputs": 1 / 3}))
    # hidden: 19+2, 5+2, 7+180, 19+2: of the two equal channels the first goes
    assert masks["0.bias"].tolist() == [False, False, True, True]
    assert masks["2.weight"].tolist() == [[False, False, True, True]] * 2
    assert masks["0.weight"].tolist() == [[False] * 3, [False] * 3, [False, True, True], [False, True, True]]
    assert list(masks) == ["0.weight", "0.bias", "2.weight"]
    again = sc.prune(
        model, "l1", Coupled(), 0.75, options=sc.PruneOptions(masks=masks, at_least={"inputs": 1})
    )
    assert again["0.bias"].tolist() == [False, False, True, False]


# -- errors
@pytest.mark.parametrize("bad", [-0.1, 1.0, 5, math.nan])
def test_a_bare_number_is_a_share(bad: float) -> None:
    text = "sparsity is the share removed: expected a number with 0 <= sparsity < 1"
    with pytest.raises(OptionError, match=text):
        sc.prune(mlp(2, 2), budget=bad)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"budget": "0.5"},
            OptionError,
            r"budget: got the text '0\.5'; write the number 0\.5 without quotes",
        ),
        ({"budget": True}, OptionError, "expected a budget"),
        ({"budget": "overal"}, UnknownNameError, "unknown budget 'overal': did you mean 'overall'"),
        ({"budget": "overall"}, OptionError, "budget 'overall' needs its options: pass a value such as sc"),
        (
            {"criterion": "magnitud"},
            UnknownNameError,
            "unknown criterion 'magnitud': did you mean 'magnitude'",
        ),
        ({"granularity": "filters"}, UnknownNameError, "granularity 'filters': did you mean 'filter'"),
        ({"only": "layer9"}, PatternError, "pattern 'layer9' matches no prunable layer"),
        ({"skip": ["0", "2"]}, NothingToDoError, "no weight takes part in Sequential"),
        ({"budget": 0.0}, NothingToDoError, r"PerTensor\(sparsity=0\.0\) .* removes nothing from Sequential"),
        ({"at_least": 10**6}, NothingToDoError, "removes nothing from Sequential: ask for a larger share"),
        ({"criterion": "snip"}, DataError, "criterion snip scores on data: pass data="),
        ({"schedule": 0}, OptionError, "Iterative steps: expected a whole number of at least 1, got 0"),
        ({"schedule": "cubic"}, OptionError, "schedule: expected OneShot"),
        ({"schedule": [0.6, 0.5]}, OptionError, "Iterative levels must not fall"),
        ({"schedule": [0.6, 0.7]}, OptionError, r"ends at 0\.7, but the budget asks for 0\.5; give both the"),
        (
            {"schedule": 3, "budget": sc.budget.NOfM(1, 2)},
            OptionError,
            "no sparsity a schedule could approach",
        ),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_so(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        prune_with(mlp(4, 4, 4), options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("criterion", ["magnitude", "l1", "l2", "fpgm", "random"])
@pytest.mark.parametrize("granularity", ["element", "filter"])
def test_weights_without_a_value_are_named(value: float, criterion: str, granularity: str) -> None:
    model = mlp(4, 4, 4)
    model[2].weight.data[1, 1] = value
    with pytest.raises(NonFiniteError, match=r"'2\.weight'.*1 of 16 are NaN or infinite"):
        sc.prune(model, criterion, granularity)


def test_scores_without_a_value_are_named() -> None:
    @dataclass(frozen=True)
    class Broken(sc.criteria.Criterion):
        def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
            return Scores({target.name: target.of(model).detach() / 0 for target in targets})

    with pytest.raises(NonFiniteError, match=r"scores of '0\.weight': 16 of 16 are NaN or infinite"):
        sc.prune(mlp(4, 4), Broken())


def test_scores_of_another_shape_are_named() -> None:
    @dataclass(frozen=True)
    class Rows(sc.criteria.Criterion):
        def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
            return Scores({target.name: target.of(model).sum(1) for target in targets})

    with pytest.raises(OptionError, match=r"gave '0\.weight' scores of shape \(4,\), expected \(4, 4\)"):
        sc.prune(mlp(4, 4), Rows())


def test_masks_of_another_model_are_refused() -> None:
    text = r"expected shape \(4, 4\).*are these the masks of another model"
    with pytest.raises(MaskMismatchError, match=text):
        sc.prune(mlp(4, 4), options=sc.PruneOptions(masks=sc.prune(mlp(5, 4))))


def test_data_that_can_be_read_once_is_refused_for_rounds() -> None:
    batches = iter([(torch.randn(2, 4), torch.tensor([0, 1]))])
    text = r"3 rounds and each reads the data, .* pass list\(data\) or a DataLoader"
    with pytest.raises(DataError, match=text):
        sc.prune(
            mlp(4, 4), "snip", data=batches, loss=nn.CrossEntropyLoss(), options=sc.PruneOptions(schedule=3)
        )


# -- data in all its forms
class Answering(nn.Module):
    """A model as transformers makes them: keywords in, and its own loss among what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.layer(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def pairs(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 4, generator=draw), torch.randint(0, 3, (5,), generator=draw)) for _ in range(count)
    ]


@pytest.mark.parametrize("criterion", ["snip", "taylor", sc.criteria.Grasp(temperature=1.0)])
def test_a_model_that_computes_its_own_loss_needs_none(criterion: Any) -> None:
    model = Answering()
    batches = [{"x": x, "labels": y} for x, y in pairs()]
    own = sc.prune(model, criterion, budget=0.5, data=batches)
    plain = sc.prune(
        model,
        criterion,
        budget=0.5,
        data=batches,
        loss=lambda out, y: nn.functional.cross_entropy(out.logits, y),
    )
    assert own == plain


@pytest.mark.parametrize("criterion", ["l1", "snip"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_draws_from_the_random_state_leaves_it_as_found(criterion: str, workers: int) -> None:
    x, y = (torch.cat(parts) for parts in zip(*pairs()))
    loader = DataLoader(TensorDataset(x, y), 5, shuffle=True, num_workers=workers)
    model = mlp(4, 3)
    before = torch.get_rng_state()
    sc.prune(
        model,
        criterion,
        budget=0.5,
        data=loader,
        loss=nn.CrossEntropyLoss(),
        options=sc.PruneOptions(schedule=2),
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_that_are_dicts_serve_the_guard_as_well() -> None:
    class Cut(sc.criteria.Criterion):
        """Leaves the first layer its first row only, and takes that row's column from the second."""

        def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
            one, two = torch.zeros(4, 4), torch.ones(4, 4)
            one[0], two[:, 0] = 1.0, 0.0
            return Scores({"stack.0.weight": one, "stack.2.weight": two})

    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = mlp(4, 4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stack(x)

    batches = [{"x": torch.randn(3, 4), "labels": torch.zeros(3)}]
    budget = sc.budget.PerLayer({"stack.0": 0.75, "stack.2": 0.25})
    with pytest.raises(CollapseError, match=r"comes out of 'stack\.2'"):
        sc.prune(Keyed(), Cut(), budget=budget, data=batches, loss=nn.functional.mse_loss)


def test_an_iterator_is_not_opened_before_the_criterion_reads_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    whole = sc.prune(model, "taylor", "channel", 0.5, data=pairs(), loss=nn.CrossEntropyLoss())
    example = torch.zeros(1, 4)
    read = sc.prune(
        model, "taylor", "channel", 0.5, data=iter(pairs()), loss=nn.CrossEntropyLoss(), example=example
    )
    assert read == whole
    with pytest.raises(DataError, match="pass example="):
        sc.prune(model, "taylor", "channel", 0.5, data=iter(pairs()), loss=nn.CrossEntropyLoss())


def test_a_batch_that_does_not_fit_is_told_with_the_shapes() -> None:
    for criterion in ("snip", "synflow"):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
            sc.prune(mlp(4, 3), criterion, data=[(torch.ones(2, 5), torch.zeros(2))], loss=nn.MSELoss())
        (note,) = caught.value.__notes__
        assert note.startswith(f"{criterion}: Linear failed on") or note.startswith(
            f"{criterion}: Sequential failed on"
        )
        assert ", 5) float" in note


# -- what is no model, no data, no seed
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            {"weight": torch.ones(2)},
            r"expected a torch\.nn\.Module, got dict; load the state dict into its model",
        ),
        (nn.Linear, r"got the class Linear; make one first: Linear\(\.\.\.\)"),
        (None, r"got NoneType; pass the model"),
        (nn.LazyLinear(3), r"'weight' has no shape yet \(a lazy layer\): run the model once"),
        (nn.Linear(2, 2, device="meta"), r"weight: expected real weights, got a tensor on the meta device"),
    ],
)
def test_what_is_no_model_with_weights_is_an_error_that_says_so(model: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        sc.prune(model)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"data": 5}, DataError, r"data: expected an iterable of batches, got int; write data="),
        ({"loss": "ce"}, OptionError, r"loss: expected a function of outputs and targets, .* got 'ce'"),
        ({"seed": "a"}, OptionError, "seed: expected a whole number, got 'a'"),
        ({"only": 3}, OptionError, r"pattern 3: expected a layer's name, .* got int"),
        ({"skip": ["0", None]}, OptionError, r"pattern None: expected a layer's name, .* got NoneType"),
    ],
)
def test_options_of_another_kind_are_errors(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        prune_with(mlp(4, 4), options)


def test_masks_of_before_may_be_a_plain_table() -> None:
    before = {"0.weight": torch.tensor([[False, True], [True, True]])}
    assert not sc.prune(mlp(2, 2), budget=0.5, options=sc.PruneOptions(masks=before))["0.weight"][0, 0]


def test_a_tensor_that_never_held_a_weight_has_not_collapsed() -> None:
    model = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 4))
    assert sc.prune(model).kept == 8


@pytest.mark.parametrize(
    ("criterion", "told"),
    [([], "expected one, or one for each granularity, got an empty list"), (None, "None"), (3, "3")],
)
def test_a_criterion_that_is_none_is_an_error(criterion: object, told: str) -> None:
    with pytest.raises(sc.errors.OptionError, match=told):
        sc.prune(torch.nn.Linear(2, 2), criterion, budget=0.5)


def test_an_unknown_budget_says_that_a_number_is_one_too():
    with pytest.raises(UnknownNameError, match=r"unknown budget 'zz': known: .*; or a number such as 0.5"):
        sc.prune(nn.Sequential(nn.Linear(4, 4)), budget="zz")
