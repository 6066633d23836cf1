"""Limits that the measurements of a run must hold."""

from __future__ import annotations

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.requirements import Requirement, unmet


def measured(trial: int, variant: str, **values: float) -> list[Measurement]:
    context = {"trial": trial, "variant": variant, "step": "measure"}
    return [Measurement(name, value, context=context) for name, value in values.items()]


ROWS = Measurements(
    [
        *measured(0, "dense", accuracy=0.98, macs=100),
        *measured(0, "small", accuracy=0.95, macs=40),
        Measurement("accuracy", 0.1, context={"trial": 0, "variant": "train", "epoch": 3}),
        *measured(1, "dense", accuracy=0.98, macs=100),
        *measured(1, "small", accuracy=float("nan"), macs=50),
    ]
)


@pytest.mark.parametrize(
    ("text", "failing"),
    [
        ("dense.accuracy >= 0.98", []),
        ("macs<=50", []),
        ("macs<=49", ["trial 2: macs: at most 49 is required, got 50"]),
        ("small.macs >= 41", ["trial 1: small.macs: at least 41 is required, got 40"]),
        (
            "accuracy>=0.96",
            [
                "trial 1: accuracy: at least 0.96 is required, got 0.95",
                "trial 2: accuracy: at least 0.96 is required, got nan",  # what diverged holds no limit
            ],
        ),
        ("accuracy<=1", ["trial 2: accuracy: at most 1 is required, got nan"]),
    ],
)
def test_the_last_measurement_of_each_trial_is_held_to_the_limit(text, failing):
    assert unmet([Requirement.of(text)], ROWS) == failing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy>=0.9", "acuracy was not measured: did you mean 'accuracy'"),
        ("smal.macs<=9", "smal.macs was not measured: did you mean 'small'"),
        ("accuracy=0.9", "expected NAME>=NUMBER or NAME<=NUMBER"),
        ("accuracy>=high", "expected NAME>=NUMBER or NAME<=NUMBER"),
        ("accuracy>=nan", "expected NAME>=NUMBER or NAME<=NUMBER"),
    ],
)
def test_a_limit_of_nothing_is_refused(text, message):
    with pytest.raises(OptionError, match=message):
        unmet([Requirement.of(text)], ROWS)
    with pytest.raises(OptionError, match="nothing was measured"):
        unmet([Requirement.of("accuracy>=0.5")], [])


def test_a_recipe_holds_limits_and_refuses_others_when_it_is_read():
    table = {"require": ["accuracy >= 0.5"], "step": [{"kind": "prune", "budget": 0.5}]}
    recipe = Recipe.of(table)
    assert Recipe.of(recipe.plain()).require == ("accuracy >= 0.5",)
    assert "require" not in Recipe.of({"step": table["step"]}).plain()
    with pytest.raises(RecipeError, match=r"require: expected NAME>=NUMBER .* got 'accuracy > 0.5'"):
        Recipe.of({**table, "require": ["accuracy > 0.5"]})


def test_labels_and_names_may_have_spaces_and_signs():
    limit = Requirement.of("my step.mAP@50 >= 0.5")
    assert (limit.variant, limit.name, limit.limit) == ("my step", "mAP@50", 0.5)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "train", "epochs": True},
        {"kind": "measure", "batch": True},
        {"kind": "measure", "batch": [1, True]},
        {"kind": "prune", "budget": True},
    ],
)
def test_true_is_no_number_of_a_recipe(table):
    with pytest.raises(RecipeError, match="expected a number, got true"):
        Recipe.of({"step": [table]})
    assert Recipe.of({"step": [{"kind": "measure", "bias": True}]}).steps[0].bias is True


def test_a_range_without_a_step_is_no_word():
    with pytest.raises(RecipeError, match="expected first:last:step, such as 2:6:1, or values with commas"):
        Recipe.of({"step": [{"kind": "share", "bits": 3}]}, grid=["share.bits=2:6"])
