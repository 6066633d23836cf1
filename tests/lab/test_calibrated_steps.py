"""The steps `compensate` and `share` with `calibrate`, in recipes on embedded data."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import NothingToDoError, RecipeError
from secateur.lab.calibration import CalibrationImages
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.training.loop import evaluate

TRAIN = {"kind": "train", "epochs": 6, "lr": 0.05, "batch_size": 32}
PRUNE = {"kind": "prune", "budget": 0.96}


def recipe(*steps):
    return Recipe.of(
        {
            "data": {"name": "digits", "limit": 600},
            "model": {"name": "lenet-300-100"},
            "lab": {"threads": 1},
            "step": list(steps),
        }
    )


def last(store, *steps):
    ran = run(recipe(*steps), store)
    return final_state(ran.plan.trials[0], store)


def accuracy(state):
    from secateur import data

    return evaluate(state.model, data.load_for(state.model, "digits", limit=600).test, device="cpu")[
        "accuracy"
    ]


def test_compensating_brings_accuracy_back_and_holds_masks(tmp_path):
    store = Store(tmp_path)
    dense, pruned = last(store, TRAIN), last(store, TRAIN, PRUNE)
    made = last(store, TRAIN, PRUNE, {"kind": "compensate", "dense": "train", "calibrate": 400})
    assert accuracy(pruned) < accuracy(dense) - 0.1
    assert accuracy(made) > (accuracy(pruned) + 2 * accuracy(dense)) / 3
    assert made.masks == pruned.masks
    for name, mask in made.masks.items():
        assert not bool(made.model.get_parameter(name)[~mask].any())


def test_layers_lose_by_the_error_that_they_cause(tmp_path):
    store = Store(tmp_path)
    plain = {"kind": "compensate", "dense": "train", "calibrate": 400}
    prune = {**PRUNE, "budget": 0.92}
    before, made = last(store, TRAIN, prune, plain), last(store, TRAIN, prune, {**plain, "shares": True})
    assert abs(made.masks.sparsity - before.masks.sparsity) < 0.002
    lost = {name: 1 - float(mask.float().mean()) for name, mask in made.masks.items()}
    assert max(lost.values()) - min(lost.values()) > 0.05, lost
    for name, mask in made.masks.items():
        assert not bool(made.model.get_parameter(name)[~mask].any())
    assert accuracy(made) > accuracy(before)
    with pytest.raises(RecipeError, match="for masks of single weights"):
        last(store, TRAIN, {**PRUNE, "granularity": "channel", "budget": 0.5}, {**plain, "shares": True})


def test_addresses_of_compensating_without_shares_stay():
    from secateur.lab.steps.compensate import CompensateStep

    assert "shares" not in CompensateStep(dense="train").chosen()
    assert CompensateStep(dense="train", shares=True).chosen()["shares"] is True


def test_sharing_on_images_is_better_and_survives_the_store(tmp_path):
    store = Store(tmp_path)
    plain = last(store, TRAIN, {"kind": "share", "bits": 1})
    tuned = {"passes": 1, "lr": 0.02, "assignments": "learnt"}
    found = last(store, TRAIN, {"kind": "share", "bits": 1, "calibrate": 400, **tuned})
    assert accuracy(found) > accuracy(plain)
    for name, book in found.codebooks.items():
        assert torch.equal(found.model.get_parameter(name), book.tensor())
    dense = last(
        store,
        TRAIN,
        PRUNE,
        {"kind": "compensate", "dense": "train", "calibrate": 400, "reselect": True, "passes": 1},
        {"kind": "share", "bits": 3, "calibrate": 400, "dense": "train"},
        {"kind": "pack"},
    )
    assert accuracy(dense) > accuracy(last(store, TRAIN, PRUNE))


def test_addresses_of_sharing_without_images_stay():
    from secateur.lab.steps.share import ShareStep

    assert not {"calibrate", "dense", "passes"} & set(ShareStep(bits=3).chosen())
    assert ShareStep(bits=3, calibrate=10).chosen()["calibrate"] == 10
    assert "lr" not in ShareStep(bits=3, calibrate=10, passes=2).chosen()
    assert ShareStep(bits=3, calibrate=10, passes=2, lr=0.1).chosen()["lr"] == 0.1


def test_images_are_drawn_anew_in_every_pass_and_alike_in_every_run():
    from secateur import data

    split = data.load("digits").train
    one, two = (CalibrationImages(split, 50, 25, augment="crop") for _ in range(2))
    first, second = list(one), list(one)
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first, two, strict=True))


def test_what_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RecipeError, match=r"dense 'trian' is no earlier step; did you mean 'train'\?"):
        run(recipe(TRAIN, PRUNE, {"kind": "compensate", "dense": "trian"}), store)
    with pytest.raises(RecipeError, match="name the step after which it was dense"):
        run(recipe(TRAIN, PRUNE, {"kind": "compensate"}), store)
    with pytest.raises(RecipeError, match="need calibrate"):
        run(recipe(TRAIN, {"kind": "share", "bits": 2, "passes": 3}), store)
    with pytest.raises(RecipeError, match="lr, blocks, precision, assignments are for passes"):
        run(recipe(TRAIN, {"kind": "share", "bits": 2, "calibrate": 20, "assignments": "learnt"}), store)
    with pytest.raises(NothingToDoError, match="nothing was pruned before it"):
        run(recipe(TRAIN, {"kind": "compensate", "dense": "train"}), store)


DIRECT = {"kind": "compensate", "dense": "train", "calibrate": 50, "shares": True}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": {"name": "n_of_m", "n": 2, "m": 4}}, "budget 'n_of_m' of step 'prune'"),
        (
            {"budget": 0.5, "granularity": {"name": "block", "height": 2, "width": 2}},
            "granularity 'block' of step 'prune'",
        ),
        ({"budget": 0.5, "granularity": "kernel"}, "granularity 'kernel' of step 'prune'"),
    ],
)
def test_masks_of_a_pattern_are_not_chosen_again_by_shares(options, said):
    from secateur.lab.planning import plan

    steps = [TRAIN, {"kind": "prune", **options}]
    if options.get("granularity") == "kernel":
        made = Recipe.of(
            {"data": {"name": "digits", "limit": 60}, "model": {"name": "cnn"}, "step": [*steps, DIRECT]}
        )
    else:
        made = recipe(*steps, DIRECT)
    with pytest.raises(RecipeError, match=f"expected granularity 'element' .*got {said}; leave shares out"):
        plan(made)
    assert plan(recipe(*steps[:1], {"kind": "scan"}, {"kind": "prune", "budget": 0.5}, DIRECT)).trials


def test_masks_of_a_pattern_from_training_are_refused_and_those_that_were_shrunk_are_not():
    from secateur.lab.steps.compensate import CompensateStep
    from secateur.lab.steps.prune import PruneStep
    from secateur.lab.steps.shrink import ShrinkStep
    from secateur.lab.steps.train import TrainStep

    step, pattern = CompensateStep(shares=True), {"name": "n_of_m"}
    sparse = TrainStep(label="sparse", epochs=1, sparsify={"name": "straight_through", "budget": pattern})
    with pytest.raises(RecipeError, match="got budget 'n_of_m' of step 'sparse'"):
        step.check_after([sparse])
    cut = PruneStep(granularity="channel")
    step.check_after([cut, ShrinkStep(), PruneStep()])
    with pytest.raises(RecipeError, match="got granularity 'channel'"):
        step.check_after([cut, PruneStep()])
    CompensateStep().check_after([cut, sparse])


def test_layers_that_lose_nothing_do_not_count_among_what_the_others_lose(tmp_path):
    store = Store(tmp_path)
    one = {
        "kind": "prune",
        "label": "one",
        "budget": {"name": "per_layer", "table": {"fc1": 0.8, "fc2": 0.6}},
    }
    before = last(store, TRAIN, one)
    assert any(bool(mask.all()) for mask in before.masks.values())
    made = last(store, TRAIN, one, {**DIRECT, "calibrate": 200})
    removed = [state.masks.numel - state.masks.kept for state in (before, made)]
    assert abs(removed[1] - removed[0]) < 0.002 * removed[0]
    assert set(made.masks) == set(before.masks)
