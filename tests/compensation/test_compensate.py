"""`sc.compensate`: hand-worked numbers, properties over many kinds of layers, and what is refused."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur as sc
from secateur.compensation.calls import Call, Names
from secateur.compensation.least_squares import conjugate_gradients, cost_of_factoring, solve
from secateur.compensation.progress import Advance
from secateur.compensation.solver import LeastSquares
from secateur.compensation.walking import Walk
from secateur.errors import (
    DataError,
    MaskMismatchError,
    NonFiniteError,
    NothingToDoError,
    OptionError,
    PatternError,
)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "linear of tokens": (nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 4, 9, 8)),
    "conv2d same": (nn.Conv2d(2, 3, 4, padding="same"), (2, 2, 6, 6)),
    "conv2d reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (3, 4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 4, stride=3, groups=2, dilation=2), (2, 4, 5)),
    "transposed, much padding": (nn.ConvTranspose2d(3, 2, 3, padding=2), (2, 3, 6, 6)),
}


def call_of(layer: nn.Module, inputs: torch.Tensor) -> tuple[Call, torch.Tensor]:
    with Walk(layer, Names(layer), (inputs,), {}) as walk:
        call = walk.call
        assert isinstance(call, Call)
        return call, walk.run()


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_a_matrix_product(kind: str) -> None:
    layer, shape = LAYERS[kind]
    call, outputs = call_of(layer, torch.randn(shape))
    matrix = call.geometry.matrix(layer.weight)
    product = call.geometry.features(call.inputs, None) @ matrix
    goal = call.geometry.targets(outputs, None)
    if layer.bias is not None:
        goal = goal - layer.bias.reshape(goal.shape[0], 1, -1)
    torch.testing.assert_close(product, goal, atol=1e-5, rtol=1e-4)
    assert call.geometry.positions(outputs) == goal.shape[1]
    assert torch.equal(call.geometry.weight(matrix, layer.weight.shape), layer.weight)
    rows = torch.tensor([1, 3])
    assert torch.equal(
        call.geometry.features(call.inputs, rows), call.geometry.features(call.inputs, None)[:, rows]
    )


def test_one_weight_takes_over_for_another() -> None:
    # y = 1*a + 3*b, and b = 2*a on the data: without b's weight, a's must become 7.
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 3.0]])
    a = torch.tensor([1.0, -2.0, 0.5])
    masks = sc.Masks({"0.weight": torch.tensor([[True, False]])})
    result = sc.compensate(model, masks, [torch.stack([a, 2 * a], 1)], solver=LeastSquares(damping=0.0))
    torch.testing.assert_close(result.model[0].weight, nn.Parameter(torch.tensor([[7.0, 0.0]])))
    assert result.layers[0].after < 1e-6
    assert model[0].weight.tolist() == [[1.0, 3.0]]


def test_the_bias_makes_up_for_a_constant_input() -> None:
    # The removed input is always 5, its weight 2: the bias grows by 10, from 1 to 11.
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[4.0, 2.0]]), torch.tensor([1.0])
    inputs = torch.stack([torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.full((4,), 5.0)], 1)
    masks = sc.Masks({"weight": torch.tensor([[True, False]])})
    found = sc.compensate(model, masks, [inputs], solver=LeastSquares(damping=0.0)).model
    torch.testing.assert_close(found.bias.data, torch.tensor([11.0]))
    torch.testing.assert_close(found.weight.data, torch.tensor([[4.0, 0.0]]))


def test_batch_norm_takes_up_the_mean() -> None:
    # The filter loses the weight of an input that is always 3: the running mean falls by 2 * 3.
    model = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1)).eval()
    model[0].weight.data = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    model[1].running_mean.fill_(7.0)
    x = torch.stack([torch.randn(4, 3, 3), torch.full((4, 3, 3), 3.0)], 1)
    masks = sc.Masks({"0.weight": torch.tensor([True, False]).reshape(1, 2, 1, 1)})
    found = sc.compensate(model, masks, [x], solver=LeastSquares(damping=0.0)).model
    torch.testing.assert_close(found[1].running_mean, torch.tensor([1.0]))
    torch.testing.assert_close(found(x), model(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", ["element", "filter"])
def test_no_layer_is_worse_than_before_and_masks_hold(kind: str, granularity: str) -> None:
    layer, shape = LAYERS[kind]
    model = nn.Sequential(copy.deepcopy(layer))
    masks = sc.prune(model, granularity=granularity, budget=0.5)
    inputs = [torch.randn(shape) for _ in range(3)]
    result = sc.compensate(model, masks, inputs)
    (row,) = result.layers
    assert row.after <= row.before + 1e-12
    weight = result.model[0].weight
    assert not bool(weight[~masks["0.weight"]].any())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), nn.Sequential(layer).parameters(), strict=True)
    )


def test_the_solution_is_the_least_squares_solution() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    keep = torch.rand(6, 4) < 0.6
    found = solve(x.T @ x, x.T @ y, torch.zeros(6, 4), keep, 0.0)
    for output in range(4):
        places = keep[:, output].nonzero()[:, 0]
        goal = torch.linalg.lstsq(x[:, places], y[:, output : output + 1]).solution[:, 0]
        torch.testing.assert_close(found[places, output], goal)
    steps = conjugate_gradients(x.T @ x, x.T @ y, torch.zeros(6, 4, dtype=torch.float64), keep, 0.0, 30)
    torch.testing.assert_close(steps, found)


def test_a_large_layer_is_solved_by_conjugate_gradients_as_well_as_by_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(2)
    x = torch.randn(500, 20, dtype=torch.float64) @ torch.randn(20, 96, dtype=torch.float64)
    x += 0.3 * torch.randn(500, 96, dtype=torch.float64)
    dense = torch.randn(96, 8, dtype=torch.float64)
    hessian, keep = x.T @ x, torch.rand(96, 8) < 0.5
    ridge = 0.01 * float(hessian.diagonal().mean())

    def off(weights: torch.Tensor) -> float:
        away = weights - dense * keep
        return float((x @ (weights - dense)).square().sum() + ridge * away.square().sum())

    factored = solve(hessian, hessian @ dense, dense * keep, keep, ridge)
    monkeypatch.setattr("secateur.compensation.least_squares._AFFORDABLE", 0.0)
    found = solve(hessian, hessian @ dense, dense * keep, keep, ridge)
    assert not torch.equal(found, factored)
    assert not found[~keep].any()
    assert off(factored) < off(found) < 1.001 * off(factored)
    assert off(found) < 0.6 * off(dense * keep)


def test_one_large_support_is_factored_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def factored(hessian: torch.Tensor, goal: torch.Tensor, ridge: float) -> torch.Tensor:
        calls.append(tuple(hessian.shape))
        return goal

    monkeypatch.setattr("secateur.compensation.least_squares._factored", factored)
    keep = torch.ones(1400, 64, dtype=torch.bool)
    start = torch.ones(1400, 64)
    solve(torch.eye(1400), start, start, keep, 0.1)
    assert calls == [(1400, 1400)]
    keep[range(64), range(64)] = False
    solve(torch.eye(1400), start, start, keep, 0.1)
    assert len(calls) == 1


def test_an_output_of_small_scale_gets_as_many_rounds_as_it_needs() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 40, dtype=torch.float64)
    hessian = torch.corrcoef(x.T)
    easy = torch.linalg.eigh(hessian).eigenvectors[:, -1]  # solved by the first round
    goal = torch.stack([easy, 1e-5 * torch.randn(40, dtype=torch.float64)], 1)
    keep = torch.ones(40, 2, dtype=torch.bool)
    found = conjugate_gradients(hessian, goal, torch.zeros_like(goal), keep, 0.0, 500, 1e-16)
    wanted = torch.linalg.solve(hessian, goal)
    assert float(((found - wanted).norm(dim=0) / wanted.norm(dim=0)).max()) < 1e-5


class AddedProduct(nn.Module):
    """The linear layer of GPT-2: its weight is [in, out], and it calls `torch.addmm`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, 6), self.weight)
        return flat.reshape(*x.shape[:-1], 3)


