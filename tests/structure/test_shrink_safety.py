"""Whatever fails, and wherever, the caller's model stays as it was; and a proof that can fail does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.core.masks import Masks
from secateur.errors import (
    MaskMismatchError,
    NothingToDoError,
    OptionError,
    PlanError,
    ProofError,
    TraceError,
)
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.groups import couplings
from secateur.structure.proof import ProofOptions
from secateur.structure.proving import prove


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.b(F.relu(self.bn(self.a(x))))).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model.bn.running_mean.normal_()
    return model.train()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def snapshot(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool], str]:
    state = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    return state, [module.training for module in model.modules()], repr(model)  # type: ignore[return-value]


def same(model: nn.Module, before: tuple) -> bool:
    state, modes, text = before
    now = model.state_dict()
    tensors = all(torch.equal(now[n], t) and now[n].data_ptr() == p for n, (t, p) in state.items())
    return tensors and modes == [module.training for module in model.modules()] and text == repr(model)


STAGES = [
    "secateur.structure.cutting.analyse",
    "secateur.structure.cutting.dropped",
    "secateur.structure.cutting.rounded",
    "secateur.structure.cutting.fit",
    "secateur.structure.cutting.extended",
    "secateur.structure.cutting.apply_plan",
    "secateur.structure.shrink.prove",
    "secateur.structure.shrink.cut",
    "secateur.structure.cut.plan.ShrinkPlan.apply_",
    "secateur.structure.groups.couplings.trace",
    "secateur.structure.groups.couplings.follow",
    "secateur.structure.cut.fit.draft",
    "secateur.structure.cut.fit.runs_unchanged",
    "secateur.structure.proving.double_copy",
    "secateur.structure.proof_inputs.other_shapes",
    "secateur.structure.trace.trace.call",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_at_any_stage_leaves_the_model_alone(
    net: nn.Module, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    masks = sc.prune(net, granularity="channel", budget=0.5, example=X)
    couplings._RECENT.clear()  # or the trace of the pruning would serve
    before = snapshot(net)
    rng = torch.random.get_rng_state()
    reached = []

    def fail(*args: object, **kwargs: object) -> None:
        reached.append(stage)
        raise ZeroDivisionError(stage)

    path, _, name = stage.rpartition(".")
    owner: object
    try:
        importlib.import_module(path)
        owner = sys.modules[path]
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises((ZeroDivisionError, TraceError)):
        sc.shrink(net, masks, X)
    assert reached
    assert same(net, before)
    assert torch.equal(rng, torch.random.get_rng_state())


def test_success_leaves_the_model_alone_too(net: nn.Module) -> None:
    before = snapshot(net)
    small = sc.shrink(net, sc.prune(net, granularity="channel", budget=0.5, example=X), X)
    assert same(net, before)
    assert small.model.training
    assert small.model.a.out_channels == small.model.bn.num_features == small.model.b.in_channels == 4
    assert "Conv2d(3, 4" in repr(small.model)


def test_a_wrong_cut_is_caught_by_the_proof(net: nn.Module) -> None:
    masks = sc.prune(net, granularity="channel", budget=0.5, example=X)
    small = sc.shrink(net, masks, X)
    with torch.no_grad():
        small.model.b.weight.copy_(small.model.b.weight.flip(1))
    with pytest.raises(ProofError, match=r"does not compute what the masked one does.*at most 1e-06"):
        prove(net, small.model, masks, X, ProofOptions(tolerance=1e-6))


def test_the_proof_looks_past_an_example_of_zeros(net: nn.Module) -> None:
    masks = sc.prune(net, granularity="channel", budget=0.5, example=X)
    small = sc.shrink(net, masks, X)
    with torch.no_grad():
        small.model.a.weight.mul_(2)  # on zeros alone the first layer's weights do not show
    with pytest.raises(ProofError):
        prove(net, small.model, masks, torch.zeros(2, 3, 6, 6), ProofOptions(tolerance=1e-6))


def test_a_head_of_zeros_does_not_hide_a_wrong_cut(net: nn.Module) -> None:
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    masks = sc.prune(net, granularity="channel", budget=0.5, example=X)
    small = sc.shrink(net, masks, X)
    assert "fc.weight" in small.proof.filled
    assert small.proof.scale > 0
    assert not small.model.fc.weight.any()
    with torch.no_grad():
        small.model.b.weight.copy_(small.model.b.weight.flip(1))
    with pytest.raises(ProofError):
        prove(net, small.model, masks, X, ProofOptions(tolerance=1e-6), True, small.plan)


class Summed(nn.Module):
    """A layer norm over a stream: what the first layer puts out and the second adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.out = (
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.out(self.norm(x + self.b(x)))


def test_a_model_without_channels_says_why() -> None:
    model = Summed()
    with pytest.raises(
        NothingToDoError,
        match=r"a normalisation over the axis mixes its positions \(native_layer_norm in norm\); sc.explain",
    ):
        sc.prune(model, granularity="channel", budget=0.5, example=torch.randn(3, 4))


def test_filter_masks_leave_by_union_and_the_rest_stays_zero(net: nn.Module) -> None:
    masks = sc.prune(net, criterion="l1", granularity="filter", budget=0.5, skip=["fc"])
    small = sc.shrink(net, masks, X)
    assert small.model.a.weight.shape == (4, 3, 3, 3)
    assert small.model.b.weight.shape == (3, 4, 1, 1)
    assert small.proof.error < 1e-9


def test_element_masks_stay_as_zeros(net: nn.Module) -> None:
    mask = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    mask[2:4] = False
    mask[5, 0] = False
    small = sc.shrink(net, Masks({"a.weight": mask}), X)
    assert small.model.a.out_channels == 6
    assert (small.model.a.weight[3, 0] == 0).all()
    assert (~small.masks["a.weight"]).sum() == 9


def test_coupled_masks_must_agree(net: nn.Module) -> None:
    masks = sc.prune(net, granularity="filter", budget=0.5, options=sc.PruneOptions(only=["a"]))
    other = Masks({**masks, "b.weight": torch.ones(6, 8, 1, 1, dtype=torch.bool)})
    with pytest.raises(
        MaskMismatchError, match=r"masks of 'b.weight' and 'a.weight' disagree on the 8 channels"
    ):
        sc.shrink(net, other, X, coupling="coupled")
    assert sc.shrink(net, sc.prune(net, granularity="channel", budget=0.5, example=X), X, coupling="coupled")


def test_widths_are_rounded_up_to_a_multiple(net: nn.Module) -> None:
    masks = sc.prune(net, granularity="channel", budget=0.7, example=X)
    small = sc.shrink(net, masks, X, round_to=4)
    assert small.model.a.out_channels == 4
    assert small.model.b.out_channels == 4
    with pytest.raises(NothingToDoError):
        sc.shrink(net, masks, X, round_to=8)


def test_a_floor_holds(net: nn.Module) -> None:
    masks = sc.prune(net, granularity="channel", budget=0.8, example=X)
    assert sc.shrink(net, masks, X, at_least=5).model.a.out_channels == 5


def test_nothing_to_remove_is_an_error(net: nn.Module) -> None:
    with pytest.raises(
        NothingToDoError, match=r"none of its groups is dropped by all the layers that share it"
    ):
        sc.shrink(net, Masks.ones(net), X)
    with pytest.raises(NothingToDoError, match=r"every axis is locked"):
        sc.shrink(nn.Linear(4, 2), Masks({"weight": torch.zeros(2, 4, dtype=torch.bool)}), torch.randn(1, 4))


def test_options_are_checked(net: nn.Module) -> None:
    masks = Masks.ones(net)
    for options, text in [
        ({"coupling": "both"}, "expected 'union' or 'coupled'"),
        ({"round_to": 0}, "positive multiple"),
        ({"at_least": 0}, "at least 1 unit"),
        ({"proof": ["fast"]}, "expected modes among .eager."),
        ({"proof": []}, "expected modes"),
    ]:
        with pytest.raises(OptionError, match=text):
            sc.shrink(net, masks, X, **options)


def test_an_example_that_does_not_run_says_so(net: nn.Module) -> None:
    with pytest.raises(
        TraceError, match=r"forward pass of Net could not be recorded .* a tuple means several arguments"
    ):
        sc.explain(net, torch.zeros(2, 5))


def test_what_is_added_to_in_place_is_a_stream() -> None:
    class Added(Summed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y += self.b(y)
            return self.out(self.norm(y))

    assert not sc.explain(Added(), torch.randn(3, 4)).groups


def test_channels_do_not_cross_a_layer_norm_unless_asked() -> None:
    model = Summed()
    x = torch.randn(3, 4)
    found = sc.explain(model, x)
    assert not found.groups
    assert any("normalisation over the axis" in lock.reason for lock in found.locks)
    grain = sc.granularity.Channel(across_norm=True)
    masks = sc.prune(model, granularity=grain, budget=0.5, example=x)
    small = sc.shrink(model, masks, x, across_norm=True)
    assert not small.proof.equality
    assert small.model.norm.normalized_shape == (4,)
    assert "no equality" in str(small.proof)


def test_an_auxiliary_head_that_runs_only_in_training_follows() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            x = torch.relu(self.a(x))
            return (self.b(x), self.aux(x)) if self.training else self.b(x)

    model, x = Aux(), torch.randn(3, 4)
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
    assert small.model.aux.in_features == 4
    small.model.train()(x)


def test_hooks_parametrizations_and_ties_survive() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
            self.b, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
            self.c = nn.Conv2d(8, 8, 1)
            self.c.weight = self.b.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

    model = Tied()
    seen = []
    model.b.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=X), X)
    assert small.proof.error < 1e-9
    assert small.model.b.weight is small.model.c.weight
    assert nn.utils.parametrize.is_parametrized(small.model.a)
    seen.clear()
    small.model(X)
    assert seen == [4]
    assert small.model.a.weight.shape == (4, 3, 3, 3)


