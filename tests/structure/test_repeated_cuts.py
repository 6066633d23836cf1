"""A model that is shrunk several times: its plans joined are one plan for the original class."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PlanError
from secateur.structure.cut.plan import ShrinkPlan

_SPEC = importlib.util.spec_from_file_location("structure_cases", Path(__file__).with_name("cases.py"))
assert _SPEC
assert _SPEC.loader
cases = importlib.util.module_from_spec(_SPEC)
sys.modules["structure_cases"] = cases
_SPEC.loader.exec_module(cases)


def repeated(
    model: nn.Module, example: object, times: int, granularity: str = "channel"
) -> tuple[nn.Module, ShrinkPlan]:
    plan = ShrinkPlan({})
    for _ in range(times):
        masks = sc.prune(model, "l2", granularity, 0.3, example=example)
        small = sc.shrink(model, masks, example)
        assert small.proof.holds
        model, plan = small.model, plan.then(small.plan)
    return model, plan


def outputs(model: nn.Module, example: object) -> list[torch.Tensor]:
    args = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        found = model.eval()(**example) if isinstance(example, dict) else model.eval()(*args)
    return list(found) if isinstance(found, tuple) else [found]


BUILDERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], object]]] = {
    name: (case.build, case.example)
    for name, case in cases.CASES.items()
    if name not in ("Einsum",)  # nothing of it can be cut
}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_two_cuts_are_one_plan_for_the_original(name: str) -> None:
    build, example_of = BUILDERS[name]
    torch.manual_seed(0)
    model, example = build().eval(), example_of()
    try:
        small, plan = repeated(model, example, 2)
    except sc.errors.NothingToDoError:
        pytest.skip("too narrow to be cut twice")
    torch.manual_seed(0)
    again = build().eval()
    again = ShrinkPlan.from_json(plan.to_json()).apply_(again)
    again.load_state_dict(small.state_dict())
    for a, b in zip(outputs(small, example), outputs(again, example), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("times", [2, 3])
def test_a_model_shrunk_several_times_is_saved_and_loaded(times: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 32, 32)
    small, plan = repeated(sc.models.build("resnet20").eval(), example, times)
    sc.save(small, tmp_path / "small.sct", plan=plan)
    again = sc.load(tmp_path / "small.sct", into=sc.models.build("resnet20")).eval()
    assert torch.equal(again(example), small(example))


@pytest.mark.parametrize("granularity", ["head", "head_size", "channel"])
def test_attention_cut_three_times_is_one_plan(granularity: str) -> None:
    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(64, 8, 48, batch_first=True).eval()

    torch.manual_seed(0)
    x = torch.randn(2, 5, 64)
    small, plan = repeated(build(), x, 3, granularity)
    again = plan.apply_(build())
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    assert again.self_attn.scaled_as == 8


def test_a_second_plan_alone_says_how_plans_are_joined() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval(), torch.randn(2, 4)
    first = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    masks = sc.prune(first.model, "l2", "channel", 0.5, example=x)
    second = sc.shrink(first.model, masks, x)
    with pytest.raises(PlanError, match=r"first\.then\(second\)"):
        second.plan.check(model)
    with pytest.raises(PlanError, match="in the order in which they were made"):
        second.plan.then(first.plan)
    assert first.plan.then(second.plan).apply_(model)[0].out_features == 4


def test_a_plan_for_another_class_says_which_to_build():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    example = torch.randn(2, 4)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=example), example)
    with pytest.raises(
        PlanError, match=r"Linear does not have; build the class that was shrunk \(Sequential,"
    ):
        small.plan.apply_(nn.Linear(4, 8))
