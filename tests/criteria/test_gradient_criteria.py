"""taylor, snip and grasp: worked by hand, against the definition written out, on data of every form."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.grasp import Grasp
from secateur.criteria.snip import Snip
from secateur.criteria.taylor import Taylor

ALL = [Taylor(), Snip(), Grasp()]


def small(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
    ).to(dtype)


def examples(count: int = 12, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    return torch.randn(count, 1, 4, 4, dtype=dtype), torch.randint(0, 3, (count,))


def scored(criterion, model, data, loss=F.cross_entropy):
    return criterion.scores(model, select(model), Context(data=data, loss=loss))


def order(scores) -> list[int]:
    return torch.cat([t.flatten() for t in scores.values()]).argsort(stable=True).tolist()


# -- by hand -------------------------------------------------------------------------------------------------


def two_weights() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    return layer


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def test_worked_by_hand_on_one_linear_unit():
    # y = 2a - b; at (1, 3): y = -1, target 1: L = 4, dL/dy = -4, g = (-4, -12), |w g| = (8, 12)
    data = [(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0]]))]
    assert scored(Taylor(), two_weights(), data, squared)["weight"].tolist() == [[8.0, 12.0]]
    snip = scored(Snip(), two_weights(), data, squared)["weight"]
    assert snip[0].tolist() == pytest.approx([0.4, 0.6])
    assert scored(Snip(normalize=False), two_weights(), data, squared)["weight"].tolist() == [[8.0, 12.0]]
    # H = 2 x x^T = [[2, 6], [6, 18]]; H g = (-80, -240); w * Hg = (-160, 240), divided by |sum| = 80
    plain = scored(Grasp(temperature=1, normalize=False), two_weights(), data, squared)["weight"]
    assert plain.tolist() == [[-160.0, 240.0]]
    assert scored(Grasp(temperature=1), two_weights(), data, squared)["weight"].tolist() == [[-2.0, 3.0]]


def test_grasp_temperature_divides_the_outputs_worked_by_hand():
    # y = (2a - b) / 4 at (1, 3) = -1/4, target 1: dL/dy = -5/2, g = -5/2 * (1, 3)/4, H = 2/16 x x^T
    # H g = (1/8) (x . g) x, x . g = -(5/8) * 10 = -25/4; H g = -(25/32) (1, 3); w * Hg = (-50/32, 75/32)
    data = [(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0]]))]
    got = scored(Grasp(temperature=4, normalize=False), two_weights(), data, squared)["weight"]
    assert got.tolist() == [[-50 / 32, 75 / 32]]


def test_unequal_batches_count_by_their_examples_worked_by_hand():
    layer = two_weights()
    data = [
        (torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), None),  # three examples with gradient (1, 0)
        (torch.tensor([[0.0, 4.0]]), None),  # one with (0, 4)
    ]
    got = scored(Taylor(), layer, data, lambda outputs, _: outputs.mean())
    assert got["weight"].tolist() == [[2 * 3 / 4, 1 * 4 / 4]]


# -- against the published definitions written out -----------------------------------------------------------


def test_snip_is_the_gradient_of_an_explicit_mask():
    model, (x, y) = small(), examples()
    masks = {t.name: torch.ones(t.shape, dtype=x.dtype, requires_grad=True) for t in select(model)}
    state = {n: p.detach() * masks[n] if n in masks else p for n, p in model.named_parameters()}
    F.cross_entropy(functional_call(model, state, (x,)), y).backward()
    total = sum(mask.grad.abs().sum() for mask in masks.values())
    want = {name: mask.grad.abs() / total for name, mask in masks.items()}
    got = scored(Snip(), model, [(x, y)])
    for name in want:
        assert torch.allclose(got[name], want[name], rtol=1e-12, atol=0)
    assert order(got) == order(want)
    assert sum(float(t.sum()) for t in got.values()) == pytest.approx(1.0)


def test_taylor_is_weight_times_gradient():
    model, (x, y) = small(), examples()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()
    want = {t.name: (t.of(twin) * t.of(twin).grad).abs() for t in select(twin)}
    got = scored(Taylor(), model, [(x, y)])
    for name in want:
        assert torch.allclose(got[name], want[name], rtol=1e-12, atol=0)
    assert order(got) == order(want)


def test_grasp_is_weight_times_an_explicit_hessian_times_gradient():
    model, (x, y) = small(), examples()
    targets = select(model)
    shapes = [t.shape for t in targets]
    flat = torch.cat([t.of(model).detach().flatten() for t in targets])

    def loss_of(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([t.numel for t in targets])
        state = dict(model.named_parameters())
        state.update({t.name: p.reshape(s) for t, p, s in zip(targets, parts, shapes)})
        return F.cross_entropy(functional_call(model, state, (x,)) / 200, y)

    gradient = torch.func.grad(loss_of)(flat)
    hessian = torch.autograd.functional.hessian(loss_of, flat)
    product = flat * (hessian @ gradient)
    want = product / product.sum().abs()
    got = scored(Grasp(), model, [(x, y)])
    together = torch.cat([got[t.name].flatten() for t in targets])
    assert torch.allclose(together, want, rtol=1e-8, atol=1e-12)
    assert together.argsort(stable=True).tolist() == want.argsort(stable=True).tolist()


def test_grasp_keeps_the_gradient_flow_better_than_its_opposite():
    # the direction of the rule: removing the lowest scores must leave more gradient than removing the highest
    model, (x, y) = small(seed=5), examples(64)
    scores = scored(Grasp(temperature=1), model, [(x, y)])
    together = torch.cat([t.flatten() for t in scores.values()])

    def flow(largest: bool) -> float:
        pruned = copy.deepcopy(model)
        gone = together.argsort(descending=largest)[: len(together) // 10]
        keep = torch.ones_like(together)
        keep[gone] = 0
        for target, part in zip(select(pruned), keep.split([t.numel for t in select(pruned)])):
            target.of(pruned).data.mul_(part.reshape(target.shape))
        weights = [t.of(pruned) for t in select(pruned)]
        return sum(
            float(g.square().sum()) for g in torch.autograd.grad(F.cross_entropy(pruned(x), y), weights)
        )

    assert flow(largest=False) > flow(largest=True)


# -- many batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [5, 5, 2]])
def test_many_batches_are_one_large_batch(criterion, sizes):
    model, (x, y) = small(), examples()
    one = scored(criterion, model, [(x, y)])
    many = scored(criterion, model, list(zip(x.split(sizes), y.split(sizes))))
    for name in one:
        assert torch.allclose(one[name], many[name], rtol=1e-9, atol=1e-15)
    assert order(one) == order(many)


@pytest.mark.parametrize(
    ("criterion", "dtype", "tolerance"),
    [
        *((criterion, torch.float32, 1e-4) for criterion in ALL),
        *((criterion, torch.bfloat16, 0.15) for criterion in (Taylor(), Snip())),
        *((criterion, torch.float16, 0.02) for criterion in (Taylor(), Snip())),
        (Grasp(temperature=1), torch.bfloat16, 0.3),
    ],
)
def test_narrow_models_agree_with_the_double_one(criterion, dtype, tolerance):
    model, (x, y) = small(dtype), examples(dtype=torch.float32)
    double = copy.deepcopy(model).double()
    got, want = scored(criterion, model, [(x, y)]), scored(criterion, double, [(x.double(), y)])
    for name in want:
        assert got[name].dtype == torch.float32
        assert float((got[name].double() - want[name]).abs().max()) < tolerance * float(
            want[name].abs().max()
        )


# -- data in every accepted form -----------------------------------------------------------------------------


class Named(nn.Module):
    """Takes keywords and may compute its own loss, as Hugging Face models do."""

    def __init__(self, inner: nn.Module, as_dict: bool):
        super().__init__()
        self.inner, self.as_dict = inner, as_dict

    def forward(self, pixels, labels=None):
        logits = self.inner(pixels)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.as_dict:
            return OrderedDict(loss=loss, logits=logits)
        return type("Output", (), {"loss": loss, "logits": logits})()


@pytest.mark.parametrize("criterion", [Taylor(), Snip(), Grasp(temperature=1)])
def test_every_form_of_data_gives_the_same_scores(criterion):
    model, (x, y) = small(), examples()
    halves = [(x[:6], y[:6]), (x[6:], y[6:])]
    want = scored(criterion, model, halves)

    class Again:
        def __iter__(self):
            yield from halves

    forms = {
        "lists": [list(pair) for pair in halves],
        "tuple": tuple(halves),
        "iterable": Again(),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6),
        "workerless shuffle": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=6, shuffle=True
        ),
        "argument tuples": [((a,), b) for a, b in halves],
        "keywords": [({"input": a}, b) for a, b in halves],
    }
    for form, data in forms.items():
        got = scored(criterion, model, data)
        for name in want:
            assert torch.allclose(got[name], want[name], rtol=1e-9, atol=1e-15), form
    named = [{"pixels": a, "labels": b} for a, b in halves]
    for as_dict in (True, False):
        got = scored(criterion, Named(model, as_dict), named, loss=None)
        for name in want:
            assert torch.allclose(got["inner." + name], want[name], rtol=1e-9, atol=1e-15)
    got = scored(
        criterion, Named(model, True), named, loss=lambda out, labels: F.cross_entropy(out["logits"], labels)
    )
    for name in want:
        assert torch.allclose(got["inner." + name], want[name], rtol=1e-9, atol=1e-15)


def test_a_generator_serves_where_one_pass_is_enough():
    model, (x, y) = small(), examples()
    got = scored(Snip(), model, (pair for pair in [(x, y)]))
    want = scored(Snip(), model, [(x, y)])
    assert torch.equal(got["0.weight"], want["0.weight"])


def test_inputs_alone_are_their_own_target():
    model = nn.Linear(3, 3, bias=False)
    x = torch.randn(5, 3)
    for data in ([x], [(x,)], [[x]]):
        got = scored(Taylor(), model, data, F.mse_loss)
        assert torch.equal(got["weight"], scored(Taylor(), model, [(x, x)], F.mse_loss)["weight"])


def test_several_arguments_come_before_the_targets():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 1, bias=False)

        def forward(self, one, two):
            return self.a(one + two)

    model, one, two = Sum(), torch.randn(4, 2), torch.randn(4, 2)
    target = torch.randn(4, 1)
    got = scored(Taylor(), model, [(one, two, target)], F.mse_loss)
    want = scored(Taylor(), model.a, [(one + two, target)], F.mse_loss)
    assert torch.equal(got["a.weight"], want["weight"])


# -- kinds of weights ----------------------------------------------------------------------------------------


def test_tied_weights_add_their_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(6, 3)
    twin = copy.deepcopy(model)
    twin(x).square().mean().backward()
    got = scored(Taylor(), model, [(x, None)], lambda out, _: out.square().mean())
    assert list(got) == ["a.weight"]
    assert torch.allclose(got["a.weight"], (twin.a.weight * twin.a.weight.grad).abs(), rtol=1e-6)
    for criterion in (Snip(), Grasp()):
        assert list(scored(criterion, model, [(x, None)], lambda out, _: out.square().mean())) == ["a.weight"]


def test_embeddings_with_sparse_gradients_are_scored():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    ids = torch.tensor([[0, 1], [1, 3]])
    got = scored(Taylor(), model, [(ids, torch.tensor([0, 1]))])
    assert got["0.weight"].any(1).tolist() == [True, True, False, True, False]


def test_frozen_weights_and_a_caller_without_gradients_are_scored_all_the_same():
    model, (x, y) = small(), examples()
    want = scored(Snip(), model, [(x, y)])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        frozen = scored(Snip(), model, [(x, y)])
    with torch.inference_mode():
        inference = scored(Snip(), model, [(x, y)])
    for name in want:
        assert torch.equal(frozen[name], want[name])
        assert torch.equal(inference[name], want[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("criterion", ["snip", "taylor", "grasp"])
def test_the_mode_is_the_one_asked_for(criterion):
    from secateur import criteria

    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    model, data = Spy(2, 2), [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    for found in (True, False):
        for mode, expected in (("as_found", found), ("train", True), ("eval", False)):
            model.train(found)
            seen.clear()
            scored(criteria.registry.make(criterion, mode=mode), model, data)
            assert set(seen) == {expected}
            assert model.training is found


def test_grasp_differentiates_attention_twice():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).mean((1, 2))

    torch.manual_seed(0)
    got = scored(Grasp(), Attend(), [(torch.randn(2, 5, 8), torch.tensor([0, 3]))])
    assert got["qkv.weight"].any()