def test_a_bare_weight_in_a_product_is_a_layer_too() -> None:
    torch.manual_seed(0)
    model = AddedProduct()
    # Three directions in six inputs: half of the weights will do.
    x = torch.randn(40, 5, 3) @ torch.randn(3, 6)
    masks = sc.Masks({"weight": (torch.arange(6) < 3)[:, None].expand(6, 3)})
    found = sc.compensate(model, masks, [x], solver=LeastSquares(damping=0.0)).model
    torch.testing.assert_close(found(x), model(x), atol=1e-3, rtol=1e-3)


def test_attention_of_torch_has_its_projections_solved() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
    masks = sc.Masks({name: w.abs() > w.abs().median() for name, w in weights.items()})
    data = [torch.randn(8, 10, 4) @ torch.randn(4, 16)]
    result = sc.compensate(model, masks, data)
    assert [layer.name for layer in result.layers] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    assert all(layer.after < layer.before for layer in result.layers)
    assert result.notes == ()
    assert error(model, result.model, data) < 0.5 * error(model, masks.apply(model), data)


def test_a_walk_through_attention_gives_the_outputs_of_the_model() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x, other = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    padding = torch.arange(7) >= torch.tensor([[7], [5], [6]])
    with Walk(model, Names(model), (x, x, x), {"key_padding_mask": padding}) as walk:
        torch.testing.assert_close(walk.finish(), model(x, x, x, key_padding_mask=padding))
    with Walk(model, Names(model), (x, other, other), {}) as walk:  # three weights that are slices of one
        assert walk.call is not None
        assert walk.call.name == "out_proj.weight"
        torch.testing.assert_close(walk.finish(), model(x, other, other))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(self._block() for _ in range(2)))
        self.head = nn.Linear(8, 5)

    @staticmethod
    def _block() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def images(count: int = 4, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


def error(model: nn.Module, other: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float((model(x) - other(x)).square().mean()) for x in data)


def test_a_better_support_of_the_same_size_is_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    data = [torch.randn(512, 6) @ torch.randn(6, 24)]
    masks = sc.prune(model, budget=0.75)
    given = sc.compensate(model, masks, data)
    chosen = sc.compensate(model, masks, data, solver=LeastSquares(reselect=True))
    assert given.masks is masks
    assert [row.kept for row in chosen.masks.summary()] == [row.kept for row in masks.summary()]
    assert all(a.after <= b.after for a, b in zip(chosen.layers[:1], given.layers[:1], strict=True))
    assert error(model, chosen.model, data) < 0.8 * error(model, given.model, data)
    for name, mask in chosen.masks.items():
        assert not bool(chosen.model.get_parameter(name)[~mask].any())
    whole = sc.prune(model, granularity="filter", budget=0.5, options=sc.PruneOptions(only=["0"]))
    assert sc.compensate(model, whole, data, solver=LeastSquares(reselect=True)).masks == whole


def test_a_better_support_keeps_two_of_four_inputs_in_linear_layers_and_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 8)
    ).eval()
    data = [torch.randn(256, 3, 8, 2) @ torch.randn(2, 8) + 0.1 * torch.randn(256, 3, 8, 8)]
    masks = sc.prune(model, budget=sc.budget.NOfM(2, 4), options=sc.PruneOptions(only=["2", "4"]))
    given = sc.compensate(model, masks, data)
    chosen = sc.compensate(model, masks, data, solver=LeastSquares(reselect=True))
    assert error(model, chosen.model, data) < 0.8 * error(model, given.model, data)
    for name in ("2.weight", "4.weight"):
        mask = chosen.masks[name]
        assert not torch.equal(mask, masks[name])
        fours = mask.reshape(mask.shape[0], mask.shape[1] // 4, 4, -1).sum(2)
        assert bool((fours == 2).all())
        assert not bool(chosen.model.get_parameter(name)[~mask].any())


def test_a_better_support_keeps_one_of_three_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16)).eval()
    masks = sc.prune(model, budget=sc.budget.NOfM(1, 3))
    data = [torch.randn(256, 6) @ torch.randn(6, 24)]
    mask = sc.compensate(model, masks, data, solver=LeastSquares(reselect=True)).masks["0.weight"]
    assert not torch.equal(mask, masks["0.weight"])
    assert bool((mask.reshape(16, 8, 3).sum(2) == 1).all())


