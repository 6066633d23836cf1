"""What goes wrong with data, losses, gradients and weights is said in words that help."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur import criteria
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import CollapseError, DataError, NonFiniteError, StructureError

X, Y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])


def attempt(name: str, model: nn.Module | None = None, data=((X, Y),), loss=F.cross_entropy, **options):
    torch.manual_seed(0)
    model = model or nn.Linear(2, 2)
    return criteria.registry.make(name, **options).scores(model, select(model), Context(data=data, loss=loss))


each = pytest.mark.parametrize("name", ["taylor", "snip", "grasp"])


@each
def test_no_data(name):
    with pytest.raises(
        DataError, match=rf"^{name} scores weights on data, and none was given: pass data=<batches>"
    ):
        attempt(name, data=None)


@each
def test_no_loss(name):
    with pytest.raises(
        DataError, match=rf"^{name} needs a loss, .* the model's output \(Tensor\) hold one: pass loss="
    ):
        attempt(name, loss=None)


@each
def test_empty_data(name):
    with pytest.raises(DataError, match=rf"^{name}: the data held no batch$"):
        attempt(name, data=[])


def test_data_that_ran_out():
    used_up = iter([(X, Y)])
    next(used_up)
    with pytest.raises(
        DataError, match=r"^snip: the data held no batch \(a generator can be read only once: give a list"
    ):
        attempt("snip", data=used_up)


def test_two_passes_over_a_generator():
    with pytest.raises(
        DataError, match=r"^grasp reads the data 2 times, and a generator can be read only once: give a list"
    ):
        attempt("grasp", data=(batch for batch in [(X, Y)]))


def test_data_that_is_one_batch():
    with pytest.raises(
        DataError, match=r"^snip: data is one tensor, expected .* write data=\[\(inputs, targets\)\]"
    ):
        attempt("snip", data=X)
    with pytest.raises(
        DataError, match=r"^snip: data is one \(inputs, targets\) pair, .* write data=\[\(x, y\)\]"
    ):
        attempt("snip", data=(X, Y))


def test_batches_without_tensors_or_examples():
    with pytest.raises(
        DataError, match=r"^batch 1 of the data: expected \(inputs, targets\), .* got tuple; make every"
    ):
        attempt("snip", data=[(X, Y), ("text", "label")])
    with pytest.raises(DataError, match=r"^batch 0 of the data holds no example: its shape is \(0, 2\)"):
        attempt("snip", data=[(X[:0], Y[:0])])


def test_a_loss_that_is_not_one_number():
    with pytest.raises(DataError, match=r"^snip: expected the loss to be one number, .* got shape \(4,\)"):
        attempt("snip", loss=lambda out, y: F.cross_entropy(out, y, reduction="none"))
    with pytest.raises(DataError, match=r"^snip: expected the loss to be one number, .* got float"):
        attempt("snip", loss=lambda out, y: 1.0)


def test_a_loss_that_is_not_finite_names_the_batch():
    with pytest.raises(NonFiniteError, match=r"^snip: the loss of batch 1 is nan; check the data"):
        attempt("snip", data=[(X, Y), (X * float("nan"), Y)])


def test_a_gradient_that_is_not_finite_names_the_tensor():
    with pytest.raises(
        NonFiniteError, match=r"^snip: gradient of 'weight': 4 of 4 are NaN or infinite; check the loss"
    ):
        attempt("snip", loss=lambda out, y: (out - out).abs().sum().sqrt())


def test_grasp_cannot_reach_into_a_model_that_computes_its_own_loss():
    class Own(nn.Linear):
        def forward(self, x, labels=None):
            return SimpleNamespace(loss=super().forward(x).square().mean())

    batch = {"x": X, "labels": Y}
    with pytest.raises(
        DataError, match=r"cannot be divided by the temperature 200: pass loss=<function>, or set temp"
    ):
        attempt("grasp", Own(2, 2), data=[batch], loss=None)
    assert attempt("grasp", Own(2, 2), data=[batch], loss=None, temperature=1)["weight"].any()


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare, self.cut = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x + self.cut(x).detach())


@each
def test_weights_without_a_gradient_are_named(name):
    with pytest.raises(
        StructureError, match=rf"^{name}: no gradient reached 'spare.weight', 'cut.weight': the loss does"
    ):
        attempt(name, Partly())


def test_outputs_without_any_gradient_name_every_weight():
    class Cut(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(
        StructureError, match=r"^snip: no gradient reached 'weight': .* leave it out with skip="
    ):
        attempt("snip", Cut(2, 2))


def test_many_weights_without_a_gradient_are_counted():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    with pytest.raises(StructureError, match=r"'4.weight' and 3 more: the loss"):
        attempt("snip", model, loss=lambda out, y: out.detach().sum())


@each
def test_a_network_without_any_gradient_flow_is_not_ranked_by_position(name):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight.data.zero_()
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    with pytest.raises(CollapseError, match=rf"^{name}: all 2 score tensors are zero: no gradient flows"):
        attempt(name, model)


@pytest.mark.parametrize("name", ["taylor", "snip", "grasp", "synflow"])
def test_weights_without_a_value_are_named_before_any_work(name):
    model = nn.Linear(2, 2)
    model.weight.data[1, 1] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"^weight 'weight': 1 of 4 are NaN or infinite; .* load a sound checkpoint"
    ):
        attempt(name, model)


def test_a_layer_used_by_some_batches_only_is_scored():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) if x.shape[0] == 4 else self.b(x)

    scores = attempt("taylor", Sometimes(), data=[(X, Y), (X[:2], Y[:2])])
    assert scores["a.weight"].any()
    assert scores["b.weight"].any()
