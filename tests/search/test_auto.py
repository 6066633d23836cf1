"""auto: steps down while it holds, half way back when it does not, and goes on where it stood."""

from __future__ import annotations

import importlib

import pytest

from secateur.errors import BudgetNotMetError, OptionError, RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.search.auto import SpeedAttempt
from secateur.search.frame import Baseline, best_of, pursue, untrained_first

auto_module = importlib.import_module("secateur.search.auto")  # `secateur.auto` itself is the verb

RECIPE = """
[data]
name = "digits"
size = 8
limit = 300
[model]
name = "resnet20"
[lab]
threads = 1
[[step]]
kind = "train"
epochs = 1
lr = 0.05
batch_size = 64
"""


@pytest.fixture
def recipe():
    return Recipe.parse(RECIPE, name="tiny")


def walk(allocations, attempts, holds):
    """What the strategy proposes when `holds(proposal)` says whether an attempt holds; and the attempts."""
    made = []

    def attempt(proposal):
        good = holds(proposal)
        steps = ({"kind": "retrain", "label": proposal.allocation},)
        made.append((round(proposal.keep, 3), proposal.allocation, proposal.after))
        return SpeedAttempt(
            keep=proposal.keep, accuracy=0.9 if good else 0.3, holds=good, why="told", steps=steps
        )

    lines = []
    done = pursue(auto_module._proposals(allocations, attempts), attempt, lines.append)
    assert lines == ["told"] * len(done)
    return made, done


def test_the_search_halves_while_it_holds_and_comes_half_way_back():
    _, done = walk(["uniform"], 5, lambda proposal: proposal.keep >= 0.2)
    assert [one.keep for one in done] == pytest.approx(
        [0.5, 0.25, 0.125, (0.25 * 0.125) ** 0.5, (0.25 * 0.25**0.5 * 0.125**0.5) ** 0.5]
    )


def test_no_attempt_that_holds_is_an_error_that_says_how_near_it_came(recipe, tmp_path, monkeypatch):
    baseline = Baseline(
        verb="auto",
        recipe=recipe,
        table={},
        store=Store(tmp_path / "runs"),
        ran=None,
        accuracy=0.9,
        limit=0.89,
    )
    _, done = walk(["uniform"], 2, lambda proposal: False)
    with pytest.raises(
        BudgetNotMetError, match=r"auto: none of 2 attempts held 0\.8900 .* nearest came to 0\.3000\. Try"
    ) as error:
        best_of(done, lambda one: one.keep, baseline, "Try again")
    assert error.value.exit_code == 3
    _, done = walk(["uniform"], 3, lambda proposal: proposal.keep >= 0.2)
    assert best_of(done, lambda one: one.keep, baseline, "").keep == 0.25


@pytest.mark.parametrize("goal", ["fast", "small"])
def test_a_real_search_holds_its_limit_and_is_not_done_twice(recipe, tmp_path, goal):
    store, lines = Store(tmp_path / "runs"), []
    options = {"lost": 0.9, "goal": goal, "attempts": 1}
    options["options"] = auto_module.AutoOptions(retrain={"epochs": 1})
    found = auto_module.auto(recipe, store, on_message=lines.append, **options)
    assert found.best.keep == 0.5
    final = {(m.context["variant"], m.name): m.value for m in found.final}
    if goal == "fast":
        assert final["result", "macs"] <= 0.5 * final["dense", "macs"]
        assert lines[1].startswith("scan: ")
        assert list((tmp_path / "runs" / "auto").iterdir())
    else:
        assert final["result", "nonzeros"] <= 0.5 * final["dense", "nonzeros"]
    assert "holds, so less is tried" in lines[-1]
    assert found.ran.computed == 1  # only the last measure: the try itself was kept
    again = auto_module.auto(recipe, store, **options)
    assert again.ran.computed == 0
    assert again.attempts == found.attempts