def test_layers_before_the_first_mask_keep_their_bits_and_the_rest_follows() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    masks = sc.prune(model, budget=0.7, options=sc.PruneOptions(only=["blocks.1"]))
    result = sc.compensate(model, masks, images())
    assert {layer.name for layer in result.layers} == {
        "blocks.1.0.weight",
        "blocks.1.3.weight",
        "head.weight",
    }
    for name, tensor in model.state_dict().items():
        if name.startswith(("stem", "norm", "blocks.0")):
            assert torch.equal(tensor, result.model.state_dict()[name]), name
    assert error(model, result.model, images()) < 0.7 * error(model, masks.apply(model), images())


def test_consumers_make_up_for_channels_and_shrink_then_cuts_them() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    example = images()[0]
    masks = sc.prune(
        model,
        granularity="channel",
        budget=0.5,
        example=example,
        options=sc.PruneOptions(only=["blocks.0.0", "blocks.1.0"]),
    )
    result = sc.compensate(model, masks, images(), solver=LeastSquares(damping=1e-4))
    assert error(model, result.model, images()) < 0.8 * error(model, masks.apply(model), images())
    small = sc.shrink(result.model, masks, example)
    assert small.proof.holds
    assert small.model.blocks[0][0].out_channels == 4


@pytest.mark.parametrize("tune", [15, sc.Tuning(passes=3, blocks=0.0)])
def test_tuning_lowers_the_error_and_holds_the_masks(tune: Any) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    masks = sc.prune(model, budget=0.8)
    plain = sc.compensate(model, masks, images())
    tuned = sc.compensate(model, masks, images(), tune=tune)
    assert error(model, tuned.model, images()) < error(model, plain.model, images())
    assert "tuning lowered the error" in tuned.notes[-1]
    parameters = dict(tuned.model.named_parameters())
    assert all(not bool(parameters[name][~mask].any()) for name, mask in masks.items())


