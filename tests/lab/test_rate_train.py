"""The step rate_train: bytes believed and measured, resuming, and the file that comes of it."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.errors import OptionError, RecipeError
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.steps import rate_train
from secateur.lab.store import Store

TRAIN = {"epochs": 2, "lr": 0.005, "optimizer": "adam", "batch_size": 64}
RECIPE = {
    "data": {"name": "digits"},
    "model": {"name": "lenet-300-100"},
    "lab": {"threads": 1},
    "step": [
        {"kind": "train", **TRAIN},
        {
            "kind": "rate_train",
            "target": 6000,
            **TRAIN,
            "epochs": 3,
            "teacher": "train",
            "distill_alpha": 0.5,
        },
        {"kind": "share", "method": "exact"},
        {"kind": "pack", "names": "model", "coder": "strong"},
    ],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("rate"))
    return store, run(Recipe.of(RECIPE), store)


def values(done):
    return {(row.name, row.context.get("epoch")): row.value for row in done[1].measurements}


def state(done, label):
    return final_state(done[1].plan.trials[0], done[0], label)


def test_the_real_file_is_measured_beside_what_was_believed(done):
    found = values(done)
    sizes = [found["epoch_validation_file_bytes", epoch] for epoch in (1, 2, 3)]
    believed = [found["epoch_validation_estimated_bytes", epoch] for epoch in (1, 2, 3)]
    assert sizes[2] < sizes[0]
    assert all(abs(a - b) < 0.4 * a for a, b in zip(sizes, believed))  # it falls to a quarter within an epoch
    assert found["measured_bytes", None] == sizes[2]
    assert found["estimated_bytes", None] == believed[2]


def test_the_file_has_the_bytes_measured_last_and_few_values(done):
    found = values(done)
    assert found["file_bytes", None] == pytest.approx(found["measured_bytes", None], rel=0.03)
    model = state(done, "pack").model
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            assert len(torch.unique(weight)) <= 7, name


def test_biases_are_priced_and_those_that_left_stay_away(tmp_path):
    recipe = copy.deepcopy(RECIPE)
    recipe["step"][1] |= {"biases": 4, "target": 2000}
    recipe["step"].insert(3, {"kind": "refine", "epochs": 1, "batch_size": 64})
    recipe["step"][4]["biases"] = 4
    store = Store(tmp_path)
    ran = run(Recipe.of(recipe), store)
    trained, packed = (final_state(ran.plan.trials[0], store, label) for label in ("rate_train", "pack"))
    zeros = {name: b == 0 for name, b in trained.model.named_parameters() if name.endswith("bias")}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 100  # of 410
    for name, zero in zeros.items():
        assert torch.equal(trained.masks[name], ~zero)
        assert not packed.model.get_parameter(name)[zero].any(), name


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(done, tmp_path, monkeypatch):
    store = Store(tmp_path)
    measure, calls = rate_train._ByteWatch.measure, []

    def stop(self):
        calls.append(1)
        if len(calls) == 3:  # at the start, after epoch 1, and in epoch 2
            raise KeyboardInterrupt
        measure(self)

    monkeypatch.setattr(rate_train._ByteWatch, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run(Recipe.of(RECIPE), store)
    monkeypatch.undo()
    again = run(Recipe.of(RECIPE), store)
    assert final_state(again.plan.trials[0], store, "pack").files == state(done, "pack").files


def test_the_last_epoch_is_the_one_kept(tmp_path):
    recipe = copy.deepcopy(RECIPE)
    recipe["step"][1]["keep"] = "best"
    with pytest.raises(OptionError, match="the bytes are those of the last epoch"):
        run(Recipe.of(recipe), Store(tmp_path))


def test_training_starts_from_an_earlier_step_of_the_same_widths(tmp_path):
    recipe = copy.deepcopy(RECIPE)
    recipe["step"] = recipe["step"][:2]
    recipe["step"].insert(1, {"kind": "prune", "label": "cut", "budget": 0.99})
    recipe["step"][2] |= {"epochs": 1, "lr": 1e-9, "target": 100_000, "start": "train", "warmup": 0}
    store = Store(tmp_path)
    ran = run(Recipe.of(recipe), store)
    before = final_state(ran.plan.trials[0], store, "train").model.fc1.weight
    after = final_state(ran.plan.trials[0], store, "rate_train").model.fc1.weight
    assert int((after != 0).sum()) > 0.5 * after.numel()  # not from the pruned network
    assert bool((after.sign() * before.sign() >= 0).all())
    recipe["step"][2]["start"] = "trian"
    with pytest.raises(RecipeError, match=r"start 'trian' is no earlier step; did you mean .train"):
        run(Recipe.of(recipe), store)
