"""`compare` and `search` on the command line: strict JSON, what was varied, recipes with a model of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

OWN = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

def rows(count=80):
    inputs = torch.arange(count * 4.0).reshape(count, 4).sin()
    part = (inputs, (inputs[:, 0] > 0).long())
    return dict(train=part, test=part)
"""
RECIPE = """
data = {name = "NAME:rows"}
model = {name = "NAME:net"}
lab = {threads = 1}
step = [
  {kind = "measure", label = "dense", what = ["accuracy", "macs"]},
  {kind = "prune", budget = 0.5},
  {kind = "prune", budget = 0.75},
  {kind = "measure", label = "end", what = ["accuracy", "macs", "sparsity"]},
]
"""


@pytest.fixture
def recipe(secateur, monkeypatch, request):
    """A recipe that names code beside it; no other test has a module of this name."""
    name = f"cli_{request.node.name}"
    Path(f"{name}.py").write_text(OWN)
    Path("r.toml").write_text(RECIPE.replace("NAME", name))
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path.cwd())])
    yield "r.toml"
    sys.modules.pop(name, None)


def test_compare_prints_strict_json_and_says_what_it_varied(secateur, recipe):
    code, out, err = secateur(
        "compare", recipe, "--allow-code", "--methods", "magnitude,random", "--seeds", "1", "--json", "-q"
    )
    assert code == 0, err
    rows = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["methods"]
    assert [row["method"] for row in rows] == ["magnitude", "random", "dense"]
    assert [(row["p"], row["raw_p"], row["low"]) for row in rows] == [(None, None, None)] * 3
    assert [(row["macs"], row["macs_nonzero"]) for row in rows] == [(96, 24), (96, 24), (96, 96)]
    assert "varied: the criterion of prune, prune2" in err


def test_search_runs_a_recipe_with_code_that_is_allowed(secateur, recipe):
    pytest.importorskip("optuna", reason="OPTUNA IS NOT INSTALLED: the search is not tested here")
    words = (
        "search",
        recipe,
        "--over",
        "prune.budget=0.1,0.3",
        "--maximize",
        "sparsity",
        "--trials",
        "1",
        "-q",
    )
    code, _, err = secateur(*words)
    assert code != 0
    assert "say --allow-code" in err
    code, out, err = secateur(*words, "--allow-code", "--device", "cpu", "--json")
    assert code == 0, err
    tried = json.loads(out)["tried"]
    assert [bool(one["values"]) for one in tried] == [True]
    assert [(one["trial"], one["trial_number"]) for one in tried] == [(0, 1)]


def test_a_search_without_a_result_is_an_error(secateur, recipe, tmp_path):
    pytest.importorskip("optuna", reason="OPTUNA IS NOT INSTALLED: the search is not tested here")
    words = ("search", recipe, "--allow-code", "--maximize", "sparsity", "--trials", "2", "-q", "--json")
    kept = tmp_path / "se" / "trial-1" / "model.sct"  # of an earlier search, which had a result
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    front = tmp_path / "se" / "front.json"
    front.write_text('[{"trial_number": 1}]')
    code, out, err = secateur(
        *words, "--over", "prune.budget=0.1,0.3", "--floor", "accuracy=2", "--out", str(tmp_path / "se")
    )
    assert code == 3
    assert kept.read_bytes() == b"kept"
    assert front.read_text() == '[{"trial_number": 1}]'
    assert json.loads(out)["front"] == []
    assert "none of 2 trials has values, so there is no front; trial 1: stopped: accuracy " in err
    assert " is below 2; lower --floor" in err
    code, out, err = secateur(
        *words, "--name", "b", "--over", "prune2.budget=0.1,0.3"
    )  # less than the step before removes
    assert code == 1, err
    assert "none of 2 trials has values" in err
    assert "--json has the reason of every trial" in err
    assert all(one["why"] for one in json.loads(out)["tried"])


def test_a_comparison_is_shown_before_it_runs_and_its_models_are_written(secateur, recipe):
    words = ("compare", recipe, "--allow-code", "--methods", "magnitude,random", "--seeds", "1", "-q")
    code, out, err = secateur(*words, "--dry-run")
    assert code == 0, err
    assert "7 steps would run, 0 are cached, 1 share another trial's work" in out
    assert not Path("runs").exists()
    code, out, err = secateur(*words, "--out", "kept")
    assert code == 0, err
    assert sorted(path.name for path in Path("kept").iterdir()) == ["measurements.json", "trial-1", "trial-2"]
    assert (Path("kept") / "trial-2" / "masks.safetensors").is_file()


