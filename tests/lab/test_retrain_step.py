"""`retrain`: a retraining that makes the model worse says so, and keeps the better weights where it is asked to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur.core.masks import Masks
from secateur.lab.display.progress import Progress
from secateur.lab.state import State
from secateur.lab.steps import Result, Work
from secateur.lab.steps.retrain import RetrainStep
from secateur.lab.training import TrainingOptions, evaluate, train


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=300, validation=0.2)


@pytest.fixture(scope="module")
def trained(digits: datasets.Data) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    train(model, digits, TrainingOptions(epochs=8, lr=0.1, batch_size=32), device="cpu")
    return model


def retrained(
    trained: nn.Module, digits: datasets.Data, **options: Any
) -> tuple[Result, dict[str, torch.Tensor]]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(trained.state_dict())
    mask = torch.ones(16, 64, dtype=torch.bool)
    mask[:, ::2] = False
    masks = Masks({"1.weight": mask})
    masks.apply_(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = Work(
        data=digits,
        build=lambda: model,
        device="cpu",
        seed=0,
        checkpoint=None,
        progress=Progress(),
        earlier=lambda label: State(model),
    )
    step = RetrainStep(epochs=2, batch_size=32, **options)
    return step.run(State(model, masks=masks), work), before


def test_a_retraining_that_helps_says_what_it_found(trained: nn.Module, digits: datasets.Data) -> None:
    result, before = retrained(trained, digits, lr=0.05)
    now = evaluate(result.state.model, digits.validation, device="cpu")["accuracy"]
    assert result.log["validation_after"] == now > result.log["validation_before"]
    assert "before it" not in result.line
    assert not torch.equal(result.state.model[3].weight, before["3.weight"])


def test_a_retraining_that_hurts_says_so(trained: nn.Module, digits: datasets.Data) -> None:
    result, _ = retrained(trained, digits, lr=30.0, grad_clip=1.0)
    now = evaluate(result.state.model, digits.validation, device="cpu")["accuracy"]
    assert result.log["validation_after"] == now < result.log["validation_before"]
    assert f"worse than before it ({result.log['validation_before']:.2%})" in result.line


def test_the_best_includes_the_weights_from_before(trained: nn.Module, digits: datasets.Data) -> None:
    result, before = retrained(trained, digits, lr=30.0, grad_clip=1.0, keep="best")
    assert all(torch.equal(value, before[name]) for name, value in result.state.model.state_dict().items())
    assert result.log["best_epoch"] == 0
    assert result.log["validation_after"] == result.log["validation_before"]
    assert "no epoch was better than before it" in result.line


def test_without_a_validation_split_nothing_is_compared(trained: nn.Module) -> None:
    result, _ = retrained(trained, datasets.load("digits", limit=300, validation=0), lr=0.05)
    assert "validation_before" not in result.log
