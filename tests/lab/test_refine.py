"""The steps refine, zero_dead_neurons and share with a price: codebooks trained in a recipe, resumed, and packed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, OptionError, RecipeError
from secateur.lab.display.progress import Progress
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.state import State
from secateur.lab.steps import Work
from secateur.lab.steps.refine import RefineStep
from secateur.lab.store import Store

TRAIN = {"epochs": 2, "lr": 0.005, "optimizer": "adam", "batch_size": 64}
RECIPE = {
    "data": {"name": "digits"},
    "model": {"name": "lenet-300-100"},
    "lab": {"threads": 1},
    "step": [
        {"kind": "train", **TRAIN},
        {"kind": "prune", "criterion": "rate_distortion", "budget": {"name": "overall", "sparsity": 0.95}},
        {"kind": "zero_dead_neurons"},
        {"kind": "share", "bits": 2},
        {
            "kind": "refine",
            "label": "remake",
            "remake_every": 5,
            "rate": 0.3,
            "latent": "zero_dead_neurons",
            "teacher": "train",
            "distill_alpha": 0.5,
            **TRAIN,
        },
        {"kind": "refine", **TRAIN, "epochs": 1},
        {
            "kind": "share",
            "label": "biases",
            "method": "uniform",
            "bits": 4,
            "parameters": "*.bias",
            "skip": "*.weight",
        },
        {"kind": "pack"},
    ],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("refine"))
    return store, run(Recipe.of(RECIPE), store)


def state(done, label):
    store, ran = done
    return final_state(ran.plan.trials[0], store, label)


def test_weights_choose_anew_at_a_price_and_fewer_are_left(done):
    before, after = state(done, "share"), state(done, "remake")
    for name, book in after.codebooks.items():
        assert torch.equal(book.tensor(), after.model.get_parameter(name).detach())
        assert len(book.values) <= 5
        now, then = book.indices != 0, before.codebooks[name].indices != 0
        assert not bool((now & ~then).any())  # what was masked stays masked
        assert torch.equal(after.masks[name], now)
    left = sum(int((book.indices != 0).sum()) for book in after.codebooks.values())
    assert left < sum(int((book.indices != 0).sum()) for book in before.codebooks.values())
    moved = before.codebooks["fc1.weight"].indices != after.codebooks["fc1.weight"].indices
    assert bool((moved & (after.codebooks["fc1.weight"].indices != 0)).any())


def test_frozen_only_the_values_learn(done):
    before, after = state(done, "remake"), state(done, "refine")
    for name, book in after.codebooks.items():
        then = before.codebooks[name]
        pairs = set(zip(then.indices.flatten().tolist(), book.indices.flatten().tolist()))
        assert len(pairs) == len({old for old, _ in pairs})  # whoever was together still is
    assert not torch.equal(after.codebooks["fc1.weight"].values, before.codebooks["fc1.weight"].values)


def test_shared_biases_join_the_codebooks_before(done):
    after = state(done, "pack")
    assert set(after.codebooks) >= {"fc1.weight", "fc1.bias", "fc3.bias"}
    assert len(after.model.get_parameter("fc1.bias").detach().unique()) <= 15


def test_the_same_recipe_gives_the_same_bytes(done, tmp_path):
    store = Store(tmp_path)
    again = run(Recipe.of(RECIPE), store)
    assert final_state(again.plan.trials[0], store).files == state(done, "pack").files


def changed(index: int, **options):
    recipe = copy.deepcopy(RECIPE)
    recipe["step"][index] |= options
    return recipe


def test_options_that_do_not_belong_together_are_refused_before_any_work(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RecipeError, match="belong to remake_every"):
        run(Recipe.of(changed(5, rate=0.1)), store)
    with pytest.raises(RecipeError, match=r"did you mean .zero_dead_neurons."):
        run(Recipe.of(changed(4, latent="zero_dead_neuron")), store)
    with pytest.raises(OptionError, match="keep='last'"):
        run(Recipe.of(changed(4, keep="best")), store)


def test_without_codebooks_there_is_nothing_to_train(tmp_path):
    recipe = copy.deepcopy(RECIPE)
    recipe["step"] = [recipe["step"][0] | {"epochs": 1}, {"kind": "refine", **TRAIN}]
    with pytest.raises(NothingToDoError, match="no codebook to train; share with"):
        run(Recipe.of(recipe), Store(tmp_path))


def test_zero_dead_neurons_says_what_was_idle(done):
    _, ran = done
    rows = [m for m in ran.measurements if m.name == "idle_weights"]
    assert rows
    before = sum(int((p != 0).sum()) for p in state(done, "prune").model.parameters())
    after = sum(int((p != 0).sum()) for p in state(done, "zero_dead_neurons").model.parameters())
    assert rows[0].value == before - after


def test_biases_of_neurons_that_are_gone_stay_zero():
    """In front of a batch norm a bias has a gradient of rounding errors, which Adam makes into steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    keep = torch.ones(8, dtype=torch.bool)
    keep[2:5] = False
    with torch.no_grad():
        model[0].weight[2:5] = model[0].bias[2:5] = 0.0
        model[1].bias.fill_(0.5)
    shared = sc.share(model, bits=2)
    state = State(shared.model, masks=sc.Masks({"0.bias": keep}), codebooks=dict(shared.codebooks))
    work = Work(sc.data.load("digits"), nn.Module, "cpu", 0, None, Progress(), lambda label: state)
    after = RefineStep(epochs=1, batch_size=64, optimizer="adam").run(state, work).state
    assert not after.model[0].bias[2:5].any()
    assert after.model[0].bias[:2].any()