def test_rewritten_forwards_copy_pickle_and_take_other_batches() -> None:
    import pickle

    model = Reshaping()
    x = torch.randn(2, 5, 12)
    small = sc.shrink(model, sc.prune(model, granularity="head", budget=0.5, example=x), x)
    assert small.plan.rewrites
    other = torch.randn(3, 7, 12)
    wanted = small.model(other)
    assert wanted.shape == (3, 7, 12)
    assert torch.equal(copy.deepcopy(small.model)(other), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(small.model))(other), wanted)
    assert isinstance(small.model, Reshaping)


class Reshaping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_a_plan_travels_and_refuses_another_model(net: nn.Module) -> None:
    small = sc.shrink(net, sc.prune(net, granularity="channel", budget=0.5, example=X), X)
    plan = ShrinkPlan.from_json(small.plan.to_json())
    fresh = plan.apply_(Net())
    fresh.load_state_dict(small.model.state_dict())
    assert torch.equal(fresh.eval()(X), small.model.eval()(X))
    with pytest.raises(PlanError, match=r"the plan cuts 'a.bias': expected shape \(8,\).*got \(4,\)"):
        plan.apply_(fresh)
    with pytest.raises(PlanError, match="does not have"):
        plan.apply_(nn.Linear(2, 2))
    for text in (
        "",
        "{}",
        '{"format":"secateur-plan","version":9}',
        '{"format":"secateur-plan","version":1}',
    ):
        with pytest.raises(PlanError):
            ShrinkPlan.from_json(text)
    empty = '"shapes":{},"attributes":{},"rewrites":{}'
    huge = '{"format":"secateur-plan","version":1,"keep":{"a":{"0":[0,99999999999]}},' + empty + "}"
    with pytest.raises(PlanError, match="does not have"):  # read without expanding, refused by the model
        ShrinkPlan.from_json(huge).apply_(nn.Linear(2, 2))


