"""synflow: worked by hand, against the authors' loop, conserved, and in range where float32 is not."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria._ranged import Ranged, _pads_zeros, plain
from secateur.criteria.synflow import Synflow
from secateur.errors import CollapseError, DataError, NonFiniteError, OptionError, StructureError


def scored(criterion: Synflow, model: nn.Module, example):
    return criterion.scores(model, select(model), Context(example=example))


def as_published(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The authors' loop: |.| of all state, an all-ones input, one backward, gradient times parameter."""
    twin = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.abs_()
    twin(torch.ones(1, *shape, dtype=dtype)).sum().backward()
    return {t.name: (t.of(twin).grad * t.of(twin)).detach() for t in select(twin)}


def without_biases(model: nn.Module) -> nn.Module:
    """A copy in which nothing adds to the flow: for it, the definition and the authors' loop are one."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if "bias" in name or "running_mean" in name:
                tensor.zero_()
    return twin


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.two(F.relu(self.norm(self.one(x)), inplace=True))
        y += x
        return F.relu(y)


class Branches(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1, groups=2)

    def forward(self, x):
        left, right = self.left(x), self.right(F.pad(x, (0, 0, 0, 0)))
        return torch.cat([left, 0.5 * right], dim=1)[:, ::2] - (-x)


def convolutional(blocks: int = 2, width: int = 8) -> nn.Sequential:
    torch.manual_seed(blocks)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        *[Residual(width) for _ in range(blocks)],
        Branches(width),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def perceptron(layers: int, width: int = 100, bias: bool = False, gain: float = 1.0) -> nn.Sequential:
    torch.manual_seed(layers)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width, bias=bias), nn.ReLU()]
        parts[-2].weight.data.mul_(gain)
    return nn.Sequential(*parts[:-1])


def test_worked_by_hand():
    # |w|: (3, 1) and (0, 2) into (2, 5); R = 2 * (3 + 1) + 5 * (0 + 2) = 18
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data.copy_(torch.tensor([[-3.0, 1.0], [0.0, -2.0]]))
    model[2].weight.data.copy_(torch.tensor([[2.0, -5.0]]))
    plain_scores = scored(Synflow(normalize=False), model, torch.zeros(7, 2))
    assert plain_scores["0.weight"].tolist() == [[6.0, 2.0], [0.0, 10.0]]
    assert plain_scores["2.weight"].tolist() == [[8.0, 10.0]]
    shares = scored(Synflow(), model, torch.zeros(7, 2))
    assert shares["2.weight"].tolist() == [[8 / 18, 10 / 18]]


@pytest.mark.parametrize("make", [convolutional, lambda: perceptron(4, 10, bias=True)])
def test_the_plain_numbers_are_those_of_the_authors_loop(make):
    model = make()
    shape = (3, 8, 8) if isinstance(model[0], nn.Conv2d) else (10,)
    example = torch.randn(5, *shape)
    for criterion, twin in (
        (Synflow("abs", normalize=False), model),
        (Synflow(normalize=False), without_biases(model)),
    ):
        want = as_published(twin, shape, torch.float64)
        got = scored(criterion, model, example)
        assert list(got) == list(want)
        for name in want:
            assert torch.allclose(got[name], want[name], rtol=1e-12, atol=0), name
        a, b = (torch.cat([t[n].flatten() for n in want]) for t in (got, want))
        assert a.argsort(stable=True).tolist() == b.argsort(stable=True).tolist()


def test_biases_change_the_ranking_so_the_choice_is_not_idle():
    model = perceptron(3, 10, bias=True)
    zero, added = (scored(Synflow(b), model, torch.ones(1, 10)) for b in ("zero", "abs"))
    rank = [torch.cat([t.flatten() for t in s.values()]).argsort().tolist() for s in (zero, added)]
    assert rank[0] != rank[1]


def test_flow_is_conserved_from_layer_to_layer():
    shares = scored(Synflow(), perceptron(6, bias=True), torch.ones(1, 100))
    assert [float(t.sum()) for t in shares.values()] == pytest.approx([1.0] * 6, rel=1e-12)


@pytest.mark.parametrize(("gain", "extreme"), [(1.0, "overflows"), (0.02, "underflows")])
def test_a_hundred_layers_rank_right_where_float32_cannot(gain, extreme):
    model = perceptron(100, gain=gain)
    flat = as_published(model, (100,), torch.float32)
    if extreme == "overflows":
        assert all(not bool(torch.isfinite(t).all()) for t in flat.values())
    else:
        assert all(not bool(t.any()) for t in flat.values())
    shares = scored(Synflow(), model, torch.ones(1, 100))
    assert [float(t.sum()) for t in shares.values()] == pytest.approx([1.0] * 100, rel=1e-9)
    assert all(bool((t > 0).all()) for t in shares.values())
    # The same network with every layer brought to gain 1 by hand: scores differ by one common factor only.
    tame = copy.deepcopy(model)
    for layer in tame:
        if isinstance(layer, nn.Linear):
            layer.weight.data.div_(layer.weight.data.abs().sum() / 100)
    want = as_published(tame, (100,), torch.float64)
    total = float(want["0.weight"].sum())
    for name in want:
        # dividing float32 weights rounds them, layer after layer
        assert torch.allclose(shares[name], want[name] / total, rtol=1e-5, atol=0)


def test_a_thousand_layers_leave_float64_and_still_rank():
    model = perceptron(1000, width=20, gain=5.0)
    double = as_published(model, (20,), torch.float64)
    assert all(not bool(torch.isfinite(t).all()) for t in double.values())
    shares = scored(Synflow(), model, torch.ones(1, 20))
    assert [float(t.sum()) for t in shares.values()] == pytest.approx([1.0] * 1000, rel=1e-9)


def test_a_deep_residual_network_with_branches_stays_in_range():
    model = convolutional(blocks=150, width=32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(20)
    double = as_published(model, (3, 8, 8), torch.float64)
    assert not bool(torch.isfinite(double["0.weight"]).all())
    for biases in ("zero", "abs"):
        shares = scored(Synflow(biases), model, torch.ones(1, 3, 8, 8))
        assert float(shares["0.weight"].sum()) <= 1 + 1e-9
        assert all(bool(t.any()) for t in shares.values())
    assert float(scored(Synflow(), model, torch.ones(1, 3, 8, 8))["0.weight"].sum()) == pytest.approx(
        1.0, rel=1e-9
    )


def test_scores_beyond_the_range_are_an_error_when_asked_plain():
    with pytest.raises(
        NonFiniteError, match=r"synflow: the plain scores leave the number range .* use normalize=True"
    ):
        scored(Synflow(normalize=False), perceptron(600, width=20, gain=20.0), torch.ones(1, 20))


def test_the_input_is_the_first_batch_where_no_example_is_given():
    model, x = perceptron(2, 10), torch.randn(6, 10)
    want = scored(Synflow(), model, x)
    for data in ([(x, torch.zeros(6))], [x], ((x, y) for x, y in [(x, torch.zeros(6))])):
        got = Synflow().scores(model, select(model), Context(data=data))
        assert torch.equal(got["0.weight"], want["0.weight"])


def test_masked_weights_score_zero_and_the_rest_is_measured_without_them():
    model = perceptron(3, 10)
    model[2].weight.data[:, 4] = 0.0
    shares = scored(Synflow(), model, torch.ones(1, 10))
    assert not shares["2.weight"][:, 4].any()
    assert not shares["0.weight"][4].any()  # nothing of what flows into unit 4 goes on
    assert shares["0.weight"][3].all()


def test_token_ids_are_used_as_given_and_other_operators_run_plainly():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return {"logits": torch.softmax(self.head(F.gelu(self.table(ids)).mean(1)), -1)[:, :1]}

    shares = scored(Synflow(), Tokens(), torch.tensor([[1, 3], [2, 2]]))
    assert shares["table.weight"].any(1).tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_of_any_type_is_scored_in_double(dtype):
    model = perceptron(8, 20).to(dtype)
    got = scored(Synflow(), model, torch.ones(1, 20, dtype=dtype))
    want = as_published(model, (20,), torch.float64)
    total = want["0.weight"].sum()
    for name in want:
        assert torch.allclose(got[name], want[name] / total, rtol=1e-12, atol=0)


def test_a_forward_that_names_its_type_runs_in_that_type():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = perceptron(60, 20, gain=8.0)

        def forward(self, x):
            return self.layers(x.float())

    shares = scored(Synflow(), Casts(), torch.ones(1, 20))
    assert [float(t.sum()) for t in shares.values()] == pytest.approx([1.0] * 60, rel=1e-4)


def test_tied_weights_are_scored_once_with_both_their_uses():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    got = scored(Synflow(), model, torch.ones(1, 3))
    assert list(got) == ["0.weight"]
    assert float(got["0.weight"].sum()) == pytest.approx(2.0)


def test_a_disconnected_network_is_named():
    model = perceptron(3, 5)
    model[2].weight.data.zero_()
    with pytest.raises(
        CollapseError, match=r"synflow: nothing flows .* of Sequential: '2.weight' has no weight left"
    ):
        scored(Synflow(), model, torch.ones(1, 5))


def test_an_unused_layer_and_a_missing_example_are_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(
        StructureError, match=r"the output does not depend on 'spare.weight': an unused layer"
    ):
        scored(Synflow(), Unused(), torch.ones(1, 2))
    model = Unused()
    with pytest.raises(StructureError, match=r"output of Unused does not depend on any of the 1 targets"):
        Synflow().scores(model, select(model, only=["spare"]), Context(example=torch.ones(1, 2)))
    with pytest.raises(DataError, match=r"synflow needs the shape of one input: pass example="):
        scored(Synflow(), perceptron(2, 5), None)


# -- the mode that carries exponents -------------------------------------------------------------------------


def huge(value: list[float], power: int) -> torch.Tensor:
    tensor = torch.tensor(value, dtype=torch.float64)
    tensor._secateur_exponent = power
    return tensor


@pytest.mark.parametrize(
    ("operation", "want"),
    [
        (lambda a, b: a + b, [8 * 4.0 + 2 * 1.0, 8 * 1.0 + 2 * 3.0]),
        (lambda a, b: a - b, [8 * 4.0 - 2 * 1.0, 8 * 1.0 - 2 * 3.0]),
        (lambda a, b: 1 - a, [1 - 32.0, 1 - 8.0]),
        (lambda a, b: a * b, [64.0, 48.0]),
        (lambda a, b: a / b, [16.0, 8 / 6]),
        (lambda a, b: a @ b, 64.0 + 48.0),
        (lambda a, b: torch.cat([a, b]), [32.0, 8.0, 2.0, 6.0]),
        (lambda a, b: torch.maximum(a, b), [32.0, 8.0]),
        (lambda a, b: a.clone().add_(b), [34.0, 14.0]),
        (lambda a, b: a.clone().add_(b, alpha=2), [36.0, 20.0]),
        (lambda a, b: a.view(2, 1).T[0], [32.0, 8.0]),
        (lambda a, b: torch.exp(b), [math.exp(2), math.exp(6)]),
        (lambda a, b: F.pad(b, (1, 0)), [0.0, 2.0, 6.0]),
        (lambda a, b: F.pad(b, (1, 0), value=5.0), [5.0, 2.0, 6.0]),
        (lambda a, b: a.sum() + b.mean(), 44.0),
        (lambda a, b: F.linear(a, torch.ones(1, 2).double(), torch.tensor([0.5]).double()), [40.5]),
        (lambda a, b: F.linear(input=b, weight=torch.ones(1, 2).double(), bias=None), [8.0]),
        (
            lambda a, b: F.conv1d(
                a.view(1, 1, 2), torch.ones(2, 1, 2).double(), huge([1.0, 2.0], 0)
            ).flatten(),
            [41.0, 42.0],
        ),
        # (x - mean) / sqrt(var + eps) * weight + bias on (32, 8): 29 / 2 * 3 + 5 and (8 - 1) / 1 * 1 - 2
        (
            lambda a, b: F.batch_norm(
                a.view(1, 2),
                *(torch.tensor(t).double() for t in ([3.0, 1.0], [3.75, 0.75], [3.0, 1.0], [5.0, -2.0])),
                eps=0.25,
            ).flatten(),
            [48.5, 5.0],
        ),
        (lambda a, b: torch.stack([a, b]).max(dim=0).values, [32.0, 8.0]),
        (lambda a, b: F.linear(a, b.view(1, 2)), [112.0]),
        (lambda a, b: F.pad(a, (1, 0), "constant", 0.0), [0.0, 32.0, 8.0]),
        (lambda a, b: F.pad(a, (1, 0), "constant", 5.0), [5.0, 32.0, 8.0]),
    ],
)
def test_operators_give_what_the_tensors_stand_for(operation, want):
    a, b = huge([4.0, 1.0], 3), huge([1.0, 3.0], 1)
    with Ranged():
        result = operation(a, b)
    assert plain(result).tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("args", "kwargs", "zeros"),
    [
        ((), {}, True),
        (("constant", 5.0), {}, False),
        (("constant", 0.0), {}, True),
        (("constant",), {"value": 5.0}, False),
        ((), {"mode": "reflect", "value": 5.0}, True),
        (("circular",), {}, True),
    ],
)
def test_which_paddings_keep_zero_at_zero(args, kwargs, zeros):
    assert _pads_zeros((torch.ones(2), (1, 0), *args), kwargs) is zeros


def six_layers() -> nn.Sequential:
    """A wide input before narrow layers: one ranking of all weights takes the whole of the first layer."""
    torch.manual_seed(0)
    widths = (784, 100, 100, 100, 100, 100, 10)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_a_hundred_rounds_keep_six_layers_connected_at_one_percent_where_one_round_collapses():
    model, example, budget = six_layers(), torch.zeros(1, 784), sc.budget.Overall(0.99)
    masks = sc.prune(
        model,
        "synflow",
        "element",
        budget,
        example=example,
        options=sc.PruneOptions(schedule=sc.Exponential(100)),
    )
    assert masks.kept == masks.numel - round(0.99 * masks.numel)
    assert all(row.kept for row in masks.summary())
    sc.check_connected(model, masks, example)

    with pytest.raises(
        CollapseError, match=r"the masks disconnect the network: nothing is left of '0\.weight'"
    ):
        sc.prune(model, "synflow", "element", budget, example=example)
    loose = sc.prune(
        model, "synflow", "element", budget, example=example, options=sc.PruneOptions(allow_collapse=True)
    )
    assert loose.kept == masks.kept


def two_batches():
    """Five examples: the first element 0, 0, 0, 0, 5 (mean 1, deviation 2), the second always -3."""
    return [
        (torch.tensor([[0.0, -3.0]] * 3), torch.zeros(3)),
        (torch.tensor([[0.0, -3.0], [5.0, -3.0]]), torch.zeros(2)),
    ]


def by_hand() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data.copy_(torch.tensor([[-3.0, 1.0], [0.0, -2.0]]))
    model[2].weight.data.copy_(torch.tensor([[2.0, -5.0]]))
    return model


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        # (2, 0) flows in: hidden 3 * 2 and 0, R = 2 * 6. The constant element is worth nothing, whatever it is.
        ("spread", [[12.0, 0.0], [0.0, 0.0]], [[12.0, 0.0]]),
        # (1, 3) flows in: hidden 3 * 1 + 1 * 3 and 2 * 3, R = 2 * 6 + 5 * 6
        ("size", [[6.0, 6.0], [0.0, 30.0]], [[12.0, 30.0]]),
    ],
)
def test_what_flows_in_can_be_taken_from_data(kind, first, last):
    def never(outputs, targets):
        raise AssertionError("a loss was asked for")

    model = by_hand()
    for data in (two_batches(), [{"input": x, "labels": y} for x, y in two_batches()]):
        scores = Synflow(normalize=False, input=kind).scores(model, select(model), Context(data, never))
        assert scores["0.weight"].tolist() == first
        assert scores["2.weight"].tolist() == last


def test_an_example_does_not_stand_in_for_data():
    model, example = by_hand(), torch.ones(1, 2)
    with pytest.raises(
        DataError, match=r"input 'spread' is taken from data: pass data=<batches>, or input='ones'"
    ):
        Synflow(input="spread").scores(model, select(model), Context(example=example))
    with pytest.raises(
        DataError,
        match=r"Synflow\(.*input='spread'\) scores on data: pass data= \(batches of inputs; it asks for no labels",
    ):
        sc.prune(model, Synflow(input="spread"), example=example)
    context = Context(two_batches(), example=example)
    assert Synflow(input="spread").scores(model, select(model), context)["0.weight"].tolist() == [
        [1, 0],
        [0, 0],
    ]


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("spread", [torch.ones(4, 2)], "all 4 examples are one and the same"),
        ("size", [torch.zeros(4, 2)], "all 4 examples are zero"),
        ("spread", [torch.zeros(4, 2, dtype=torch.long)], "the inputs hold no floating-point numbers"),
        ("spread", [torch.eye(4, 2), torch.eye(4, 3)], "batch 1 has examples of other shapes"),
    ],
)
def test_data_that_say_nothing_are_refused(kind, data, words):
    model = by_hand()
    with pytest.raises(DataError, match=words):
        Synflow(input=kind).scores(model, select(model), Context(data))
    with pytest.raises(OptionError, match="input: expected 'ones', 'size' or 'spread', got 'mean'"):
        Synflow(input="mean")
