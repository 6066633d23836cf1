"""How much each layer should lose, by the error that it alone causes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.compensation.shares import spread
from secateur.errors import NothingToDoError, OptionError


def network() -> nn.Sequential:
    """A branch of great weight in the outputs, and one of little."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.great, self.little = nn.Linear(32, 16), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 10 * self.great(x) + 0.1 * self.little(x)

    torch.manual_seed(0)
    return nn.Sequential(Two())


def test_a_layer_of_great_weight_loses_less_and_the_outputs_gain() -> None:
    model, inputs = network(), [torch.randn(200, 32), torch.randn(100, 32)]

    def off(result: sc.Compensated) -> float:
        return float(sum((result.model(x) - model(x)).square().sum() for x in inputs).detach())

    equal = sc.compensate(model, sc.prune(model, "wanda", budget=0.5, data=inputs), inputs)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[str] = []
    shares = sc.error_shares(model, equal, inputs, 0.5, progress=lambda step: seen.append(str(step)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert seen[0].startswith("layer 1 of 2: 0.great.weight")
    assert shares["0.great"] < 0.3
    assert shares["0.little"] > 0.7
    masks = sc.prune(model, "wanda", budget=sc.budget.PerLayer(shares), data=inputs)
    kept = [int(mask.sum()) for mask in masks.values()]
    assert abs(sum(kept) - 512) <= 2
    assert off(sc.compensate(model, masks, inputs)) < 0.5 * off(equal)


def test_shares_by_hand() -> None:
    """log(2) / 2 more for the layer of half the error; the larger layer moves less, for both must give the sum."""
    now = {"a": 0.5, "b": 0.5}
    found = spread({"a": 2.0, "b": 1.0}, {"a": 100, "b": 100}, now, 0.5, 2.0)
    assert found["b"] - found["a"] == pytest.approx(0.3466, abs=2e-4)
    assert found["a"] + found["b"] == pytest.approx(1.0, abs=2e-4)
    found = spread({"a": 3.0, "b": 1.0}, {"a": 300, "b": 100}, now, 0.6, 2.0)
    assert found == pytest.approx({"a": 0.6, "b": 0.6}, abs=2e-4)


def test_no_layer_loses_all_or_nothing() -> None:
    sizes, now = {"a": 10, "b": 10, "c": 10}, dict.fromkeys("abc", 0.5)
    found = spread({"a": 1e3, "b": 1.0, "c": 0.0}, sizes, now, 0.5, 6.0)
    assert found["a"] == 0.1
    assert found["c"] == 0.95
    assert sum(found.values()) == pytest.approx(1.5, abs=1e-3)


def test_what_is_compared_can_be_chosen() -> None:
    model, inputs = network(), [torch.randn(200, 32)]
    equal = sc.compensate(model, sc.prune(model, budget=0.5), inputs)
    part = sc.error_shares(model, equal, inputs, 0.5, compare=lambda output, _: output[:, :2], steepness=40)
    assert part != sc.error_shares(model, equal, inputs, 0.5, steepness=40)


def test_a_comparison_that_fails_leaves_the_model_as_it_was() -> None:
    model, inputs = network(), [torch.randn(20, 32)]
    equal = sc.compensate(model, sc.prune(model, budget=0.5), inputs)
    state, calls = {name: value.clone() for name, value in model.state_dict().items()}, []

    def compare(output: object, _inputs: object) -> object:
        calls.append(output)
        if len(calls) == 2:  # the first layer is borrowed
            raise KeyboardInterrupt
        return output

    with pytest.raises(KeyboardInterrupt):
        sc.error_shares(model, equal, inputs, 0.5, compare=compare)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_is_refused() -> None:
    model, inputs = network(), [torch.randn(20, 32)]
    equal = sc.compensate(model, sc.prune(model, budget=0.5), inputs)
    with pytest.raises(OptionError, match="sparsity of error_shares"):
        sc.error_shares(model, equal, inputs, 0.99)
    with pytest.raises(OptionError, match="steepness"):
        sc.error_shares(model, equal, inputs, 0.5, steepness=0.0)
    none = sc.Compensated(equal.model, sc.Masks.of_zeros(model), ())
    with pytest.raises(NothingToDoError):
        sc.error_shares(model, none, inputs, 0.5)


def test_a_first_result_that_was_solved_for_sums_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(torch.relu(x))

    torch.manual_seed(0)
    model, inputs = nn.Sequential(Around(), Around()), [torch.randn(50, 8)]
    masks = sc.prune(model, budget=0.5)
    with pytest.raises(OptionError, match=r"1\.layer\.weight compensate.*LeastSquares\(sums=False\)"):
        sc.error_shares(model, sc.compensate(model, masks, inputs), inputs, 0.5)
    alone = sc.compensate(model, masks, inputs, solver=sc.LeastSquares(sums=False))
    assert set(sc.error_shares(model, alone, inputs, 0.5)) == {"0.layer", "1.layer"}