def test_save_and_load(net: nn.Module, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from secateur.structure.shrink import load_shrunk

    model = Reshaping()
    x = torch.randn(2, 5, 12)
    small = sc.shrink(model, sc.prune(model, granularity="head", budget=0.5, example=x), x)
    small.save(tmp_path / "small.safetensors")
    again = load_shrunk(tmp_path / "small.safetensors", Reshaping())
    assert torch.equal(again(x), small.model(x))
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
    with pytest.raises(PlanError, match="does not fit Net"):
        load_shrunk(tmp_path / "small.safetensors", net)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_carries_over_and_every_layer_trains(net: nn.Module, kind: type) -> None:
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    groups = [
        {"params": list(net.a.parameters()), "lr": 0.02},
        {"params": [*net.bn.parameters(), *net.b.parameters(), *net.fc.parameters()]},
    ]
    optimizer = kind(groups, lr=0.01, **options)
    for _ in range(2):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    small = sc.shrink(net, sc.prune(net, granularity="channel", budget=0.5, example=X), X)
    carried = small.carry(optimizer, net)
    assert [group["lr"] for group in carried.param_groups] == [0.02, 0.01]
    key = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    kept = torch.tensor(small.plan.keep["a.weight"][0])
    assert torch.equal(carried.state[small.model.a.weight][key], optimizer.state[net.a.weight][key][kept])
    before = {name: parameter.clone() for name, parameter in small.model.named_parameters()}
    carried.zero_grad()
    small.model(X).square().mean().backward()
    carried.step()
    for name, parameter in small.model.named_parameters():
        if name != "a.bias":  # batch norm takes a bias before it away again: its gradient is 0
            assert not torch.equal(parameter, before[name]), name


def test_batch_norm_is_reestimated(net: nn.Module) -> None:
    from secateur.structure.shrink import reestimate_batch_norm

    small = sc.shrink(net, sc.prune(net, granularity="channel", budget=0.5, example=X), X).model
    mode = small.training
    reestimate_batch_norm(small, [(X, None), (X, None)])
    assert torch.allclose(small.bn.running_mean, small.a(X).mean((0, 2, 3)), atol=1e-6)
    assert small.training is mode
    assert small.bn.momentum == 0.1


def test_explain_says_what_why_and_how_much(net: nn.Module) -> None:
    found = sc.explain(net, X, 0.5)
    assert [(row.name, row.count, row.removed) for row in found.groups] == [("a", 8, 4), ("b", 6, 3)]
    table = found.table()
    for text in ("a budget of 0.5 for each group", "locked:", "the model's output", "fc.weight[0]"):
        assert text in table
    assert found.removed_parameters == 216 + 8 + 16 + 54 + 28 - (4 * 27 + 4 + 8 + 3 * 4 + 3 + 4 * 3 + 4)
    import json
    import xml.etree.ElementTree as ElementTree

    assert json.loads(found.to_json())["groups"][0]["count"] == 8
    assert ElementTree.fromstring(found.svg()).tag.endswith("svg")
    nothing = sc.explain(net, X, 0.01)
    assert nothing.removed_parameters == 0
    assert "removes 0 parameters" in nothing.table()
    with pytest.raises(OptionError, match="0 <= share < 1"):
        sc.explain(net, X, 1.5)


def test_an_operator_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.linalg.qr(self.a(x))[1])

    found = sc.explain(Odd(), torch.randn(2, 4))
    assert not found.groups
    assert any("has no rule" in lock.reason and "qr" in lock.operator for lock in found.locks)


