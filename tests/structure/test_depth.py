"""Whole blocks: which can leave, what leaves with them, and that the model without them computes the same."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, PlanError
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.depth.blocks import find_blocks
from secateur.structure.depth.entries import name_after, name_before

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """x + f(x), with what comes after the addition."""

    def __init__(self, width: int = 4, after: nn.Module | None = None):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.after = after if after is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(x + self.out(torch.tanh(self.fc(x))))


class Projected(Residual):
    """A block whose shortcut has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.short(x) + self.out(torch.tanh(self.fc(x)))


class Stack(nn.Module):
    """Blocks in a ModuleList, each with its number."""

    def __init__(self, count: int = 4, after: type[nn.Module] = nn.Identity):
        super().__init__()
        self.blocks = nn.ModuleList(
            Residual(4, after(4) if after is nn.LayerNorm else after()) for _ in range(count)
        )
        for index, block in enumerate(self.blocks):
            block.layer_idx = index
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def seeded(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def without(model: nn.Module, *paths: str) -> sc.Masks:
    """Masks that drop all parameters of these blocks."""
    return sc.Masks(
        {
            name: torch.zeros_like(parameter, dtype=torch.bool)
            for name, parameter in model.named_parameters()
            if any(name.startswith(path + ".") for path in paths)
        }
    )


def kinds(model: nn.Module, x: object = X) -> dict[str, str]:
    return {block.path: block.kind for block in find_blocks(model, x).found}


def test_a_block_whose_branch_is_added_to_its_input_is_residual() -> None:
    assert kinds(Stack(2)) == {"blocks.0": "residual", "blocks.1": "residual"}


def test_a_norm_after_the_addition_makes_it_normalised() -> None:
    assert kinds(Stack(2, nn.LayerNorm)) == {"blocks.0": "normalised", "blocks.1": "normalised"}


def test_relu_after_the_addition_hands_on_what_is_never_negative() -> None:
    blocks = [Residual(4, nn.ReLU()) for _ in range(2)]
    assert kinds(nn.Sequential(nn.ReLU(), *blocks)) == {"1": "residual", "2": "residual"}
    assert kinds(nn.Sequential(nn.Linear(4, 4), *blocks)) == {"1": "normalised", "2": "residual"}
    inplace = [Residual(4, nn.ReLU(inplace=True)) for _ in range(2)]
    assert kinds(nn.Sequential(nn.ReLU(inplace=True), *inplace)) == {"1": "residual", "2": "residual"}


def test_what_cannot_leave_says_why() -> None:
    found = find_blocks(nn.Sequential(Projected(), nn.Linear(4, 4)), X)
    assert not found.found
    assert [(each.path, "shortcut has its own layers" in each.reason) for each in found.refused] == [
        ("0", True)
    ]
    twice = Residual()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([twice])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](self.blocks[0](x) * 2)

    assert [each.reason for each in find_blocks(Twice(), X).refused] == [
        "it runs more than once in a forward"
    ]


def test_a_block_of_weight_norms_leaves_by_its_scales() -> None:
    """A direction of zeros would be 0 / 0: masks drop the scales, and the masked model still gives numbers."""
    model = seeded(Stack(3))
    for block in model.blocks:
        nn.utils.parametrizations.weight_norm(block.out)
    masks = sc.prune(model, "random", "layer", sc.budget.Overall(0.3), example=X)
    gone = {name.rpartition(".")[2] for name in masks if not masks[name].any()}
    assert gone == {"weight", "bias", "original0"}
    counted = {
        n: p.numel() for n, p in model.named_parameters() if n.startswith("blocks.") and "original1" not in n
    }
    assert masks.numel == sum(counted.values())  # as Layer says: directions are not counted
    small = sc.shrink(model, masks, X)
    assert len(small.model.blocks) < 3
    assert torch.allclose(masks.apply_(copy.deepcopy(model))(X), small.model(X))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("div", lambda w: w / w.norm()),
        ("rsqrt", lambda w: w * torch.rsqrt(w.pow(2).sum())),
        ("pow", lambda w: w * w.square().sum() ** -0.5),
    ],
)
def test_a_block_that_zeros_make_divide_by_zero_says_so(name, unit) -> None:
    class Unit(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + nn.functional.linear(torch.tanh(self.fc(x)), unit(self.out.weight))

    refused = find_blocks(nn.Sequential(Unit(), nn.Linear(4, 2)), X).refused
    assert [(each.path, each.reason) for each in refused] == [
        ("0", f"with zeros for its weights {name} divides by 0")
    ]


def test_a_norm_with_a_small_number_under_its_root_leaves_with_its_block() -> None:
    class Scaled(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            return x + self.out(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))

    assert [each.path for each in find_blocks(nn.Sequential(Scaled(), nn.Linear(4, 2)), X).found] == ["0"]


def test_a_parameter_shared_with_another_layer_holds_a_block() -> None:
    model = Stack(2)
    model.blocks[1].fc.weight = model.blocks[0].out.weight
    refused = {each.path: each.reason for each in find_blocks(model, X).refused}
    assert "shares a parameter" in refused["blocks.0"]
    assert "shares a parameter" in refused["blocks.1"]


def test_plain_layers_of_equal_width_are_no_blocks() -> None:
    assert not kinds(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)))