def test_tuning_in_bf16_sees_the_weights_of_each_step() -> None:
    """Autocast inside another one keeps its casts: every step would have had the gradients of the first weights."""
    torch.manual_seed(0)
    model = Residual().eval()
    masks = sc.prune(model, budget=0.8)
    narrow, wide = (
        sc.compensate(model, masks, images(), tune=sc.Tuning(passes=20, lr=0.1, precision=precision)).model
        for precision in ("bf16", "fp32")
    )
    assert error(model, narrow, images()) < 1.1 * error(model, wide, images())


def test_tuning_in_bf16_that_the_processor_emulates_is_said(without_bfloat16) -> None:
    model = Residual().eval()
    with pytest.warns(UserWarning, match="this processor has no instructions for bfloat16"):
        sc.compensate(
            model, sc.prune(model, budget=0.8), images(), tune=sc.Tuning(passes=1, precision="bf16")
        )


def test_tuning_that_does_not_help_is_taken_back() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    masks = sc.prune(model, budget=0.5)
    plain = sc.compensate(model, masks, images())
    tuned = sc.compensate(model, masks, images(), tune=sc.Tuning(passes=1, lr=50.0))
    assert "was undone" in tuned.notes[-1]
    for one, two in zip(plain.model.state_dict().values(), tuned.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_data_drawn_anew_is_read_anew_in_each_pass() -> None:
    class Drawn:
        times = 0

        def __iter__(self) -> Any:
            self.times += 1
            return iter(images())

    data = Drawn()
    model = Residual().eval()
    sc.compensate(model, sc.prune(model, budget=0.5), data, tune=2)
    assert data.times == 3
    sc.compensate(model, sc.prune(model, budget=0.5), iter(images()), tune=2)  # an iterator is kept instead


def test_the_dense_model_answers_batches_that_come_again_once() -> None:
    class Counting(Residual):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().forward(x)

    torch.manual_seed(0)
    model = Counting().eval()
    masks, data = sc.prune(model, budget=0.5), images()
    calls = []
    for passes in (1, 4):
        Counting.calls = 0
        sc.compensate(model, masks, data, tune=passes)
        calls.append(Counting.calls)
    assert calls[1] - calls[0] == 3 * len(data)  # the student's alone


def test_skipped_layers_are_not_tuned_either() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    masks = sc.prune(model, budget=0.8, options=sc.PruneOptions(only=["stem", "blocks.*"]))
    result = sc.compensate(model, masks, images(), skip="head", tune=15)
    assert "tuning lowered the error" in result.notes[-1]
    assert torch.equal(result.model.head.weight, model.head.weight)
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    result = sc.compensate(model, masks, images(), skip=["*"], tune=2)
    assert "no parameter is left to train" in result.notes[-1]


def test_what_is_compared_can_be_chosen() -> None:
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.used, self.unused = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 64)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.body(x).relu()
            return self.used(hidden), 100 * self.unused(hidden).sin()

    torch.manual_seed(0)
    model = TwoOutputs().eval()
    data = [torch.randn(64, 8) for _ in range(3)]
    masks = sc.prune(model, budget=0.7, options=sc.PruneOptions(only="body"))
    inputs = []

    def first(output: Any, given: Any) -> torch.Tensor:
        inputs.append(given)
        return output[0]

    result = sc.compensate(model, masks, data, tune=sc.Tuning(passes=2, compare=first))
    assert torch.equal(result.model.unused.weight, sc.compensate(model, masks, data).model.unused.weight)
    assert any(given is data[1] or torch.equal(given, data[1]) for given in inputs)


