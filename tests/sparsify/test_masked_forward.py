"""Straight-through masks and movement scores: two steps worked by hand, and a training with each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import data as datasets
from secateur.errors import NothingToDoError, OptionError
from secateur.lab.training import TrainingContext, TrainingOptions, train


def layer(*values: float) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.data.copy_(torch.tensor([values]))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(active, model, optimizer) -> float:
    active.before_forward()
    output = model(torch.tensor([[1.0, 2.0]]))
    ((output - 6.0) ** 2 / 2).sum().backward()
    active.before_step()
    optimizer.step()
    optimizer.zero_grad()
    active.after_step()
    return output.item()


def test_straight_through_by_hand():
    # weights (2, 1.5): the mask keeps 2, y = 2, the slope of the loss is -4 * x = (-4, -8): dense weights (2.4, 2.3);
    # then y = 2.4, -3.6 * x = (-3.6, -7.2): (2.76, 3.02); at the end the second one is larger and stays
    model, optimizer = layer(2.0, 1.5)
    active = sc.sparsify.StraightThrough().start(model)
    assert step(active, model, optimizer) == 2.0
    assert model.weight[0].tolist() == pytest.approx([2.4, 2.3])
    with active.shown():
        assert model.weight[0].tolist() == pytest.approx([2.4, 0.0])
    assert step(active, model, optimizer) == pytest.approx(2.4)
    assert model.weight[0].tolist() == pytest.approx([2.76, 3.02])
    assert active.finish()["weight"].tolist() == [[False, True]]
    assert model.weight[0].tolist() == pytest.approx([0.0, 3.02])


def test_removed_weights_decay():
    # the gradient of the removed one is -8 + 0.5 * 1.5
    model, optimizer = layer(2.0, 1.5)
    active = sc.sparsify.StraightThrough(decay=0.5).start(model)
    step(active, model, optimizer)
    assert model.weight[0].tolist() == pytest.approx([2.4, 1.5 + 0.1 * 7.25])


def test_movement_scores_by_hand():
    # at step 0 nothing is removed: y = 2 + 3 = 5, slopes -1 * x = (-1, -2); S = 0.1 * (1 * 2, 2 * 1.5) = (0.2, 0.3)
    # and w = (2.1, 1.7). At step 1 of 2 half is removed: the first. y = 3.4, slopes (-2.6, -5.2); S = (0.2 + 0.1 *
    # 2.6 * 2.1, 0.3 + 0.1 * 5.2 * 1.7) = (0.746, 1.184)
    model, optimizer = layer(2.0, 1.5)
    active = sc.sparsify.MovementScores(0.5, lr=0.1, every=1, until=0.5).start(model, steps=2)
    assert step(active, model, optimizer) == 5.0
    assert active.scores["weight"][0].tolist() == pytest.approx([0.2, 0.3])
    assert step(active, model, optimizer) == pytest.approx(3.4)
    assert active.scores["weight"][0].tolist() == pytest.approx([0.746, 1.184])
    assert active.finish()["weight"].tolist() == [[False, True]]
    assert model.weight[0, 0] == 0.0


def test_a_training_without_the_calls_is_an_error():
    method = "straight_through: .* got 0 calls of before_forward.. and 1 of after_step"
    model, _ = layer(2.0, 1.5)
    active = sc.sparsify.StraightThrough().start(model)
    active.after_step()
    with pytest.raises(NothingToDoError, match=method):
        active.finish()
    assert model.weight[0].tolist() == [2.0, 1.5]


def test_the_whole_sparsity_is_reached_where_training_is_shorter_than_said():
    model, optimizer = layer(2.0, 1.5)
    active = sc.sparsify.MovementScores(0.5, every=1).start(model, steps=1000)
    step(active, model, optimizer)
    assert active.finish()["weight"].sum() == 1


def test_wrong_options_are_named():
    with pytest.raises(OptionError, match="decay: expected 0 or more, got -1"):
        sc.sparsify.StraightThrough(decay=-1)
    with pytest.raises(OptionError, match="movement_scores: expected steps="):
        sc.sparsify.MovementScores(0.5).start(layer(1.0, 2.0)[0])
    with pytest.raises(OptionError, match="until: expected a share 0 < until < 1, got 1"):
        sc.sparsify.MovementScores(0.5, until=1)


# -- in the training loop --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=200)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


METHODS = [sc.sparsify.StraightThrough(budget=0.8, every=2), sc.sparsify.MovementScores(0.8, every=3)]


def options(method) -> TrainingOptions:
    return TrainingOptions(epochs=10, lr=0.1, batch_size=20, sparsify=method)


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


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_training_ends_with_the_share_removed_and_goes_on_to_the_bit(digits, method, tmp_path):
    whole, stopped, resumed = net(), net(), net()
    trained = train(whole, digits, options(method), device="cpu")
    assert trained.masks.numel - trained.masks.kept == pytest.approx(0.8 * trained.masks.numel, abs=2)
    assert trained.history[-1].train_accuracy > 0.6
    for name, mask in trained.masks.items():
        assert (dict(whole.named_parameters())[name][~mask] == 0).all()
    file = tmp_path / "train.safetensors"
    context = TrainingContext(checkpoint=file, progress=Stop())
    with pytest.raises(KeyboardInterrupt):
        train(stopped, digits, options(method), device="cpu", context=context)
    again = train(resumed, digits, options(method), device="cpu", context=TrainingContext(checkpoint=file))
    assert again.masks == trained.masks
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