def test_a_size_computed_from_another_layers_width_locks_that_layer() -> None:
    """The operator that fails has no channel that leaves: the nearest one before it that has is to blame."""

    class HeadsBySize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.q, self.o = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, 4)
            self.p = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).flatten(2).mT
            b, n, c = y.shape
            heads = 4 if n > 16 else 2
            q, k, v = self.q(y).view(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
            z = (q @ k.transpose(-2, -1) * (c // heads) ** -0.5).softmax(-1) @ v
            return self.o(y + self.p(z.transpose(1, 2).reshape(b, n, c)))

    model, x = HeadsBySize().eval(), torch.randn(2, 3, 16, 16)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    with pytest.raises(NothingToDoError, match="the model: the forward has this width hard-coded"):
        sc.shrink(model, masks, x)


def test_a_width_that_cannot_be_mended_locks_its_group_and_no_other() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.table = [[1.0] * 8]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x)) * torch.tensor(self.table, device=x.device)
            return self.c(torch.relu(self.b(x)))

    model, x = Stubborn(), torch.randn(3, 4)
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
    assert small.model.b.weight.shape == (4, 8)
    assert small.proof.error < 1e-9


def test_data_classes_and_tuples_as_examples() -> None:
    from dataclasses import dataclass

    @dataclass
    class Batch:
        x: torch.Tensor
        scale: float

    class Net2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, batch: Batch, shift: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.b(torch.relu(self.a(batch.x * batch.scale))) + shift}

    model = Net2()
    example = (Batch(torch.randn(3, 4), 2.0), torch.randn(2))
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=example), example)
    assert small.model.a.out_features == 4
    assert small.proof.error < 1e-9


