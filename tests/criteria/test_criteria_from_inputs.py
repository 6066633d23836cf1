"""`wanda` and `obs`: hand-worked scores, and that they keep what matters."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.compensation.support import alternating_support, costs, largest, removal_costs, single_costs
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import DataError, NonFiniteError, OptionError


def scores(name: str, model: nn.Module, data: list) -> torch.Tensor:
    targets = select(model)
    rule = sc.criteria.registry.make(name)
    return rule.scores(model, targets, Context(data=data))[targets[0].name]


def test_wanda_of_a_convolution_by_hand() -> None:
    # Inputs of root mean square 1 and 5 at every place of a 1x1 filter; weights 4 and -1.
    model = nn.Conv2d(2, 1, 1, bias=False)
    model.weight.data = torch.tensor([4.0, -1.0]).reshape(1, 2, 1, 1)
    x = torch.stack([torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 5.0)], 1)
    assert scores("wanda", model, [x]).flatten().tolist() == [4.0, 5.0]


def test_obs_by_hand() -> None:
    # Hessian [[2, 1], [1, 2]], inverse [[2, -1], [-1, 2]] / 3: the removal of w costs w² / (2/3).
    # w = (1, 4): first 1 goes for 1.5, and 4 becomes 4 + 0.5; then it goes for 4.5² * 2 = 40.5.
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    torch.testing.assert_close(
        single_costs(hessian, weight, 0.0)[:, 0], torch.tensor([1.5, 24.0], dtype=torch.float64)
    )
    found = removal_costs(hessian, weight)[:, 0]
    torch.testing.assert_close(found, torch.tensor([1.5, 40.5], dtype=torch.float64), rtol=1e-6, atol=0)
    together = removal_costs(hessian, weight, steps=1)[:, 0]
    torch.testing.assert_close(together, torch.tensor([1.5, 24.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_removal_costs_add_up_to_the_energy_of_the_outputs() -> None:
    # Removed one by one with updates, the last removal leaves nothing: the growths sum to the whole energy.
    torch.manual_seed(0)
    x = torch.randn(40, 8, dtype=torch.float64)
    weight = torch.randn(8, 3, dtype=torch.float64)
    hessian = x.T @ x
    found = removal_costs(hessian, weight)
    energy = (x @ weight).square().sum(0)
    assert bool((found.sum(0) >= energy * (1 - 1e-6)).all())  # never less than before, so at least


def test_large_layers_follow_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    weight = torch.randn(24, 40, dtype=torch.float64)
    exact = costs(x.T @ x, weight, 1e-4)
    monkeypatch.setattr("secateur.compensation.support._AFFORDABLE", 24.0**3 * 10)
    near = costs(x.T @ x, weight, 1e-4)
    assert near.shape == exact.shape
    assert 0.7 < float(near.sum() / exact.sum()) < 1.4
    both = torch.stack([near.flatten().argsort().argsort(), exact.flatten().argsort().argsort()]).double()
    assert float(torch.corrcoef(both)[0, 1]) > 0.7


def test_alternating_support_finds_better_sets_than_magnitude() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 32, dtype=torch.float64) @ torch.randn(32, 32, dtype=torch.float64)
    dense = torch.randn(32, 16, dtype=torch.float64)
    hessian, cross = x.T @ x, x.T @ x @ dense
    from secateur.compensation.least_squares import solve

    def error(mask: torch.Tensor) -> float:
        w = solve(hessian, cross, dense, mask, 1e-6)
        return float((x @ (w - dense)).square().sum())

    def choose(magnitudes: torch.Tensor) -> torch.Tensor:
        return largest(magnitudes, 128)

    mask = alternating_support(hessian, cross, dense, choose, 1e-4)
    assert int(mask.sum()) == 128
    assert error(mask) < 0.6 * error(choose(dense.abs()))


def test_alternating_support_comes_near_the_best_of_all_patterns() -> None:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(200, 6) @ normal(6, 12) + 0.3 * normal(200, 12)
    dense = normal(12, 64)
    hessian, cross = x.T @ x, x.T @ x @ dense
    patterns = [
        torch.tensor([place in chosen for place in range(12)])
        for chosen in itertools.combinations(range(12), 6)
        if all(sum(place // 4 == four for place in chosen) == 2 for four in range(3))
    ]

    def errors(keep: torch.Tensor) -> torch.Tensor:
        """Of every output, with the inputs that are kept for all of them."""
        part = torch.linalg.solve(hessian[keep][:, keep], cross[keep])
        return (dense * cross).sum(0) - (cross[keep] * part).sum(0)

    every = torch.stack([errors(pattern) for pattern in patterns])  # all 216 patterns of two in every four

    def choose(magnitudes: torch.Tensor) -> torch.Tensor:
        fours = magnitudes.reshape(3, 4, -1)
        kept = torch.zeros_like(fours, dtype=torch.bool)
        return kept.scatter_(1, fours.topk(2, 1).indices, True).reshape(12, -1)

    mask = alternating_support(hessian, cross, dense, choose)
    found = sum(float(errors(mask[:, output])[output]) for output in range(64))
    assert found < 1.16 * float(every.min(0).values.sum())  # penalties that grow twice as fast: 1.21


def test_obs_of_single_weights_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    # Sums of products: [[4, 2], [2, 4]], whose inverse has 1/3 on its diagonal, so that a removal costs 3 * w².
    data = [torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])]
    context = Context(data=data)
    alone = sc.criteria.Obs(damping=0.0, one_by_one=False).scores(model, select(model), context)["weight"]
    energy = float((data[0] @ torch.tensor([1.0, 2.0])).square().sum())
    assert torch.allclose(alone * energy, torch.tensor([[3.0, 12.0]]))


def test_largest_takes_ties_by_position_and_the_exact_count() -> None:
    values = torch.tensor([[2.0, 1.0, 2.0], [2.0, 0.0, 3.0]])
    assert largest(values, 2).tolist() == [[True, False, False], [False, False, True]]
    assert largest(values, 3).tolist() == [[True, False, True], [False, False, True]]
    assert not bool(largest(values, 0).any())
    assert bool(largest(values, 6).all())


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
def test_inputs_that_are_never_there_go_first(criterion: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(64, 6)
    inputs[:, [1, 4]] = 0.0
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = sc.prune(model, criterion, budget=8 / 24, data=[inputs], options=sc.PruneOptions(only=["0"]))
    gone = ~masks["0.weight"]
    assert bool(gone[:, [1, 4]].all())
    assert int(gone.sum()) == 8
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_obs_then_compensate_beats_magnitude_then_compensate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    inputs = torch.randn(1024, 8) @ torch.randn(8, 16)

    def off(criterion: str) -> float:
        masks = sc.prune(model, criterion, budget=sc.budget.Overall(0.7), data=[inputs])
        assert abs(masks.sparsity - 0.7) < 0.01
        found = sc.compensate(model, masks, [inputs], solver=sc.LeastSquares(damping=1e-4)).model
        return float((found(inputs) - model(inputs)).detach().square().mean())

    assert off("obs") < 0.5 * off("magnitude")


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
def test_what_is_refused(criterion: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    with pytest.raises(
        DataError, match=r"0\.weight: never called as a linear layer or a convolution.* skip=\['0'\]"
    ):
        sc.prune(model, criterion, data=[torch.arange(5)[None]])
    assert sc.prune(model, criterion, data=[torch.arange(5)[None]], skip=["0"]).sparsity == 0.5
    with pytest.raises(DataError, match="data"):
        sc.prune(model, criterion, skip=["0"])
    broken = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    broken[0].bias.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in the inputs of '(0|1)\.weight'"):
        sc.prune(broken, criterion, data=[torch.ones(3, 2)])
    with pytest.raises(OptionError, match="damping of obs"):
        sc.criteria.Obs(damping=-1)
