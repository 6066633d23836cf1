"""Distillation of layers: each term worked by hand, its place in the loss, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur.errors import OptionError, PatternError, RecipeError
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.steps import registry as steps
from secateur.lab.training import TrainingContext, TrainingOptions, train
from secateur.lab.training.distill import registry


def test_features_by_hand():
    term = registry.make("features")
    assert term.compare(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item() == 2.0
    with pytest.raises(
        OptionError, match=r"features: expected equal shapes, got \(1, 2\) of the student and \(1, 3\)"
    ):
        term.compare(torch.zeros(1, 2), torch.zeros(1, 3))


def test_attention_by_hand():
    # squares over channels (9, 16) scaled to norm 1: (9, 16) / sqrt(337); the teacher looks at the first place only
    ours, theirs = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]], [[1.0, 0.0]]]])
    expected = ((9 / 337**0.5 - 1) ** 2 + 256 / 337) / 2
    assert registry.make("attention").compare(ours, theirs).item() == pytest.approx(expected)
    with pytest.raises(OptionError, match="attention: expected a layer with positions besides channels"):
        registry.make("attention").compare(torch.zeros(1, 2), torch.zeros(1, 2))


def test_similarity_by_hand():
    # student: images (3, 0), (4, 0): G = ((9, 12), (12, 16)), rows to norm 1: (0.6, 0.8) twice; teacher: unlike
    ours, theirs = torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    expected = ((0.6 - 1) ** 2 + 0.8**2 + 0.6**2 + (0.8 - 1) ** 2) / 4
    assert registry.make("similarity").compare(ours, theirs).item() == pytest.approx(expected)


def test_boundaries_by_hand():
    ours, theirs = torch.tensor([[0.5, 2.0, -1.5, 3.0]]), torch.tensor([[7.0, -1.0, -9.0, 0.1]])
    assert registry.make("boundaries").compare(ours, theirs).item() == pytest.approx((0.25 + 9.0) / 4)
    wide = registry.make("boundaries", margin=2.0).compare(ours, theirs).item()
    assert wide == pytest.approx((1.5**2 + 16.0 + 0.25) / 4)


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=120)


def net(seed: int, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def gap(one: nn.Module, other: nn.Module, digits: datasets.Data) -> float:
    inputs = digits.example.repeat(1, 1, 1, 1)
    with torch.no_grad():
        return float((one[1](one[0](inputs)) - other[1](other[0](inputs))).square().mean())


def test_a_student_comes_near_the_layer_of_its_teacher(digits):
    teacher = net(5)
    options = TrainingOptions(epochs=6, lr=0.02, batch_size=30)
    near, far = net(0), net(0)
    terms = ({"name": "features", "layers": ["1"], "weight": 20.0},)
    distilled = steps.get("train")(epochs=6, lr=0.02, batch_size=30, distill=terms, teacher="t").training()
    assert distilled.distill[0].pairs == (("1", "1"),)
    train(far, digits, options, device="cpu")
    train(near, digits, distilled, device="cpu", context=TrainingContext(teacher=teacher))
    assert gap(near, teacher, digits) < 0.5 * gap(far, teacher, digits)
    assert not any(module._forward_hooks for model in (near, teacher) for module in model.modules())


def test_the_first_loss_is_the_sum_of_its_parts(digits):
    # one step with the whole split: the loss that is reported is that of the start
    def first(**given) -> float:
        options = TrainingOptions(epochs=1, lr=1e-9, batch_size=1000, **given)
        context = TrainingContext(teacher=net(5, 8)) if given else None
        return train(net(0), digits, options, device="cpu", context=context).history[0].train_loss

    plain = first()
    outputs = registry.make("features", weight=3.0)
    inside = registry.make("similarity", layers={"1": "1"}, weight=2.0)
    both = first(distill=(outputs, inside))
    assert both - plain == pytest.approx(
        (first(distill=(outputs,)) - plain) + (first(distill=(inside,)) - plain), rel=1e-4
    )
    assert first(distill=(registry.make("features", weight=6.0),)) - plain == pytest.approx(
        2 * (first(distill=(outputs,)) - plain), rel=1e-4
    )


def test_what_cannot_be_is_named(digits):
    options = TrainingOptions(epochs=1, distill=(registry.make("features", layers=["9"]),))
    with pytest.raises(PatternError, match="distill: the student has no layer '9'"):
        train(net(0), digits, options, device="cpu", context=TrainingContext(teacher=net(1)))
    with pytest.raises(
        OptionError, match="distillation needs both a teacher and distill_alpha above 0, or distill"
    ):
        train(net(0), digits, options, device="cpu")
    with pytest.raises(OptionError, match="distill: weight: expected a number above 0, got 0"):
        registry.make("features", weight=0)
    recipe = Recipe.parse(
        """
model = {name = "fc"}
step = [{kind = "train", distill = ["features"]}]
"""
    )
    with pytest.raises(RecipeError, match="distill needs a teacher"):
        plan(recipe)