class Fixed(nn.Module):
    """Reshapes to numbers that a cut must replace, and calls a part in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x).reshape(-1, 8))
        return self.b(x.reshape(-1, 8))


class Looker:
    """A hook that is an object, and a method."""

    def __init__(self) -> None:
        self.seen: list[torch.Size] = []

    def __call__(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self.seen.append(output.reshape(-1).view(output.shape).shape)

    def before(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(args[0].reshape(1, -1).shape)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_use_torch_do_not_upset_a_rewritten_forward(when: str) -> None:
    import functools

    torch.manual_seed(0)
    model, x, looker = Fixed().eval(), torch.randn(2, 4), Looker()

    def look(more: int, module: nn.Module, args: object, output: torch.Tensor) -> None:
        looker.seen.append(output.reshape(-1, more).shape)

    def add(net: nn.Module) -> None:
        for part in (net.act, net.a):
            part.register_forward_hook(looker)
            part.register_forward_pre_hook(looker.before)
            part.register_forward_hook(functools.partial(look, 1))
        net.register_forward_hook(looker)

    if when == "before":
        add(model)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert small.model.a.out_features == 4
    assert small.plan.rewrites
    if when == "after":
        want = small.model(x)
        add(small.model)
        assert torch.equal(small.model(x), want)
    looker.seen.clear()
    assert small.model(x).shape == (2, 3)
    assert len(looker.seen) == (
        7 if when == "after" else 2
    )  # a copied model has copies of hooks that are objects


class AsksAnother(nn.Module):
    """What it does with one width depends on another, which no comparison of operators can see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.d, self.e = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.a(x))
        second = torch.relu(self.b(first))
        second = second + (1.0 if first.shape[-1] == 8 else 2.0)
        return self.c(second) + self.e(torch.relu(self.d(x)))


def test_a_proof_that_fails_names_the_group_that_breaks_it() -> None:
    torch.manual_seed(0)
    model, x = AsksAnother().eval(), torch.randn(2, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    before = snapshot(model)
    with pytest.raises(ProofError, match=r"Cut alone, group 'a' breaks it: its channels are shared by a, b$"):
        sc.shrink(model, masks, x)
    assert same(model, before)
    # and what it says helps
    assert sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x, skip="a"), x).proof.holds


def test_two_groups_that_only_break_it_together_are_told() -> None:
    class Both(AsksAnother):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, other = torch.relu(self.a(x)), torch.relu(self.d(x))
            scale = 2.0 if first.shape[-1] + other.shape[-1] < 12 else 1.0
            return (self.c(torch.relu(self.b(first))) + self.e(other)) + scale

    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(2, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, skip="b")
    with pytest.raises(ProofError, match=r"No half of the groups 'a', .*breaks it by itself"):
        sc.shrink(model, masks, x)


