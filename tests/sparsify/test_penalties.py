"""Penalties of sparse training: values and gradients worked by hand on two coupled channels; a training with each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import data as datasets
from secateur.errors import NothingToDoError, OptionError
from secateur.lab.training import GradualPruning, TrainingContext, TrainingOptions, train

EXAMPLE = torch.zeros(1, 2)


def coupled() -> nn.Sequential:
    """Channel 0 is row (3, 0) and column (4), of norm 5; channel 1 is row (0, 1) and column (0), of norm 1."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    model[0].bias.data.fill_(7.0)  # takes no part
    model[2].weight.data.copy_(torch.tensor([[4.0, 0.0]]))
    return model


def gradients(model: nn.Module, penalty: torch.Tensor) -> dict[str, list]:
    model.zero_grad()
    penalty.backward()
    return {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None}


def test_group_lasso_sums_the_norms_of_coupled_channels():
    model = coupled()
    active = sc.sparsify.GroupLasso(0.1).start(model, example=EXAMPLE)
    penalty = active.penalty()
    root = math.sqrt(3)  # three weights in each channel
    assert penalty.item() == pytest.approx(0.1 * root * (5 + 1))
    found = gradients(model, penalty)
    assert found["0.weight"][0] == pytest.approx([0.1 * root * 3 / 5, 0.0])
    assert found["0.weight"][1] == pytest.approx([0.0, 0.1 * root])
    assert found["2.weight"][0] == pytest.approx([0.1 * root * 4 / 5, 0.0])
    assert "0.bias" not in found
    plain = sc.sparsify.GroupLasso(0.1, by_size=False).start(model, example=EXAMPLE)
    assert plain.penalty().item() == pytest.approx(0.6)


def test_a_unit_that_is_zero_has_a_gradient_of_zero_and_not_nan():
    model = coupled()
    model[0].weight.data[1] = 0.0
    found = gradients(model, sc.sparsify.GroupLasso(0.1).start(model, example=EXAMPLE).penalty())
    assert found["0.weight"][1] == [0.0, 0.0]


def test_group_sparse_shrinks_the_smallest_unit_sixteen_times_as_strongly():
    model = coupled()
    penalty = sc.sparsify.GroupSparse(0.1, alpha=4.0).start(model, example=EXAMPLE).penalty()
    assert penalty.item() == pytest.approx(0.05 * (1 * 25 + 16 * 1))
    found = gradients(model, penalty)  # strength * g * w
    assert found["0.weight"] == [pytest.approx([0.3, 0.0]), pytest.approx([0.0, 1.6])]
    assert found["2.weight"] == [pytest.approx([0.4, 0.0])]


def test_bn_l1_has_the_sign_of_each_scale_as_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight.data.copy_(torch.tensor([0.5, -2.0]))
    penalty = sc.sparsify.BnL1(0.1).start(model).penalty()
    assert penalty.item() == pytest.approx(0.25)
    assert gradients(model, penalty) == {"1.weight": pytest.approx([0.1, -0.1])}
    with pytest.raises(
        NothingToDoError, match="bn_l1: Sequential has no batch norm with a scale that is trained"
    ):
        sc.sparsify.BnL1().start(coupled())


def test_growing_decay_of_what_was_chosen_and_its_removal():
    model = coupled()
    active = sc.sparsify.Growing(delta=0.5, every=2, most=0.8, budget=0.5).start(model, example=EXAMPLE)
    assert active.penalty().item() == pytest.approx(0.5 / 2 * 1)  # channel 1 only
    assert gradients(model, active.penalty())["0.weight"] == [[0.0, 0.0], [0.0, 0.5]]
    seen = []
    for _ in range(4):
        seen.append(active.penalty().item())
        active.after_step()
    # r is 0.5 for two steps and then 0.8, not 1
    assert [round(value / seen[0], 6) for value in seen] == [1.0, 1.0, 1.6, 1.6]
    masks = active.finish()
    assert masks["0.weight"].tolist() == [[True, True], [False, False]]
    assert model[0].weight[1].tolist() == [0.0, 0.0]


def test_growing_decay_of_all_units_and_by_rank():
    every = sc.sparsify.Growing(delta=0.5, every=1, which="all").start(coupled(), example=EXAMPLE)
    assert every.penalty().item() == pytest.approx(0.5 / 2 * 26)
    ranked = sc.sparsify.Growing(delta=0.5, every=1, which="ranked").start(coupled(), example=EXAMPLE)
    assert ranked.penalty().item() == pytest.approx(0.5 / 2 * (0 * 25 + 1 * 1))
    ranked.after_step()
    assert ranked.penalty().item() == pytest.approx(1.0 / 2 * 1)
    assert ranked.finish() is None