def test_a_residual_block_leaves_and_the_rest_is_counted_anew() -> None:
    model = seeded(Stack(4))
    small = sc.shrink(model, without(model, "blocks.1", "blocks.2"), X)
    assert small.proof.error == 0.0
    assert not small.proof.bypassed
    assert small.plan.layers == {"blocks": ("0", "3")}
    assert [block.layer_idx for block in small.model.blocks] == [0, 1]
    assert torch.equal(small.model.blocks[1].fc.weight, model.blocks[3].fc.weight)
    assert torch.equal(small.model(X), model.head(model.blocks[3](model.blocks[0](X))))
    assert "layers kept of blocks: 0, 3" in str(small)


def test_a_normalised_block_is_compared_with_the_model_that_bypasses_it() -> None:
    model = seeded(Stack(3, nn.LayerNorm))
    small = sc.shrink(model, without(model, "blocks.1"), X)
    assert small.proof.bypassed == ("blocks.1",)
    assert "bypassed" in str(small.proof)
    assert torch.equal(small.model(X), model.head(model.blocks[2](model.blocks[0](X))))


def test_the_proof_of_a_bypassed_block_can_fail() -> None:
    from secateur.structure.proving import DenseRun, prove

    model = seeded(Stack(3, nn.LayerNorm))
    masks = without(model, "blocks.1")
    small = sc.shrink(model, masks, X)
    with pytest.raises(sc.errors.ProofError):
        prove(model, small.model, masks, X, how=DenseRun(bypassed=("blocks.2",)))
    with pytest.raises(sc.errors.ProofError):
        prove(model, small.model, masks, X)


def test_blocks_and_channels_leave_in_one_call() -> None:
    model = seeded(Stack(4))
    masks = dict(without(model, "blocks.1"))
    masks["blocks.2.fc.weight"] = torch.tensor([True, False, True, True])[:, None].expand(4, 4)
    small = sc.shrink(model, sc.Masks(masks), X)
    assert small.plan.layers == {"blocks": ("0", "2", "3")}
    assert small.model.blocks[1].fc.out_features == 3
    assert small.model.blocks[1].out.in_features == 3
    assert small.proof.error < 1e-12
    again = small.plan.apply_(Stack(4).eval())
    again.load_state_dict(small.model.state_dict())
    assert torch.equal(again(X), small.model(X))


def test_plans_are_joined_in_both_orders() -> None:
    model = seeded(Stack(5))
    narrow = {"blocks.3.fc.weight": torch.tensor([True, False, True, True])[:, None].expand(4, 4)}
    first = sc.shrink(model, sc.Masks(narrow), X)
    second = sc.shrink(first.model, without(first.model, "blocks.0", "blocks.2"), X)
    third = sc.shrink(second.model, without(second.model, "blocks.0"), X)
    assert third.plan.layers == {"blocks": ("1", "2")}
    whole = first.plan.then(second.plan).then(third.plan)
    assert whole.layers == {"blocks": ("3", "4")}
    assert list(whole.keep) == [
        "blocks.0.fc.weight",
        "blocks.0.fc.bias",
        "blocks.0.out.weight",
    ]
    assert ShrinkPlan.from_json(whole.to_json()) == whole
    made = whole.apply_(Stack(5).eval())
    made.load_state_dict(third.model.state_dict())
    assert torch.equal(made(X), third.model(X))


