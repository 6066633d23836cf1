"""What steps may measure is known before any work: each names its rows, and a name that none has is refused."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import UnknownNameError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.searching import SearchOptions, search
from secateur.lab.steps import registry
from secateur.lab.store import Store

DENSE = """
[[step]]
kind = "idle"
note = 3
[[step]]
kind = "train"
epochs = 1
[[step]]
kind = "scan"
levels = [0.5]
[[step]]
kind = "prune"
budget = 0.5
granularity = "filter"
allow_collapse = true
[[step]]
kind = "compensate"
calibrate = 20
dense = "train"
[[step]]
kind = "retrain"
epochs = 1
[[step]]
kind = "zero_dead_neurons"
[[step]]
kind = "measure"
label = "dense"
what = ["accuracy", "params", "macs", "size", "latency", "sparsity", "memory", "architecture", "testing_time"]
also = ["train"]
bias = "both"
repetitions = 1
[[step]]
kind = "share"
bits = 3
[[step]]
kind = "refine"
epochs = 1
[[step]]
kind = "measure"
label = "shared"
what = ["latency"]
against = "dense"
repetitions = 1
[[step]]
kind = "epoch_time"
against = "dense"
turns = 1
[[step]]
kind = "pack"
"""
CUT = """
[[step]]
kind = "factorise"
keep = 0.6
[[step]]
kind = "allocate"
keep = 0.5
images = 1
method = "knapsack"
[[step]]
kind = "shrink"
[[step]]
kind = "gradual"
epochs = 1
sparsity = 0.5
batch_size = 6
every = 1
"""


@pytest.mark.parametrize("steps", [DENSE, CUT], ids=["dense", "cut"])
def test_every_step_measures_only_what_it_names_before(tmp_path, steps):
    text = tiny(steps, limit=40).replace('"lenet-300-100"', '"fc"\noptions = {width = 8}')
    store, recipe = Store(tmp_path), Recipe.parse(text)
    made = plan(recipe)
    run(recipe, store, plan=made)
    for step in made.trials[0].steps:
        outcome = store.outcome(step.key)
        assert outcome is not None
        assert step.names is not None
        measured = {row.name for row in outcome.measurements}
        unnamed = [row for row in measured if not any(fnmatchcase(row, name) for name in step.names)]
        assert not unnamed, (step.label, unnamed)
        # With these options all that it names is measured, but for what depends on the options.
        plain = {name for name in step.names if "*" not in name}
        assert plain - measured <= {"scan_predicted", "chosen_sparsity"}, step.label


def test_of_the_kinds_of_step_only_these_leave_their_rows_unnamed():
    unnamed = {name for name in registry.names() if registry.get(name).measures is None}
    assert unnamed == {"measure"}  # `measure` names its rows by its options


SMALL = tiny(
    """
[[step]]
kind = "prune"
budget = 0.5
[[step]]
kind = "measure"
label = "end"
what = ["sparsity", "params"]
""",
    limit=40,
)


@pytest.mark.parametrize(
    ("objective", "floors", "message"),
    [
        ("sparsty", {}, "search: no step of the recipe measures 'sparsty': did you mean 'sparsity'"),
        (
            "accuracy",
            {},
            r"search: no step of the recipe measures 'accuracy': known: 'chosen_sparsity', 'coll",
        ),
        ("nonzeros", {"remainign": 0.5}, "measures 'remainign': did you mean 'remaining'"),
    ],
)
def test_a_misspelt_objective_is_found_before_any_trial(tmp_path, objective, floors, message):
    store = Store(tmp_path)
    with pytest.raises(UnknownNameError, match=message):
        search(
            Recipe.parse(SMALL),
            store,
            {"prune.budget": "0.1:0.9"},
            maximize=[objective],
            options=SearchOptions(2, floors=floors),
        )
    assert store.rows("SELECT COUNT(*) FROM runs")[0][0] == 0
    tables = [row["name"] for row in store.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert "search_log" not in tables  # nor is a search of that objective begun


def test_any_choice_of_an_axis_may_measure_an_objective(tmp_path):
    text = SMALL.replace('"sparsity", "params"', '"macs"')
    with pytest.raises(UnknownNameError, match="did you mean 'weight_macs'"):
        search(Recipe.parse(text), Store(tmp_path), {"end.bias": "false,both"}, maximize=["weight_mcas"])
    with pytest.raises(UnknownNameError, match=r"measures 'weight_macs': known: .*'macs', 'macs_nonzero'"):
        search(Recipe.parse(text), Store(tmp_path), {"end.batch": "1,2"}, maximize=["weight_macs"])


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("sparsty >= 0.5", "require: no step of the recipe measures 'sparsty': did you mean 'sparsity'"),
        ("edn.sparsity >= 0.5", "require: no step is called 'edn': did you mean 'end'"),
    ],
)
def test_a_misspelt_limit_is_found_in_planning(limit, message):
    with pytest.raises(UnknownNameError, match=message):
        plan(Recipe.parse(f'require = ["{limit}"]\n{SMALL}'))


def test_without_steps_that_measure_the_message_says_so():
    text = tiny('[[step]]\nkind = "norms"\n').replace("lenet-300-100", "resnet20")
    with pytest.raises(UnknownNameError, match="nothing is measured; add a step of kind 'measure'"):
        plan(Recipe.parse(f'require = ["accuracy >= 0.5"]\n{text}'))


def test_numbers_that_a_function_of_the_users_names_are_not_refused(tmp_path, monkeypatch):
    (tmp_path / "own_judge_of_names.py").write_text("def judge(model):\n    return {'beauty': 0.5}\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = SMALL.replace(
        'what = ["sparsity", "params"]', 'evaluate = "own_judge_of_names:judge"\nwhat = ["accuracy"]'
    )
    recipe = Recipe.parse(f'require = ["beauty >= 0.5"]\n{text}', allow_code=True)
    ran = run(recipe, Store(tmp_path / "runs"))
    assert ran.unmet() == []


def test_a_model_with_a_loss_of_its_own_has_no_accuracy():
    step = Recipe.parse(SMALL.replace("params", "accuracy")).steps[1]

    class Own:
        training_loss = None

    assert step.measured_names(Own()) == ("sparsity", "loss")
    assert step.measured_names(object()) == ("sparsity", "accuracy", "loss")
