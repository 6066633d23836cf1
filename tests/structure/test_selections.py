"""Proofs of models that select: top-k, thresholds; what they select from is compared, where nothing else can be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, ProofError
from secateur.structure.proof import ProofOptions
from secateur.structure.proving import prove


class ChoosesByNoise(nn.Module):
    """Rows whose score is above the same score, added up in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
        self.head = nn.Linear(64, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        scores = self.head(h)
        return scores[(h * self.head.weight[0]).sum(-1) > scores[:, 0]]


class ChoosesNothing(nn.Module):
    """No score is ever above the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.body(x)
        return scores[scores[:, 0] > 1e6]


class RoundsInside(nn.Module):
    """Noise of the two scores' order of addition, about a midpoint of two float32 values, is rounded to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
        self.head = nn.Linear(64, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        noise = (h * self.head.weight[0]).sum(-1) - self.head(h)[:, 0]
        rounded = (64 * noise + (1 + 2**-24)).to(torch.float32)
        return self.head(h).sum(-1) + rounded


def cut(model: nn.Module, x: torch.Tensor) -> sc.Shrunk:
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    return sc.shrink(model, masks, x)


def test_a_choice_by_rounding_errors_is_made_once_for_both() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    small = cut(ChoosesByNoise(), x)
    assert small.model.body[0].out_features == 32
    assert small.proof.holds
    assert small.proof.error < 1e-12
    assert "gt" in small.proof.selected
    assert "with one choice for both at gt" in str(small.proof)


def test_a_conversion_to_float32_inside_the_forward_is_left_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    small = cut(RoundsInside(), x)
    assert small.proof.selected == ("float32",)
    assert "without the conversions to float32" in str(small.proof)
    assert small.proof.error < 1e-12


def test_an_empty_output_proves_nothing_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = ChoosesNothing()
    small = cut(model, x)
    assert small.proof.selected == ("gt",)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.body[2].bias += 1e-3
    options = ProofOptions(other_shapes=False)
    with pytest.raises(ProofError, match=r"does not select from what the masked one does .*\(gt\)"):
        prove(model, wrong, {}, x, options)
    with torch.no_grad():
        wrong.body[2].bias.copy_(model.body[2].bias)
        wrong.body[2].bias[2] += 1e-3  # seen only in what is taken, not in the score
    with pytest.raises(ProofError, match="does not select from what the masked one does"):
        prove(model, wrong, {}, x, options)
    assert prove(model, copy.deepcopy(model), {}, x, options).holds


def test_other_models_select_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    assert cut(model, torch.randn(3, 8)).proof.selected == ()


def test_a_refusal_names_the_operator_and_the_module() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).cumsum(-1))

    with pytest.raises(NothingToDoError, match=r"can be removed: .* \(cumsum in the model\); sc\.explain"):
        sc.prune(Sorted(), "l2", "channel", 0.5, example=torch.randn(3, 8))