def test_save_and_load_into_the_original_class(tmp_path: Path) -> None:
    model = seeded(Stack(3))
    small = sc.shrink(model, without(model, "blocks.0"), X)
    small.save(tmp_path / "a.safetensors")
    sc.save(small.model, tmp_path / "a.sct", plan=small.plan)
    for made in (
        sc.load_shrunk(tmp_path / "a.safetensors", into=Stack(3).eval()),
        sc.load(tmp_path / "a.sct", into=Stack(3).eval()),
    ):
        assert torch.equal(made(X), small.model(X))
    other = Stack(2)
    with pytest.raises(PlanError, match=r"keeps layers .* which has 2"):
        sc.load_shrunk(tmp_path / "a.safetensors", into=other)
    assert len(other.blocks) == 2


def test_an_optimizer_loses_what_left() -> None:
    model = seeded(Stack(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    small = sc.shrink(model, without(model, "blocks.1"), X)
    carried = small.carry(optimizer, model)
    assert len(carried.param_groups[0]["params"]) == len(list(small.model.parameters()))
    before, after = model.blocks[2].fc.weight, small.model.blocks[1].fc.weight
    assert torch.equal(carried.state[after]["exp_avg"], optimizer.state[before]["exp_avg"])


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ({"head": ["0"]}, "expected an nn.Sequential or nn.ModuleList"),
        ({"nowhere": ["0"]}, "got nothing"),
        ({"blocks": ["0", "9"]}, "keeps layers"),
        ({"blocks": ["1", "0"]}, "keeps layers"),
        ({"blocks": ["1", "1"]}, "keeps layers"),
    ],
)
def test_a_plan_of_a_stranger_takes_out_entries_of_containers_only(
    layers: dict[str, list[str]], text: str
) -> None:
    model = Stack(3)
    before = copy.deepcopy(model.state_dict())
    plan = ShrinkPlan.from_dict({**ShrinkPlan(keep={}, layers=layers).to_dict()})
    with pytest.raises(PlanError, match=text):
        plan.apply_(model)
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize(
    "layers", [["0"], {"blocks": "01"}, {"blocks": [0]}, {"blocks": ["a.b"]}, {"blocks": [""]}]
)
def test_damaged_layers_are_refused(layers: object) -> None:
    data = {**ShrinkPlan(keep={}, layers={"blocks": ("0",)}).to_dict(), "layers": layers}
    with pytest.raises(PlanError, match="damaged plan"):
        ShrinkPlan.from_dict(data)


def test_plans_without_layers_are_what_they_were() -> None:
    assert '"version":1' in ShrinkPlan(keep={}).to_json()
    assert "layers" not in ShrinkPlan(keep={}).to_json()
    data = ShrinkPlan(keep={}, layers={"a": ("0",)}).to_dict()
    assert data["version"] == 2
    with pytest.raises(PlanError, match="expected version 2 of"):
        ShrinkPlan.from_dict({**data, "version": 1})


def test_names_go_and_come_back() -> None:
    entries = {"stages": ("0", "2"), "stages.2.blocks": ("b", "d"), "": ("stages", "head")}
    assert name_after("stages.2.blocks.d.weight", entries) == "stages.1.blocks.d.weight"
    assert name_before("stages.1.blocks.d.weight", entries) == "stages.2.blocks.d.weight"
    assert name_after("stages.2.blocks.c.weight", entries) is None
    assert name_after("stem.weight", entries) is None


def test_named_entries_keep_their_names() -> None:
    from collections import OrderedDict

    model = seeded(nn.Sequential(OrderedDict(a=Residual(), b=Residual(), c=nn.Linear(4, 2))))
    small = sc.shrink(model, without(model, "a"), X)
    assert list(small.model._modules) == ["b", "c"]
    assert small.proof.error == 0.0


def test_prune_and_shrink_a_resnet() -> None:
    model = sc.models.build("resnet20").eval()
    x = torch.randn(2, 3, 32, 32)
    masks = sc.prune(model, "l2", "layer", 0.5, example=x)
    small = sc.shrink(model, masks, x)
    assert small.proof.error == 0.0
    before, after = (sum(len(getattr(net, f"layer{i}")) for i in (1, 2, 3)) for net in (model, small.model))
    assert (before, after) == (9, 5)  # 7 of the 9 can leave, round(3.5) = 4 of them do