def test_padding_is_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 2, bias=False)

        def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.one(states)

    model = Net()
    real = torch.randn(2, 4, 3)
    real[..., 2] = real[..., 0]
    padded = torch.cat([real, 100 * torch.randn(2, 5, 3)], 1)
    attention = torch.cat([torch.ones(2, 4), torch.zeros(2, 5)], 1).long()
    masks = sc.Masks({"one.weight": torch.tensor([[False, True, True]] * 2)})
    result = sc.compensate(
        model, masks, [{"states": padded, "attention_mask": attention}], solver=LeastSquares(damping=0.0)
    )
    assert result.layers[0].rows == 8
    w = model.one.weight
    torch.testing.assert_close(result.model.one.weight[:, 2], w[:, 0] + w[:, 2])


def test_a_layer_that_runs_twice_is_fitted_to_both_runs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.one(torch.relu(self.one(x))))

    torch.manual_seed(2)
    model = Twice()
    masks = sc.Masks({"one.weight": torch.rand(4, 4) < 0.6})
    data = [torch.randn(64, 4)]
    result = sc.compensate(model, masks, data)
    assert [layer.name for layer in result.layers] == ["one.weight", "head.weight"]
    assert result.layers[0].rows == 128
    assert error(model, result.model, data) < error(model, masks.apply(model), data)


def test_embeddings_and_tied_weights_are_masked_only() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.table(ids)))

    model = Tied()
    masks = sc.prune(model, budget=0.5)
    result = sc.compensate(model, masks, [torch.arange(10).reshape(2, 5)])
    assert torch.equal(result.model.table.weight, model.table.weight * masks["table.weight"])
    assert result.model.head.weight is result.model.table.weight
    assert "embeddings are masked only: table.weight" in result.notes
    assert [layer.name for layer in result.layers] == ["middle.weight"]