def test_admm_by_hand():
    # (3, 1): z = (3, 0), u = 0, penalty 0.5 / 2 * 1, gradient (0, 0.5). With (2, 1.5) after a step: w + u = (2, 1.5),
    # z = (2, 0), u = (0, 1.5): penalty 0.5 / 2 * (0 + 3**2). With (1, 2) after another: w + u = (1, 3.5), z = (0, 3.5),
    # u = (1, 0): 0.5 / 2 * (2**2 + 1.5**2); at the end (1, 2) itself is pruned
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    active = sc.sparsify.Admm(strength=0.5, every=1).start(model)
    assert gradients(model, active.penalty()) == {"weight": [[0.0, 0.5]]}
    for weights, expected in (([[2.0, 1.5]], 0.25 * 9), ([[1.0, 2.0]], 0.25 * (4 + 2.25))):
        model.weight.data.copy_(torch.tensor(weights))
        active.after_step()
        assert model.weight.tolist() == weights
        assert active.penalty().item() == pytest.approx(expected)
    assert active.finish()["weight"].tolist() == [[False, True]]
    assert model.weight.tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: sc.sparsify.Growing(which="some"), "which: expected one of chosen, all, ranked, got 'some'"),
        (lambda: sc.sparsify.Growing(every=0), "every: expected a whole number of at least 1, got 0"),
        (lambda: sc.sparsify.GroupSparse(alpha=0.0), "alpha: expected a number above 0, got 0.0"),
        (lambda: sc.sparsify.GroupLasso(float("inf")), "strength: expected a number above 0, got inf"),
    ],
)
def test_wrong_options_are_named(wrong, text):
    with pytest.raises(OptionError, match=text):
        wrong()


# -- in the training loop --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=200)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    ).eval()


METHODS = [
    sc.sparsify.BnL1(0.01),
    sc.sparsify.GroupLasso(0.01),
    sc.sparsify.GroupSparse(0.01),
    sc.sparsify.Growing(delta=0.1, every=2, which="all"),
    sc.sparsify.Growing(delta=0.1, every=2, which="ranked"),
    sc.sparsify.Growing(delta=0.1, every=2),
]


def options(method, epochs: int = 3) -> TrainingOptions:
    return TrainingOptions(epochs=epochs, lr=0.05, batch_size=50, sparsify=method)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_training_with_it_ends_with_smaller_weights(digits, method):
    plain, sparse = net(), net()
    train(plain, digits, options(None), device="cpu")
    trained = train(sparse, digits, options(method), device="cpu")

    def size(model: nn.Module) -> float:
        tensors = (
            [model[2].weight] if isinstance(method, sc.sparsify.BnL1) else [model[1].weight, model[4].weight]
        )
        return sum(float(tensor.detach().norm()) for tensor in tensors)

    assert size(sparse) < 0.99 * size(plain)
    chosen = getattr(method, "which", "") == "chosen"
    assert (trained.masks is not None) == chosen
    if chosen:
        assert int(trained.masks["1.weight"].any(1).sum()) == 8
        assert int((sparse[1].weight != 0).any(1).sum()) == 8


@pytest.mark.parametrize("method", [METHODS[4], METHODS[5], sc.sparsify.Admm(0.01, every=3)], ids=repr)
def test_a_stopped_training_goes_on_to_the_bit(digits, method, tmp_path):
    class Stop:
        def start(self, *_):
            pass

        def step(self, *_):
            pass

        def epoch(self, record):
            if record.epoch == 2:
                raise KeyboardInterrupt

        def finish(self):
            pass

    whole, stopped, file = net(), net(), tmp_path / "train.safetensors"
    straight = train(whole, digits, options(method), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(
            stopped,
            digits,
            options(method),
            device="cpu",
            context=TrainingContext(checkpoint=file, progress=Stop()),
        )
    resumed = train(net(), digits, options(method), device="cpu", context=TrainingContext(checkpoint=file))
    assert resumed.resumed_from == 2
    again = net()
    train(again, digits, options(method), device="cpu", context=TrainingContext(checkpoint=file))
    assert straight.history[-1].train_loss == resumed.history[-1].train_loss
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_what_does_not_go_together_is_refused(digits):
    with pytest.raises(OptionError, match="sparsify: gradual pruning chooses the masks itself"):
        train(net(), digits, options("bn_l1"), pruning=GradualPruning(0.5), device="cpu")


def test_a_recipe_names_the_method_and_old_addresses_stay():
    from secateur.lab.steps import registry

    step = registry.get("train")(epochs=1, sparsify={"name": "group_lasso", "strength": 0.1})
    assert step.training().sparsify == sc.sparsify.GroupLasso(0.1)
    assert step.chosen()["sparsify"] == {"name": "group_lasso", "strength": 0.1}
    assert "sparsify" not in registry.get("train")(epochs=1).chosen()
    refine = registry.get("refine")(sparsify="bn_l1")
    with pytest.raises(OptionError, match="sparsify makes single weights small, and here they share values"):
        refine.check(net(), [])


def test_a_strength_that_is_no_number_is_named():
    with pytest.raises(OptionError, match="strength: expected a number above 0, got '1e-4'"):
        sc.sparsify.GroupLasso(strength="1e-4")
