"""Comparing methods: what each changes in a recipe, intervals and tests worked by hand, and a whole comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, OptionError, RecipeError
from secateur.lab import comparing, varied
from secateur.lab.comparing import METHODS, compare_methods, comparison_recipe
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.report.charts.methods import methods

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


ITERATIVE = """
name = "iterative"
data = {name = "digits", limit = 120, size = 28, channels = 1}
model = {name = "lenet5"}
lab = {threads = 1}
step = [
  {kind = "train", epochs = 1, save_at = 2},
  {kind = "prune", granularity = "channel", criterion = {name = "taylor", mode = "train"}, budget = 0.2},
  {kind = "retrain", epochs = 1},
  {kind = "prune", granularity = "channel", criterion = "taylor", budget = 0.4},
  {kind = "retrain", epochs = 1, rewind = "train"},
  {kind = "prune", granularity = "channel", criterion = "taylor", budget = {name = "macs", keep = 0.3}},
  {kind = "prune", criterion = "l1", label = "fine", budget = 0.7},
  {kind = "measure", label = "end", what = ["accuracy", "macs"]},
]
"""


def steps_of(text: str, *methods: str) -> dict[str, dict[str, Any]]:
    """Per method the steps of its trial by their labels."""
    made = plan(comparison_recipe(Recipe.parse(text), methods, 1))
    return {
        trial.settings["method"]: {one.step.label: one.step for one in trial.steps} for trial in made.trials
    }


def test_every_cut_by_the_criterion_that_is_compared_takes_the_method():
    found = steps_of(ITERATIVE, "taylor", "random", "isomorphic")
    cuts = ("prune", "prune2", "prune3", "fine")
    assert [found["random"][label].criterion for label in cuts] == ["random"] * 3 + ["l1"]
    assert [found["taylor"][label].criterion for label in cuts] == [
        {"name": "taylor", "mode": "train"}, "taylor", "taylor", "l1"
    ]  # fmt: skip
    assert [found["isomorphic"][label].budget for label in cuts] == [
        {"name": "isomorphic", "sparsity": 0.2},
        {"name": "isomorphic", "sparsity": 0.4},
        {"name": "macs", "keep": 0.3, "spread": "isomorphic"},
        0.7,
    ]
    assert varied.notes(Recipe.parse(ITERATIVE), ["taylor", "isomorphic"]) == (
        "varied: the criterion of prune, prune2, prune3; as the recipe says, with every method: fine (l1)",
        "varied with isomorphic: also the budget of prune, prune2, prune3",
    )


def test_sparse_training_goes_before_every_cut_but_where_training_rewinds():
    found = steps_of(ITERATIVE, "l2", "group_lasso", "growing")
    trained = ("train", "retrain", "retrain2")
    assert [found["l2"][label].sparsify for label in trained] == [None] * 3
    lasso = {"name": "group_lasso", "strength": 1e-4}
    assert [found["group_lasso"][label].sparsify for label in trained] == [lasso, lasso, None]
    assert found["growing"]["retrain"].sparsify == {"name": "growing", "which": "all"}
    assert varied.notes(Recipe.parse(ITERATIVE), ["l2", "bn_l1"])[1] == (
        "varied with bn_l1: also sparsify of train, retrain; not of retrain2: a training that rewinds takes none"
    )


def test_gradual_pruning_and_the_scan_that_a_budget_comes_from_take_the_method():
    gradual = RECIPE.replace(
        'kind = "prune", granularity = "channel", budget = {name = "macs", keep = 0.5}', "KIND"
    )
    found = steps_of(
        gradual.replace("KIND", 'kind = "gradual", epochs = 1, sparsity = 0.5'), "magnitude", "random"
    )
    assert [steps["gradual"].criterion for steps in found.values()] == ["magnitude", "random"]
    scan = 'kind = "scan", levels = [0.3, 0.6]}, {kind = "scan", label = "look", levels = [0.5]}, '
    scan += '{kind = "prune", budget = {name = "scanned", keep = 0.5}'
    found = steps_of(gradual.replace("KIND", scan), "magnitude", "random")
    assert [found["random"][label].criterion for label in ("scan", "look", "prune")] == [
        "random", "magnitude", "random"
    ]  # fmt: skip
    allocated = Recipe.parse(gradual.replace("KIND", 'kind = "allocate", keep = 0.5'))
    with pytest.raises(
        RecipeError, match=r"step 'allocate': method 'isomorphic'.* but 'allocate' has no budget"
    ):
        comparison_recipe(allocated, ["l2", "isomorphic"], 1)
    with pytest.raises(RecipeError, match="expected a step of kind 'prune', 'gradual' or 'allocate'"):
        comparison_recipe(Recipe.parse(gradual.replace("KIND", 'kind = "norms"')), ["l2", "random"], 1)


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


def test_the_correction_leaves_the_p_of_each_test_beside_it():
    values = {"l2": [0.5, 0.6, 0.7], "random": [0.4, 0.4, 0.4], "lamp": [0.51, 0.65, 0.71]}
    _, random, lamp = comparing._rows(ran(values), list(values))
    smaller, larger = sorted((random, lamp), key=lambda row: row.raw_p)
    assert smaller.p == pytest.approx(2 * smaller.raw_p)
    assert larger.p == pytest.approx(max(2 * smaller.raw_p, larger.raw_p))


def test_where_zeros_stay_in_place_the_products_that_are_left_are_shown():
    found = ran({"l2": [0.5, 0.6], "random": [0.4, 0.5]})
    for method, left in (("l2", 40), ("random", 30)):
        for seed in (0, 1):
            at = {"method": method, "seed": seed}
            found.measurements += [Measurement("macs_nonzero", left + seed, context=at)]
    rows = comparing._rows(found, ["l2", "random"])
    assert [row.macs_nonzero for row in rows] == [40.5, 30.5]
    head, cells = comparing.MethodComparison(rows, 2, found).table()
    assert [line[head.index("macs with a non-zero weight")] for line in cells] == ["40", "30"]
    (figure,) = methods(comparing.MethodComparison(rows, 2, found).measurements())
    assert figure.title == "Accuracy of each method against multiply-accumulates with a non-zero weight"
    assert figure.table.head[1] == "macs_nonzero"
    assert [row[1] for row in figure.table.rows] == [40.5, 30.5]
    cut = tuple(replace(row, macs_nonzero=row.macs) for row in rows)
    assert "macs with a non-zero weight" not in comparing.MethodComparison(cut, 2, found).table()[0]


def test_the_dense_model_has_the_last_row_where_it_was_measured_before_the_first_cut():
    text = RECIPE.replace('{kind = "prune"', '{kind = "measure", label = "before"},\n  {kind = "prune"')
    found = ran({"group_lasso": [0.5, 0.6], "l2": [0.4, 0.5]})
    for method, accuracy in (("group_lasso", 0.7), ("l2", 0.9)):
        for seed in (0, 1):
            at = {"method": method, "seed": seed, "variant": "before"}
            found.measurements += [Measurement(name, value, context=at) for name, value in (
                ("accuracy", accuracy), ("macs", 1000), ("macs_nonzero", 900)
            )]  # fmt: skip
    dense = comparing._dense(found, Recipe.parse(text), ["group_lasso", "l2"])
    assert (dense.method, dense.accuracy, dense.macs) == ("dense", 0.9, 1000)  # trained without the penalty
    assert comparing._dense(found, Recipe.parse(RECIPE), ["group_lasso", "l2"]) is None
    rows = comparing._rows(found, ["group_lasso", "l2"])
    shown = comparing.MethodComparison(rows, 2, found, dense).table()[1]
    assert [row[0] for row in shown] == ["group_lasso", "l2", "dense"]
    assert shown[-1][-3:] == ["", "", ""]


def test_one_seed_gives_no_interval_and_no_verdict():
    rows = comparing._rows(ran({"l2": [0.5], "random": [0.4]}), ["l2", "random"])
    assert all(math.isnan(row.low) and math.isnan(row.p) and row.verdict == "" for row in rows)
    assert rows[1].difference == pytest.approx(-0.1)


def test_what_cannot_be_compared_is_refused():
    recipe = Recipe.parse(RECIPE)
    with pytest.raises(OptionError, match="unknown method 'lmap': did you mean 'lamp'"):
        comparison_recipe(recipe, ["magnitude", "lmap"], 1)
    with pytest.raises(OptionError, match=r"known: 'activation', .*'bn_l1', .*'wanda'$"):  # all of them
        comparison_recipe(recipe, ["magnitude", "zzzz"], 1)
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

    recipe, names = Recipe.parse(RECIPE), ["magnitude", "random", "group_sparse"]
    store = Store(tmp_path)
    found = compare_methods(recipe, store, names, seeds=2)
    assert [row.method for row in found.rows] == names
    assert all(len(row.values) == 2 and 0 <= row.accuracy <= 1 for row in found.rows)
    assert len({row.macs for row in found.rows}) <= 2  # the budget holds for all, to the unit
    head, rows = found.table()
    assert len(rows) == 3
    assert len(head) == len(rows[0])
    assert "magnitude" in str(found)
    assert "\nvaried: the criterion of prune\nvaried with group_sparse: also sparsify of train" in str(found)
    again = compare_methods(recipe, store, names, seeds=2)
    assert again.ran.computed == 0
    assert again.rows == found.rows
    html = Report([Run("tiny", found.measurements())]).html()
    assert "Accuracy of each method against multiply-accumulates" in html