@pytest.mark.parametrize(
    ("goal", "kinds"),
    [("fast", ["prune", "compensate", "shrink"]), ("small", ["prune", "compensate", "share", "pack"])],
)
def test_with_calibration_images_a_search_trains_only_where_it_must(recipe, tmp_path, goal, kinds):
    store = Store(tmp_path / "runs")
    options = auto_module.AutoOptions("uniform", {"epochs": 3}, calibrate=50)
    found = auto_module.auto(recipe, store, lost=0.9, goal=goal, attempts=1, options=options)
    assert [step["kind"] for step in found.best.steps] == kinds
    assert "without training: " in found.best.why
    assert "1 of 1 attempts held without training: 3 epochs saved" in str(found)


def test_an_attempt_that_does_not_hold_without_training_is_trained_and_says_both():
    made = []

    def make(training):
        made.append(training)
        return SpeedAttempt(keep=0.5, accuracy=0.5, holds=training, why="trained" if training else "solved")

    assert untrained_first(make, 10).why == "solved; trained"
    assert untrained_first(make, 0).why == "trained"
    assert made == [False, True, True]


def test_a_recipe_that_cuts_or_shares_by_itself_is_refused_before_any_work(tmp_path):
    for goal, kind in (("fast", "shrink"), ("fast", "share"), ("small", "share")):
        recipe = Recipe.parse(f'{RECIPE}[[step]]\nkind = "{kind}"\n', name="tiny")
        with pytest.raises(RecipeError, match=f"tiny: step '{kind}': auto continues from the model before"):
            auto_module.auto(recipe, Store(tmp_path / "runs"), goal=goal)
    assert Store(tmp_path / "runs").runs() == []


def test_options_are_checked(recipe, tmp_path):
    for wrong in ({"goal": "cheap"}, {"lost": 1.5}, {"attempts": 0}):
        with pytest.raises(OptionError):
            auto_module.auto(recipe, Store(tmp_path / "runs"), **wrong)
    with pytest.raises(OptionError, match="calibrate: expected a number of images, got -1"):
        auto_module.AutoOptions(calibrate=-1)
    with pytest.raises(OptionError, match="'best', 'scan', 'between' or 'uniform', got 'greedy'"):
        auto_module.AutoOptions(allocation="greedy")


def test_the_allocation_that_held_last_is_tried_first_and_what_held_is_cut_on_only_where_none_did():
    least = {"scan": 1.0, "between": 0.2, "uniform": 0.4, "on": 0.1}  # the smallest share that holds
    options = auto_module.AutoOptions()
    allocations = auto_module._allocations(options, "a scan")
    made, done = walk(allocations, 4, lambda proposal: proposal.keep >= least[proposal.allocation])
    assert [one[:2] for one in made] == [
        (0.5, "scan"), (0.5, "between"),
        (0.25, "between"),
        (0.125, "between"), (0.125, "scan"), (0.125, "uniform"), (0.125, "on"),
        (0.062, "on"), (0.062, "between"), (0.062, "scan"), (0.062, "uniform"),
    ]  # fmt: skip
    assert min(one.keep for one in done if one.holds) == 0.125
    assert [after for _, allocation, after in made if allocation == "on"] == [
        ({"kind": "retrain", "label": "between"},), ({"kind": "retrain", "label": "on"},)
    ]  # fmt: skip
    assert auto_module._allocations(options, None) == ["uniform"]


def test_going_on_masks_until_the_end_and_shrinks_once():
    one = [
        {"kind": "prune", "label": "a"}, {"kind": "shrink", "label": "b"}, {"kind": "retrain", "label": "c"}
    ]  # fmt: skip
    two = auto_module._cut_further(one, 0.3, {"kind": "retrain", "epochs": 2})
    three = auto_module._cut_further(two, 0.2, {"kind": "retrain", "epochs": 2})
    assert [step["label"] for step in two] == ["a", "c", "auto_prune_2", "auto_shrink", "auto_retrain_2"]
    assert [step["label"] for step in three] == [
        "a", "c", "auto_prune_2", "auto_retrain_2", "auto_prune_3", "auto_shrink", "auto_retrain_3"
    ]  # fmt: skip
    assert three[-3]["budget"] == {"name": "macs", "keep": 0.2}
    assert three[-1]["epochs"] == 2