def test_the_models_of_a_front_are_written(secateur, recipe):
    pytest.importorskip("optuna", reason="OPTUNA IS NOT INSTALLED: the search is not tested here")
    words = ("--over", "prune.budget=0.1:0.6", "--maximize", "sparsity", "--trials", "2", "--out", "front")
    code, out, err = secateur("search", recipe, "--allow-code", "--set", "prune2.budget=0.65", *words, "-q")
    assert code == 0, err
    rows = json.loads(Path("front", "front.json").read_text())
    assert rows
    for row in rows:
        assert row["values"] == {"sparsity": pytest.approx(0.65, abs=0.02)}
        folder = Path("front", f"trial-{row['trial_number']}")
        assert {"model.safetensors", "masks.safetensors"} <= {path.name for path in folder.iterdir()}
        assert f"{row['trial_number']}  " in out
    gone = rows[0]["trial_number"]
    Path("front", "front.json").write_text(
        "[" * 100_000
    )  # of an earlier call, damaged: it names no folder to remove
    again = ("--over", "prune.budget=0.1:0.6", "--maximize", "sparsity", "--trials", "2", "--out", "front")
    code, out, err = secateur(
        "search", recipe, "--allow-code", "--set", "prune2.budget=0.7", *again, "-q", "--json"
    )
    assert code == 0, err  # another recipe: what the store does not hold is named, and the result printed
    assert json.loads(out)["front"][0]["trial_number"] == gone
    assert f"trial {gone} is not written" in err


def test_a_limit_that_does_not_hold_fails_the_build(secateur, recipe):
    words = ("run", recipe, "--allow-code", "-q")
    code, out, err = secateur(*words, "--require", "end.sparsity>=0.7", "--require", "macs<=96")
    assert code == 0, err
    code, out, err = secateur(*words, "--require", "end.sparsity<=0.7", "--json")
    assert code == 3
    assert "a limit does not hold: end.sparsity: at most 0.7 is required, got 0.75" in err
    assert json.loads(out)["run"] == 2  # the results are there all the same
    code, _, err = secateur(*words, "--require", "sparsity>0.7")
    assert code == 2
    assert "expected NAME>=NUMBER" in err
    code, _, err = secateur(
        "compare", recipe, "--methods", "l1,random", "--dry-run", "--allow-code", "--require", "sparsity>1"
    )
    assert code == 2
    assert "expected NAME>=NUMBER" in err
    Path("limited.toml").write_text('require = ["end.sparsity <= 0.7"]\n' + Path(recipe).read_text())
    code, _, err = secateur("run", "limited.toml", "--allow-code", "-q")
    assert code == 3
    code, _, err = secateur("sweep", recipe, "--allow-code", "--grid", "lab.seed=0,1", "--seeds", "2", "-q")
    assert code == 2
    assert "both name the seeds" in err


def test_a_comparison_makes_its_recipe_and_its_plan_once(secateur, recipe, monkeypatch):
    from secateur.lab import comparing, planning

    made: list[str] = []

    def counted(name, function):
        def call(*given, **named):
            made.append(name)
            return function(*given, **named)

        return call

    for module, name in ((comparing, "comparison_recipe"), (planning, "plan")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr("secateur.lab.engine.make_plan", planning.plan)
    words = ("compare", recipe, "--allow-code", "--methods", "magnitude,random", "--seeds", "1", "-q")
    code, _, err = secateur(*words)
    assert code == 0, err
    assert sorted(made) == ["comparison_recipe", "plan"]


@pytest.mark.parametrize(
    "words", [("run",), ("compare", "--methods", "l1,random"), ("sweep", "--seeds", "2")]
)
def test_a_misspelt_limit_is_refused_before_any_work(secateur, recipe, words):
    verb, *more = words
    code, _, err = secateur(verb, recipe, *more, "--allow-code", "-q", "--require", "end.sparsty>=0.5")
    assert code == 2
    assert "require: no step of the recipe measures 'sparsty': did you mean 'sparsity'" in err
    assert not Path("runs").exists()


def test_a_misspelt_objective_is_refused_before_the_first_trial(secateur, recipe):
    words = ("search", recipe, "--allow-code", "--over", "prune.budget=0.1:0.3", "-q")
    code, _, err = secateur(*words, "--maximize", "sparsty")
    assert code == 2
    assert "search: no step of the recipe measures 'sparsty': did you mean 'sparsity'" in err
    code, _, err = secateur(*words, "--maximize", "sparsity", "--floor", "acuracy=0.5")
    assert code == 2
    assert "did you mean 'accuracy'" in err


def test_a_comparison_without_its_measures_is_refused_before_it_runs(secateur, recipe):
    Path("few.toml").write_text(Path(recipe).read_text().replace('"macs", ', ""))
    words = ("--allow-code", "--methods", "magnitude,random", "-q")
    code, _, err = secateur("compare", "few.toml", *words)
    assert code == 2
    assert "with what = ['accuracy', 'macs'], got ['accuracy', 'sparsity']" in err
    assert not Path("runs").exists()
