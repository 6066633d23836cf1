"""What leaves with removed filters although their masks keep it: biases and norms, which train under held masks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import secateur as sc


def _perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def test_biases_that_leave_with_their_filters_are_said() -> None:
    model, x = _perceptron(), torch.randn(6, 8)
    with torch.no_grad():
        model[0].bias.fill_(2.0)  # as training under the masks may leave it
    masks = sc.prune(model, "l2", "filter", 0.5, skip="4")
    with pytest.warns(
        UserWarning, match=r"keep their constants \(0\.bias, 2\.bias\), .* outputs differ by \d"
    ):
        small = sc.shrink(model, masks, x)
    off = (masks.apply(model)(x) - small.model(x)).abs().max()
    assert off > 0.01  # this is what the warning is about
    assert "equal to the masked model with the constants of removed channels (0.bias, 2.bias) at zero" in str(
        small.proof
    )


def test_a_norm_behind_a_filter_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[1].running_mean.fill_(1.0)
    masks = sc.prune(model, "l2", "filter", 0.5, skip="2")
    with pytest.warns(UserWarning, match=r"1\.weight.* granularity 'channel'"):
        sc.shrink(model, masks, torch.randn(1, 3, 8, 8))


def test_what_changes_nothing_is_not_said() -> None:
    model, x = _perceptron(), torch.randn(6, 8)
    by_channel = sc.prune(model, "l2", "channel", 0.5, example=x)
    with torch.no_grad():
        bare = _perceptron()
        for layer in (bare[0], bare[2]):
            layer.bias.zero_()
    by_filter = sc.prune(bare, "l2", "filter", 0.5, skip="4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sc.shrink(model, by_channel, x).proof.besides == ""
        assert sc.shrink(bare, by_filter, x).proof.besides == ""


def test_an_activation_that_makes_a_constant_of_zeros_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Sigmoid(), nn.Linear(16, 4)).eval()
    masks, x = sc.prune(model, "l2", "filter", 0.5, skip="2"), torch.randn(6, 8)
    with pytest.warns(UserWarning, match="keep their constants, which leave with the channels"):
        small = sc.shrink(model, masks, x)
    assert "with the constants of removed channels at zero as well" in str(small.proof)


class _NoDouble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.a.bias.data.fill_(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        if hidden.dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return self.b(hidden)


def test_it_is_measured_in_the_precision_of_the_proof() -> None:
    torch.manual_seed(0)
    model, x = _NoDouble().eval(), torch.randn(4, 6)
    masks = sc.prune(model, "l2", "filter", 0.5, skip="b")
    with pytest.warns(UserWarning, match=r"keep their constants \(a\.bias\)"):
        assert sc.shrink(model, masks, x).proof.dtype == "float32"