def test_prune_refuses_where_no_block_can_leave() -> None:
    with pytest.raises(sc.errors.NothingToDoError, match="no block of Sequential can be removed whole"):
        sc.prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "l2", "layer", 0.5, example=X)
    model = Stack(2)
    with pytest.raises(sc.errors.NothingToDoError, match=r"the call leaves out layers of 'blocks\.0'"):
        sc.prune(model, "l2", "layer", 0.5, example=X, skip="blocks.*")
    with pytest.raises(sc.errors.DataError, match="granularity layer follows"):
        sc.prune(model, "l2", "layer", 0.5)


def test_explain_names_the_layers_that_can_leave_and_why_others_stay() -> None:
    found = sc.explain(
        nn.Sequential(Projected(), Residual(), Residual(4, nn.LayerNorm(4)), nn.Linear(4, 2)), X
    )
    assert [(row.name, row.parameters, row.bypassed) for row in found.layers] == [
        ("1", 40, False),
        ("2", 48, True),
        ("0", 60, False),
    ]
    assert "whole layers that can be removed (granularity 'layer'): 1, 2 (bypassed)" in str(found)
    assert "whole layer 0 cannot be removed: with zeros for its weights" in str(found)


def test_bypassed_gives_the_model_that_shrink_makes_at_full_size() -> None:
    model = seeded(Stack(4, nn.LayerNorm))
    for parameter in model.blocks[1].parameters():
        parameter.data.mul_(0.1)
    with pytest.warns(UserWarning, match=r"follows the addition in 'blocks\.1': zeros there .*sc\.bypassed"):
        masks = sc.prune(
            model, "l2", "layer", sc.budget.Overall(0.5), example=X, skip=["blocks.0", "blocks.3"]
        )
    assert not masks["blocks.1.fc.weight"].any()
    half = sc.bypassed(model, masks, X)
    small = sc.shrink(model, masks, X)
    assert torch.equal(half(X), small.model(X))
    assert list(half.state_dict()) == list(model.state_dict())
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    solved = sc.compensate(
        half, masks, list(rows.split(16)), dense=model
    )  # the batches pass at once, in threads

    def off(net: nn.Module) -> float:
        return float((net(rows) - model(rows)).detach().square().mean())

    assert off(solved.model) < off(half)
    again = sc.shrink(solved.model, masks, X)
    assert torch.equal(again.model(X), solved.model(X))
    assert again.proof.holds
    with pytest.raises(sc.errors.NothingToDoError, match="drop no block of Stack whole"):
        sc.bypassed(model, sc.Masks({"head.weight": torch.zeros(3, 4, dtype=torch.bool)}), X)


def test_taylor_scores_whole_layers() -> None:
    model = seeded(Stack(4))
    with torch.no_grad():
        model.blocks[2].out.weight.zero_()
        model.blocks[2].out.bias.zero_()
    masks = sc.prune(
        model, "taylor", "layer", 0.25, data=[(X, torch.tensor([0, 2]))], loss=nn.CrossEntropyLoss()
    )
    assert next(name for name in masks if not masks[name].any()).startswith("blocks.2")


def test_a_scan_measures_what_each_count_of_layers_costs() -> None:
    model = seeded(Stack(4))
    with torch.no_grad():
        for block in model.blocks[:2]:
            block.out.weight.zero_()
            block.out.bias.zero_()
        data = [(x := torch.randn(64, 4, generator=torch.Generator().manual_seed(1)), model(x).argmax(1))]
    scan = sc.scan(model, data, granularity="layer", criterion="l2", levels=[0.25, 0.5, 0.75], example=X)
    assert scan.names == ["layers"]
    accuracies = [value for _, value in scan.curve("layers")]
    assert accuracies[:3] == [1.0, 1.0, 1.0]  # the two that add nothing are gone
    assert accuracies[3] < 1.0


def test_a_recipe_takes_layers_out(tmp_path: Path) -> None:
    text = """
        [model]
        name = "resnet20"
        [data]
        name = "digits"
        size = 16
        [[step]]
        kind = "prune"
        criterion = "l2"
        granularity = "layer"
        budget = 0.3
        [[step]]
        kind = "shrink"
    """
    from secateur.lab.engine import final_state, run

    store = sc.Store(tmp_path / "store")
    ran = run(sc.Recipe.parse(text), store)
    plan = ShrinkPlan.from_json(final_state(ran.plan.trials[0], store).plan or "")
    assert sum(len(keys) for keys in plan.layers.values()) < 3 * len(plan.layers)