def test_ways_share_out_the_same_work_differently():
    """Between: half way from all alike to the scan, fitted so that the work left is just above what was asked."""
    import torch
    from torch import nn

    import secateur as sc
    from secateur.sensitivity.scan import Cell, Scan

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 36, 5),
    ).eval()  # fmt: skip
    x = torch.zeros(1, 3, 6, 6)
    values = {"0": 0.02, "2": 0.5, "4": 0.02}  # what a level costs: the middle one is dear
    cells = [
        Cell(n, s, 64, round(64 * s), 0, 0.9 - v * s) for n, v in values.items() for s in (0.2, 0.4, 0.6, 0.8)
    ]
    per_layer = sc.measure(model, x, what="macs")["macs"].per_layer
    found = Scan(tuple(cells), 0.9, costs={"macs": {n: float(per_layer[n]) for n in values}})
    shares = {name: auto_module.Allotment(name, found).shares(model, x, 0.5) for name in ("scan", "between")}
    assert shares["scan"].get("2", 0.0) < shares["between"]["2"] < shares["between"]["0"]
    dense = sc.measure(model, x, what="macs")["macs"].value
    for share in shares.values():
        budget = sc.budget.PerLayer({name: s for name, s in share.items() if s})
        masks = sc.prune(
            model, "l2", "channel", budget, example=x, options=sc.PruneOptions(allow_collapse=True)
        )
        left = sc.measure(model, x, masks=masks, what="macs")["macs_nonzero"].value / dense
        assert 0.5 <= left < 0.6


def test_a_recipe_that_measures_its_dense_model_keeps_doing_so_beside_the_search():
    text = RECIPE + '[[step]]\nkind = "measure"\nlabel = "dense"\n'
    text += '[[step]]\nkind = "measure"\nlabel = "result"\nagainst = "dense"\n'
    made = auto_module._apart(Recipe.parse(text, name="tiny"))
    assert [step.label for step in made.steps] == ["train", "recipe_dense", "recipe_result"]
    assert made.steps[2].against == "recipe_dense"
    plain = Recipe.parse(RECIPE + '[[step]]\nkind = "measure"\nlabel = "mine"\n')
    assert auto_module._apart(plain) is plain


def test_steps_that_refer_to_a_step_with_another_label_do_so_still():
    text = RECIPE + '[[step]]\nkind = "measure"\nlabel = "dense"\n[[step]]\nkind = "prune"\n'
    text += '[[step]]\nkind = "compensate"\ndense = "dense"\n'
    text += '[[step]]\nkind = "train"\nlabel = "again"\nepochs = 1\nteacher = "dense"\ndistill_alpha = 0.5\n'
    text += '[[step]]\nkind = "prune"\nlabel = "scanned"\nbudget = {name = "scanned", scan = "dense", floor = 0.5}\n'
    made = {step.label: step for step in auto_module._apart(Recipe.parse(text)).steps}
    assert made["compensate"].dense == made["again"].teacher == "recipe_dense"
    assert made["compensate"].refers() == made["scanned"].refers() == ("recipe_dense",)


def test_every_option_that_holds_a_label_is_known_to_the_search():
    from secateur.lab.steps import registry
    from secateur.lab.steps.prune import Scanned

    kinds = [Scanned, *(registry.get(name) for name in registry.names())]
    fields = [(name, field) for kind in kinds for name, field in kind.model_fields.items()]
    words = ("label of", "earlier step")
    named = {name for name, field in fields if any(word in (field.description or "") for word in words)}
    assert {"against", "dense", "latent", "rewind", "scan", "start", "teacher"} <= named
    assert named <= set(auto_module._REFERENCES)