class Experts(nn.Module):
    """Each input goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.gate(x).argmax(1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            if bool((chosen == index).any()):
                out[chosen == index] = expert(x[chosen == index])
        return out


def test_experts_that_got_other_tokens_are_said() -> None:
    torch.manual_seed(0)
    model = Experts()
    masks = sc.prune(model, budget=0.5)
    result = sc.compensate(model, masks, [torch.randn(40, 4) for _ in range(3)])
    notes = {layer.name: layer.note for layer in result.layers}
    assert any("got other inputs than in the dense model" in note for note in notes.values()), notes
    assert all(layer.after <= layer.before for layer in result.layers)


def test_steps_on_a_model_whose_experts_get_other_tokens() -> None:
    torch.manual_seed(0)
    model = Experts()
    model.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)])
    masks = sc.prune(model, budget=0.5)
    result = sc.compensate(model, masks, [torch.randn(40, 4) for _ in range(3)], tune=2)
    assert any("tuning" in note for note in result.notes)


def test_too_few_rows_are_said_and_damped() -> None:
    model = nn.Sequential(nn.Linear(20, 3))
    masks = sc.Masks({"0.weight": (torch.arange(20) >= 5).expand(3, 20)})
    result = sc.compensate(model, masks, [torch.randn(6, 20)])
    assert result.layers[0].note == "6 rows for up to 15 weights an output: damped"
    assert bool(torch.isfinite(result.model[0].weight).all())


def test_a_model_pruned_before_is_compared_with_the_dense_one() -> None:
    torch.manual_seed(0)
    dense = Residual().eval()
    masks = sc.prune(dense, budget=0.6)
    pruned = masks.apply(dense)
    one = sc.compensate(dense, masks, images())
    two = sc.compensate(pruned, sc.Masks.of_zeros(pruned, list(masks)), images(), dense=dense)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_call_leaves_everything_as_it_was(stop_at: int) -> None:
    model = Residual().train()
    state = copy.deepcopy(model.state_dict())
    seen: list[str] = []

    def stop(advance: Advance) -> None:
        seen.append(str(advance))
        if len(seen) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sc.compensate(model, sc.prune(model, budget=0.5), images(), progress=stop)
    assert len(seen) == stop_at
    assert seen[0].startswith("layer 1 of 9: stem.weight")
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_modes_and_random_state_stay() -> None:
    model = Residual().train()
    before = torch.get_rng_state()
    result = sc.compensate(model, sc.prune(model, budget=0.5), images(), tune=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(module.training for module in result.model.modules())
    again = sc.compensate(model, sc.prune(model, budget=0.5), images(), tune=1)
    for one, two in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_is_skipped_keeps_its_weights() -> None:
    model = Residual().eval()
    masks = sc.prune(model, budget=0.5)
    result = sc.compensate(model, masks, images(), skip=["head", "blocks.0"])
    assert torch.equal(result.model.head.weight, model.head.weight * masks["head.weight"])
    assert not {"head.weight", "blocks.0.0.weight"} & {layer.name for layer in result.layers}
    with pytest.raises(PatternError, match="skip: pattern 'haed' matches no parameter"):
        sc.compensate(model, masks, images(), skip=["haed"])


def test_what_is_refused_names_the_cause() -> None:
    model = Residual().eval()
    masks = sc.prune(model, budget=0.5)
    with pytest.raises(DataError, match="held no batch"):
        sc.compensate(model, masks, [])
    bad = images()
    bad[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="batch 1 of the data holds NaN"):
        sc.compensate(model, masks, bad)
    broken = copy.deepcopy(model)
    broken.blocks[0][3].weight.data[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"blocks.0.3.weight|blocks.1.0.weight"):
        sc.compensate(broken, masks, images())
    with pytest.raises(NothingToDoError, match="the masks remove nothing"):
        sc.compensate(model, sc.Masks.ones(model), images())
    with pytest.raises(MaskMismatchError, match=r"dense: expected 'stem\.weight'"):
        sc.compensate(model, masks, images(), dense=nn.Linear(2, 2))
    with pytest.raises(OptionError, match="damping"):
        LeastSquares(damping=-1.0)
    for wrong in ({"passes": 0}, {"lr": 0.0}, {"blocks": -1.0}, {"precision": "fp8"}):
        with pytest.raises(OptionError, match="Tuning"):
            sc.Tuning(**wrong)


def test_nothing_is_left_running() -> None:
    import threading

    before = threading.active_count()
    model = Residual().eval()
    sc.compensate(model, sc.prune(model, budget=0.5), images())
    walk = Walk(model, Names(model), (images()[0],), {})
    walk.close()
    assert threading.active_count() == before


def test_a_model_that_fails_raises_its_own_error() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(self.one(x)) @ torch.ones(5)

    model = Bad()
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes"):
        sc.compensate(
            model,
            sc.prune(model, budget=0.5, options=sc.PruneOptions(allow_collapse=True)),
            [torch.randn(2, 3)],
        )


def test_order_of_walks_is_that_of_the_pass() -> None:
    model = Residual().eval()
    names = []
    with Walk(model, Names(model), (images()[0],), {}) as walk:
        while walk.call is not None:
            names.append(walk.call.name)
            walk.advance()
    torch.testing.assert_close(walk.output, model(images()[0]))
    weights = [name for name in names if name.endswith("weight")]
    assert weights == [n for n, p in model.named_parameters() if p.dim() > 1 and n in weights]
    assert list(itertools.islice(names, 2)) == ["stem.weight", "norm.running_mean"]


def test_rounds_bound_the_work_on_layers_too_large_to_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 2000, bias=False)).eval()
    inputs = torch.randn(900, 300) * torch.arange(1, 301) ** -1.0 @ torch.linalg.qr(torch.randn(300, 300))[0]
    masks = sc.prune(model, budget=0.5)
    assert cost_of_factoring(masks["0.weight"].T) > 2e9
    errors = [
        sc.compensate(model, masks, [inputs], solver=sc.LeastSquares(rounds=rounds)).layers[0].after
        for rounds in (1, 60)
    ]
    assert errors[0] > 1.5 * errors[1]
    with pytest.raises(
        OptionError, match=r"rounds of LeastSquares: expected a whole number of at least 1, got 0"
    ):
        sc.LeastSquares(rounds=0)


def test_the_table_says_of_what_before_and_after_are():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    result = sc.compensate(model, sc.prune(model, budget=0.5), [torch.randn(32, 8)])
    head, *rows = result.table().splitlines()
    assert head.split("  ")[-2:] == ["error before", "error after"]
    assert all(len(row) >= len(head) for row in rows[: len(result.layers)])


class TwoInputs(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 8), nn.Linear(3, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, signal, extra):
        return self.last(torch.relu(self.one(signal) + self.other(extra)))


def test_two_inputs_read_as_inputs_and_targets_are_an_error_that_shows_the_form():
    model = TwoInputs().eval()
    pair = (torch.randn(32, 6), torch.randn(32, 3))
    masks = sc.prune(model, "l2", "element", 0.5)
    for batch in (pair, list(pair)):
        with pytest.raises(DataError, match=r"read as \(inputs, targets\).*'extra'.*give \(\(a, b\), None\)"):
            sc.compensate(model, masks, [batch])
    given = sc.compensate(model, masks, [(pair, None)]).model
    named = sc.compensate(model, masks, [{"signal": pair[0], "extra": pair[1]}]).model
    assert torch.equal(given(*pair), named(*pair))


def test_skip_names_a_tied_weight_by_any_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.head = (nn.Linear(6, 6, bias=False) for _ in range(3))
            self.head.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.first(x)))

    torch.manual_seed(0)
    model, inputs = Tied(), [torch.randn(16, 6)]
    masks = sc.prune(model, "magnitude", budget=0.5)
    result = sc.compensate(model, masks, inputs, skip="head")
    assert torch.equal(result.model.first.weight, masks.apply(model).first.weight)
    assert result.model.head.weight is result.model.first.weight