def test_heads_and_channels_can_each_lose_their_own_share() -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    heads = sc.prune(layer, "l2", sc.granularity.Head(), 0.25, example=x)
    rest = sc.prune(layer, "l2", sc.granularity.Channel(heads=False), 0.5, example=x)
    small = sc.shrink(layer, heads.merge(rest), x).model
    assert (small.self_attn.num_heads, small.linear1.out_features) == (3, 16)


def test_the_two_readers_name_each_other(tmp_path):
    model = nn.Linear(4, 4)
    sc.save(model, tmp_path / "a.sct")
    with pytest.raises(sc.errors.FormatError, match=r"a \.sct file is read with sc\.load"):
        sc.load_shrunk(tmp_path / "a.sct", into=model)
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(
        sc.errors.FormatError, match=r"looks like a safetensors file: sc\.load_shrunk reads what"
    ):
        sc.load(tmp_path / "b.safetensors")
    torch.save(model.state_dict(), tmp_path / "c.pt")
    with pytest.raises(sc.errors.FormatError, match=r"secateur pack makes a \.sct file of it"):
        sc.load(tmp_path / "c.pt")
    with pytest.raises(sc.errors.FormatError, match=r"in its folder did you mean 'b\.safetensors'"):
        sc.load_shrunk(tmp_path / "b.safetensor", into=model)


def test_statistics_measured_beside_the_same_outputs_by_hand():
    """A norm that answers 2x + 1; the inputs 1 and 3 have mean 2 and variance 1: then 2 * (x - 2) + 5."""
    norm = nn.BatchNorm1d(1, eps=0.0).eval()
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(1.0)
    sc.reestimate_batch_norm(norm, [torch.tensor([[1.0], [3.0]])], same_outputs=True)
    assert (norm.running_mean.item(), norm.running_var.item()) == (2.0, 1.0)
    assert (norm.weight.item(), norm.bias.item()) == (2.0, 5.0)
    assert not norm.training


def test_a_norm_without_scale_cannot_keep_its_outputs():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False))
    with pytest.raises(
        sc.errors.OptionError, match=r"batch norm: 1 has no scale and shift .* leave same_outputs out"
    ):
        sc.reestimate_batch_norm(model, [torch.ones(2, 1)], same_outputs=True)


def test_a_flipped_bit_is_found_and_a_file_without_a_checksum_still_loads(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
    path = tmp_path / "small.safetensors"
    small.save(path)

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()

    assert torch.equal(sc.load_shrunk(path, fresh())(x), small.model(x))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(sc.errors.FormatError, match="its tensors are damaged: expected the checksum"):
        sc.load_shrunk(path, fresh())
    data[-5] ^= 1
    path.write_bytes(bytes(data).replace(b'"crc32"', b'"other"'))
    assert torch.equal(sc.load_shrunk(path, fresh())(x), small.model(x))


def test_an_example_of_numpy_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for example in (np.zeros((1, 4), np.float32), (np.zeros((1, 4), np.float32),)):
        with pytest.raises(TraceError, match=r"got numpy.ndarray; give torch.from_numpy\(example\)"):
            sc.explain(model, example)


def test_a_model_without_values_is_neither_shrunk_nor_loaded_into(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    sc.shrink(model, masks, x).save(tmp_path / "small.safetensors")
    empty = copy.deepcopy(model).to("meta")
    with pytest.raises(
        OptionError,
        match=r"0\.weight: expected real weights, got a tensor on the meta device; load the model first",
    ):
        sc.shrink(empty, masks, x.to("meta"))
    with pytest.raises(OptionError, match="build the model that is given as into= on a real device"):
        sc.load_shrunk(tmp_path / "small.safetensors", into=empty)
    assert empty[0].out_features == 8