def test_a_recipe_chooses_between_layers_and_channels(tmp_path: Path) -> None:
    text = """
        [model]
        name = "resnet20"
        [data]
        name = "digits"
        limit = 100
        size = 16
        [[step]]
        kind = "prune"
        criterion = ["block_influence", {name = "taylor"}]
        granularity = ["layer", {name = "channel", scored = "out"}]
        budget = {name = "macs", keep = 0.5}
        [[step]]
        kind = "shrink"
        [[step]]
        kind = "measure"
        what = ["macs"]
    """
    from secateur.lab.engine import final_state, run

    store = sc.Store(tmp_path / "store")
    ran = run(sc.Recipe.parse(text), store)
    plan = ShrinkPlan.from_json(final_state(ran.plan.trials[0], store).plan or "")
    small = plan.apply_(sc.models.build("resnet20"))
    x = torch.zeros(1, 3, 16, 16)
    now, before = (
        sc.measure(net, x, what="macs")["macs"].value for net in (small, sc.models.build("resnet20"))
    )
    assert 0.45 * before < now <= 0.5 * before


class Indexed(nn.Module):
    """Asks for its blocks by number."""

    def __init__(self, container: type[nn.Sequential] | type[nn.ModuleList]):
        super().__init__()
        blocks = [Residual() for _ in range(4)]
        self.blocks = nn.Sequential(*blocks) if container is nn.Sequential else nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(4):
            x = self.blocks[index](x)
        return x


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_a_forward_that_asks_for_its_layers_by_number_keeps_them(
    container: type[nn.Sequential] | type[nn.ModuleList],
) -> None:
    found = find_blocks(Indexed(container), X)
    assert not found.found
    assert {each.reason for each in found.refused} == {"the forward does not run without it"}


class Three(Stack):
    """Needs three of its blocks, whichever."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = [x := block(x) for block in self.blocks]
        assert given[2] is not None
        return self.head(x)


def test_blocks_that_the_forward_does_not_run_without_together_fail_the_proof() -> None:
    """Each of four may leave alone; two may not."""
    model = seeded(Three())
    assert len(find_blocks(model, X).found) == 4
    with pytest.raises(
        sc.errors.ProofError,
        match=r"without 'blocks\.1', 'blocks\.2' the forward of Three does not run",
    ):
        sc.shrink(model, without(model, "blocks.1", "blocks.2"), X)
    assert len(model.blocks) == 4


class Tapped(Stack):
    """A stack that adds what one of its blocks gave, found by its place."""

    def __init__(self, place: int, sequential: bool = False, scaled: bool = False):
        super().__init__(5)
        self.place, self.scaled = place, scaled
        if sequential:
            self.blocks = nn.Sequential(*self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = []
        for number, block in enumerate(self.blocks):
            x = block(x * 0.5**number if self.scaled else x)
            given.append(x)
        return self.head(x + given[self.place])


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("place", "free"),
    [(1, "234"), (-1, "01234"), (-2, "0123"), (-3, "012"), (4, "4")],
)
def test_blocks_whose_place_counts_stay(place: int, free: str, sequential: bool) -> None:
    """Without block 0, place 1 holds what block 2 gave; without 4, place -2 what 2 gave: place 4 is gone."""
    model = Tapped(place, sequential).eval()
    found = find_blocks(model, X)
    left = [block.path for block in found.found]
    if place == 4:  # without any block there are four, so the forward does not run
        assert left == []
        assert {each.reason for each in found.refused} == {"the forward does not run without it"}
        return
    assert left == [f"blocks.{number}" for number in free]
    held = {each.path: each.reason for each in found.refused}
    assert list(held) == [f"blocks.{number}" for number in range(5) if str(number) not in free]
    assert all(reason.startswith("without it the forward reads other layers") for reason in held.values())
    for number in map(int, free):  # and each of the others is proved
        gone = {
            name: torch.zeros_like(p).bool()
            for name, p in model.named_parameters()
            if f"blocks.{number}." in name
        }
        assert sc.shrink(model, sc.Masks(gone), X).proof.holds


def test_a_number_that_goes_with_a_block_holds_all_before_the_last() -> None:
    """0.5 to the power of a block's place: without block 3, block 4 is multiplied by another power."""
    model = Tapped(-1, scaled=True)
    assert [block.path for block in find_blocks(model, X).found] == []


