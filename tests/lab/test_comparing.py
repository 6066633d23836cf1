"""Comparing methods: what each changes in a recipe, intervals and tests worked by hand, and a whole comparison."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, OptionError, RecipeError
from secateur.lab import comparing
from secateur.lab.comparing import METHODS, compare_methods, comparison_recipe
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

RECIPE = """
name = "tiny"
data = {name = "digits", limit = 120, size = 28, channels = 1}
model = {name = "lenet5"}
lab = {threads = 1}
step = [
  {kind = "train", epochs = 1, lr = 0.02, batch_size = 30},
  {kind = "prune", granularity = "channel", budget = {name = "macs", keep = 0.5}},
  {kind = "shrink"},
  {kind = "retrain", epochs = 1, batch_size = 30},
  {kind = "measure", label = "end", what = ["accuracy", "macs"]},
]
"""


def test_there_are_ten_methods_and_each_fits_a_recipe():
    assert len(METHODS) >= 10
    text = RECIPE.replace("lenet5", "resnet20").replace("size = 28, channels = 1", "size = 32, channels = 3")
    whole = comparison_recipe(Recipe.parse(text), list(METHODS), 1)
    made = plan(whole)
    assert len(made.trials) == len(METHODS)
    by_name = {trial.settings["method"]: [one.step for one in trial.steps] for trial in made.trials}
    assert by_name["lamp"][1].criterion == "lamp"
    assert by_name["isomorphic"][1].budget == {"name": "macs", "keep": 0.5, "spread": "isomorphic"}
    assert by_name["group_lasso"][0].sparsify == {"name": "group_lasso", "strength": 1e-4}
    assert by_name["lamp"][0].sparsify is None
    # what is not the method's is the same for all
    assert {str(steps[3].chosen()) for steps in by_name.values()} == {str(by_name["random"][3].chosen())}
    trained = {trial.steps[0].key for trial in made.trials}
    assert len(trained) == 5  # one training for all, and one for each method that begins in training


def test_a_method_keeps_the_options_that_the_recipe_gives_its_criterion():
    text = RECIPE.replace('"prune", ', '"prune", criterion = {name = "taylor", mode = "train"}, ')
    made = plan(comparison_recipe(Recipe.parse(text), ["taylor", "lamp"], 1))
    found = {trial.settings["method"]: trial.steps[1].step.criterion for trial in made.trials}
    assert found == {"taylor": {"name": "taylor", "mode": "train"}, "lamp": "lamp"}


def test_a_method_is_called_what_its_criterion_is_called_in_recipes():
    made = plan(comparison_recipe(Recipe.parse(RECIPE), ["l2", "magnitude", "l1", "movement"], 1))
    found = {trial.settings["method"]: trial.steps[1].step.criterion for trial in made.trials}
    assert found == {name: name for name in ("l2", "magnitude", "l1", "movement")}


def test_an_interval_is_shown_within_what_an_accuracy_can_be():
    rows = comparing._rows(ran({"l2": [0.9, 1.0], "random": [0.0, 0.1]}), ["l2", "random"])
    shown = comparing.MethodComparison(tuple(rows), 2, None).table()[1]
    assert shown[0][2].endswith("to 100.00%")
    assert shown[1][2].startswith("0.00% to")


def ran(values: dict[str, list[float]]) -> SimpleNamespace:
    rows = []
    for method, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            at = {"method": method, "seed": seed}
            rows += [
                Measurement("accuracy", 0.0, context={**at, "epoch": 1}),
                Measurement("accuracy", 0.1, context=at),  # before; the last one counts
                Measurement("accuracy", accuracy, context=at),
                Measurement("macs", 100 + seed, context=at),
            ]
    return SimpleNamespace(measurements=Measurements(rows), failures=())


def test_means_intervals_and_the_paired_test_by_hand():
    values = {"l2": [0.5, 0.6, 0.7], "random": [0.4, 0.4, 0.4], "lamp": [0.51, 0.61, 0.71]}
    first, second, third = comparing._rows(ran(values), list(values))
    assert first.accuracy == pytest.approx(0.6)
    assert first.high - first.low == pytest.approx(2 * 4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert first.macs == 101
    assert math.isnan(first.p)
    # differences -0.1, -0.2, -0.3: t = -0.2 / (0.1 / sqrt(3)) = -3.4641 with 2 degrees of freedom: p = 0.0742;
    # lamp's differences are 0.01 each time: p = 0 but for rounding, which counts twice, and the other once
    assert second.difference == pytest.approx(-0.2)
    assert second.p == pytest.approx(0.0742, abs=1e-4)
    assert second.verdict == "no significant difference"
    assert third.p < 1e-6
    assert third.verdict == "significantly better"


def test_one_seed_gives_no_interval_and_no_verdict():
    rows = comparing._rows(ran({"l2": [0.5], "random": [0.4]}), ["l2", "random"])
    assert all(math.isnan(row.low) and math.isnan(row.p) and row.verdict == "" for row in rows)
    assert rows[1].difference == pytest.approx(-0.1)


def test_what_cannot_be_compared_is_refused():
    recipe = Recipe.parse(RECIPE)
    with pytest.raises(OptionError, match="unknown method 'lmap': did you mean 'lamp'"):
        comparison_recipe(recipe, ["magnitude", "lmap"], 1)
    with pytest.raises(OptionError, match="expected at least two different ones, got magnitude"):
        comparison_recipe(recipe, ["magnitude"], 1)
    grid = Recipe.parse(RECIPE, grid=["prune.at_least=1,2"])
    with pytest.raises(RecipeError, match=r"expected a recipe without \[grid\], got the axes prune.at_least"):
        comparison_recipe(grid, ["magnitude", "random"], 1)
    untrained = Recipe.parse(RECIPE.replace('{kind = "train", epochs = 1, lr = 0.02, batch_size = 30},', ""))
    with pytest.raises(RecipeError, match="method 'group_lasso' works while the model is trained"):
        comparison_recipe(untrained, ["magnitude", "group_lasso"], 1)
    unmeasured = Recipe.parse(
        RECIPE.replace('{kind = "measure", label = "end", what = ["accuracy", "macs"]},', "")
    )
    with pytest.raises(RecipeError, match="expected a step of kind 'measure' after 'prune'"):
        comparison_recipe(unmeasured, ["magnitude", "random"], 1)
    with pytest.raises(NothingToDoError, match="no trial measured both accuracy and macs"):
        comparing._rows(SimpleNamespace(measurements=Measurements(), failures=()), ["l2"])


def test_a_whole_comparison_goes_through_the_store_and_makes_a_page(tmp_path):
    from secateur.report import Report, Run

    recipe, methods = Recipe.parse(RECIPE), ["magnitude", "random", "group_sparse"]
    store = Store(tmp_path)
    found = compare_methods(recipe, store, methods, seeds=2)
    assert [row.method for row in found.rows] == methods
    assert all(len(row.values) == 2 and 0 <= row.accuracy <= 1 for row in found.rows)
    assert len({row.macs for row in found.rows}) <= 2  # the budget holds for all, to the unit
    head, rows = found.table()
    assert len(rows) == 3
    assert len(head) == len(rows[0])
    assert "magnitude" in str(found)
    again = compare_methods(recipe, store, methods, seeds=2)
    assert again.ran.computed == 0
    assert again.rows == found.rows
    html = Report([Run("tiny", found.measurements())]).html()
    assert "Accuracy of each method against multiply-accumulates" in html
