"""Rewinding: a training that goes back to a saved step continues from there to the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur.errors import OptionError, RecipeError, StoreError
from secateur.lab.engine import final_state, run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.training import Snapshot, TrainingContext, TrainingOptions, train

OPTIONS = TrainingOptions(
    epochs=4, lr=0.1, batch_size=45, schedule="step", milestones=(2,), augment="crop", save_at=6
)


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=200)  # 180 to train on: 4 steps in an epoch


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_going_back_into_the_middle_of_an_epoch_gives_the_same_bits(digits):
    first, second = net(), net(1)
    straight = train(first, digits, OPTIONS, device="cpu")
    saved = Snapshot.from_bytes(straight.snapshot.to_bytes())
    assert saved.step == 6
    again = train(second, digits, OPTIONS, device="cpu", context=TrainingContext(rewind=saved))
    assert same(first, second)
    assert [record.epoch for record in again.history] == [2, 3, 4]
    assert [record.lr for record in again.history] == pytest.approx([0.1, 0.01, 0.01])
    assert again.history[-1].train_loss == straight.history[-1].train_loss


def test_the_rate_alone_goes_back(digits):
    model, started = net(), net()
    saved = train(net(1), digits, OPTIONS, device="cpu").snapshot
    context = TrainingContext(rewind=saved, rewind_weights=False)
    trained = train(model, digits, OPTIONS, device="cpu", context=context)
    assert [record.epoch for record in trained.history] == [2, 3, 4]
    train(started, digits, OPTIONS, device="cpu", context=TrainingContext(rewind=saved))
    assert not same(model, started)  # its weights were its own


def test_a_stopped_training_keeps_its_snapshot(digits, tmp_path):
    class Stop:
        def start(self, *_):
            pass

        def step(self, *_):
            pass

        def epoch(self, record):
            if record.epoch == 3:
                raise KeyboardInterrupt

        def finish(self):
            pass

    file = tmp_path / "train.safetensors"
    straight = train(net(), digits, OPTIONS, device="cpu")
    context = TrainingContext(checkpoint=file, progress=Stop())
    with pytest.raises(KeyboardInterrupt):
        train(net(), digits, OPTIONS, device="cpu", context=context)
    again = train(net(), digits, OPTIONS, device="cpu", context=TrainingContext(checkpoint=file))
    assert again.snapshot.step == 6
    weights = [name for name in straight.snapshot.tensors if name.startswith("model/")]
    assert all(torch.equal(straight.snapshot.tensors[name], again.snapshot.tensors[name]) for name in weights)


def test_what_cannot_be_is_refused(digits):
    saved = train(net(), digits, OPTIONS, device="cpu").snapshot
    with pytest.raises(OptionError, match="save_at: expected a step below 4, as 1 epochs of 4 have, got 6"):
        train(net(), digits, TrainingOptions(epochs=1, batch_size=45, save_at=6), device="cpu")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(
        OptionError, match="has another shape than in the snapshot; rewind before the model is shrunk"
    ):
        train(other, digits, OPTIONS, device="cpu", context=TrainingContext(rewind=saved))
    with pytest.raises(StoreError, match="a training's snapshot: expected what secateur writes"):
        Snapshot.from_bytes(b"12345678 nothing of the kind")


TICKET = """
data = {name = "digits", limit = 200}
model = {name = "lenet-300-100"}
step = [
  {kind = "train", epochs = 2, lr = 0.05, batch_size = 45, save_at = 3, label = "dense"},
  {kind = "prune", budget = 0.5},
  {kind = "retrain", epochs = 2, lr = 0.05, batch_size = 45, rewind = "dense"},
]
"""


def test_a_lottery_ticket_as_a_recipe(tmp_path):
    recipe = Recipe.parse(TICKET)
    store = Store(tmp_path)
    ran = run(recipe, store)
    assert final_state(ran.plan.trials[0], store).masks.sparsity == pytest.approx(0.5, abs=0.01)
    epochs = [item.context["epoch"] for item in ran.measurements if item.name == "epoch_loss"]
    assert epochs == [1, 2, 1, 2]  # the second one begins at step 3 of 4 in epoch 1
    changed = Recipe.parse(TICKET.replace("save_at = 3", "save_at = 2"))
    assert plan(recipe).keys()[-1] != plan(changed).keys()[-1]
    with pytest.raises(RecipeError, match="rewind to 'dens', which is no earlier step; did you mean 'dense'"):
        plan(Recipe.parse(TICKET.replace('rewind = "dense"', 'rewind = "dens"')))


def test_a_training_without_a_snapshot_is_named(tmp_path):
    with pytest.raises(OptionError, match="step 'dense' has no snapshot to rewind to"):
        run(Recipe.parse(TICKET.replace("save_at = 3, ", "")), Store(tmp_path))
