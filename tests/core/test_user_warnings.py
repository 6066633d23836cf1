"""A warning names the line of the user's call, however many decorators lie between."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

import secateur as sc

HERE = Path(__file__).name


def places(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [Path(warning.filename).name for warning in caught if warning.category is UserWarning]


class PostNorm(nn.Module):
    """A residual branch with a norm after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.branch(x))


def test_prune_through_no_grad_and_the_guard_of_verbs():
    torch.manual_seed(0)
    model, example = nn.Sequential(PostNorm(), PostNorm(), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    assert places(lambda: sc.prune(model, "l2", "layer", 0.5, example=example)) == [HERE]


def test_a_parametrised_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    assert places(lambda: sc.prune(model, "l2", "element", 0.5)) == [HERE]


def test_a_held_model_that_no_optimizer_stepped():
    model = nn.Linear(4, 4)
    masks = sc.prune(model, "l2", "element", 0.5)

    def held() -> None:
        with sc.hold(model, masks):
            model(torch.ones(1, 4)).sum().backward()

    assert places(held) == [HERE]