def test_of_nested_blocks_the_innermost_that_can_leave_is_taken() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList([Residual(), Residual()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer[1](self.layer[0](x))

    assert list(kinds(nn.Sequential(Pair(), Pair()))) == ["0", "1"]
    stages = nn.Sequential(nn.Sequential(Residual(), Residual()), nn.Sequential(Residual()))
    assert list(kinds(stages)) == ["0.0", "0.1", "1.0"]


def test_blocks_that_are_attributes_are_named_with_what_would_let_them_leave() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.plain = Residual(), Residual(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.plain(self.second(self.first(x)))

    found = find_blocks(Held(), X)
    assert found.found == ()
    assert [each.path for each in found.refused] == ["first", "second"]
    assert "expected an entry of an nn.Sequential or nn.ModuleList" in found.refused[0].reason
    assert "attribute of its owner" in str(sc.explain(Held(), X).table())


def test_one_block_that_is_needed_does_not_hold_the_others() -> None:
    """The first block alone has the places that the forward looks up before the loop."""

    class Places(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[0].places = nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.blocks[0].places.detach())

    found = find_blocks(Places(), X)
    assert [block.path for block in found.found] == ["blocks.1", "blocks.2", "blocks.3"]
    assert [each.path for each in found.refused] == ["blocks.0"]


class Padded(nn.Module):
    """A classifier of padded tokens whose encoder makes a nested tensor of each batch."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.table = pooled, nn.Embedding(20, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        padding = tokens == 0
        found = self.encoder(self.table(tokens), src_key_padding_mask=padding)
        return found.masked_fill(padding[..., None], 0.0).sum(1) if self.pooled else found


@pytest.mark.parametrize("pooled", [True, False])
def test_layers_of_an_encoder_with_a_padding_mask_are_removed_with_proof(pooled: bool) -> None:
    torch.manual_seed(0)
    model, tokens = Padded(pooled).eval(), torch.randint(1, 20, (3, 6))
    tokens[1, 4:] = 0
    with pytest.warns(UserWarning, match="follows the addition"):
        masks = sc.prune(model, "l2", "layer", 0.5, example=tokens)
    small = sc.shrink(model, masks, tokens)
    assert small.proof.holds
    assert len(small.model.encoder.layers) == 1
    assert model.encoder.use_nested_tensor
    assert small.model.encoder.use_nested_tensor
    bypassed = sc.bypassed(model, masks, tokens)
    with torch.no_grad():
        where = torch.ones(3, dtype=torch.bool) if pooled else tokens != 0
        assert torch.allclose(bypassed(tokens)[where], small.model(tokens)[where], atol=1e-5)


class OfExperts(nn.Module):
    """x + f(x), where f is a layer and three experts whose matrices are parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.up, self.down = nn.Parameter(torch.randn(3, 16, 8)), nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        ends = torch.tensor([count // 3, count // 2, count], dtype=torch.int32, device=x.device)
        hidden = torch._grouped_mm(self.fc(x), self.up.transpose(1, 2), offs=ends).relu()
        return x + torch._grouped_mm(hidden, self.down.transpose(1, 2), offs=ends)


def test_blocks_of_experts_leave_whole() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(OfExperts() for _ in range(4)), nn.Linear(8, 3)).eval(), torch.randn(6, 8)
    masks = sc.prune(model, "l2", "layer", 0.5, example=x)
    assert sum(name.endswith("up") for name in masks) == 4
    small = sc.shrink(model, masks, x)
    assert small.proof.holds
    assert len(small.model) == 3


def test_channels_of_experts_that_are_left_alone_are_said() -> None:
    torch.manual_seed(0)
    fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model, x = nn.Sequential(fc, OfExperts(), nn.Linear(8, 3)).eval(), torch.randn(6, 8)
    with pytest.warns(UserWarning, match=r'prune: .* take no part.*parameters=\["\*\.up", "\*\.down"\]'):
        sc.prune(model, "l2", "channel", 0.5, example=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken = sc.PruneOptions(parameters=["*.up", "*.down"])
        assert "1.up" in sc.prune(model, "l2", "channel", 0.5, example=x, options=taken)
        sc.prune(fc, "l2", "channel", 0.5, example=x)


def test_a_call_that_removes_no_block_says_which_cannot_be_removed() -> None:
    model = nn.Sequential(Projected(), Projected(), Residual())
    with pytest.raises(NothingToDoError, match=r"of 3 blocks 1 can be removed whole \(0: with zeros"):
        sc.prune(model, "l2", "layer", 0.4, example=X)
