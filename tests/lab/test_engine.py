"""The engine: nothing is done twice, whatever is killed, and the same recipe gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import NothingToDoError, OptionError, RecipeError, SecateurError, StoreError
from secateur.lab.engine import final_state, run
from secateur.lab.engines import Event
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

# Small enough for a second of work, and yet every kind of step that changes a model is in it.
TEXT = tiny(
    """
[[step]]
kind = "train"
epochs = 2
lr = 0.05
[[step]]
kind = "prune"
criterion = "snip"
budget = 0.8
[[step]]
kind = "retrain"
epochs = 2
augment = {crop = 1, flip = false}
[[step]]
kind = "share"
bits = 3
start = "random"
[[step]]
kind = "pack"
""",
    limit=200,
)


def states(store: Store, recipe: Recipe) -> list[dict]:
    """The names of the objects after every step of a recipe's trials: equal names are equal bytes."""
    return [dict(store.outcome(step.key).state) for trial in plan(recipe).trials for step in trial.steps]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The tiny recipe, run once."""
    store = Store(tmp_path_factory.mktemp("done"))
    recipe = Recipe.parse(TEXT)
    return store, recipe, run(recipe, store)


def test_a_second_run_does_no_work(done):
    store, recipe, first = done
    assert (first.computed, first.cached) == (5, 0)
    rows = store.rows("SELECT key, finished FROM steps ORDER BY key")
    again = run(recipe, store)
    assert (again.computed, again.cached) == (0, 5)
    assert store.rows("SELECT key, finished FROM steps ORDER BY key") == rows
    assert again.measurements.to_json().replace('"run": 2', '"run": 1') == first.measurements.to_json()


def test_a_late_change_redoes_only_from_there(done):
    store, _, _ = done
    assert run(Recipe.parse(TEXT, ["share.bits=2"]), store).computed == 2
    assert run(Recipe.parse(TEXT, ["pack.file=other.sct"]), store).computed == 1


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("lab.seed=1", 0),
        ("data.validation=0.2", 0),
        ("train.lr=0.1", 0),
        ("retrain.lr=0.1", 2),
        ("share.bits=2", 3),
    ],
)
def test_what_an_outcome_depends_on_is_in_its_address(done, setting, first):
    _, recipe, _ = done
    before = [step.key for step in plan(recipe).trials[0].steps]
    after = [step.key for step in plan(Recipe.parse(TEXT, [setting])).trials[0].steps]
    assert [a == b for a, b in zip(before, after)] == [index < first for index in range(5)]


def test_a_label_is_no_part_of_the_address(done):
    _, recipe, _ = done
    named = Recipe.parse(TEXT.replace('kind = "prune"', 'kind = "prune"\nlabel = "cut"'))
    assert plan(named).keys() == plan(recipe).keys()


def test_a_newer_version_of_a_step_is_computed_anew(done, monkeypatch):
    from secateur.lab.steps.share import ShareStep

    _, recipe, _ = done
    before = plan(recipe).keys()
    monkeypatch.setattr(ShareStep, "version", ShareStep.version + 1)
    assert [a == b for a, b in zip(before, plan(recipe).keys())] == [True, True, True, False, False]


def test_the_same_recipe_gives_the_same_bytes(done, tmp_path):
    store, recipe, _ = done
    other = Store(tmp_path)
    run(recipe, other)
    assert states(other, recipe) == states(store, recipe)
    third = Store(tmp_path / "seed")
    seeded = Recipe.parse(TEXT, ["lab.seed=1"])
    run(seeded, third)
    assert states(third, seeded)[-1]["weights"] != states(store, recipe)[-1]["weights"]


def test_the_final_state_is_what_the_steps_promise(done):
    store, _, ran = done
    trial = ran.plan.trials[0]
    state = final_state(trial, store)
    # 80 % of each tensor, rounded once: 235,200 + 30,000 + 1,000 weights.
    assert state.masks.numel - state.masks.kept == 188_160 + 24_000 + 800
    for name, mask in state.masks.items():
        weight = state.model.get_parameter(name)
        assert bool((weight[~mask] == 0).all())
        assert len(weight[mask].unique()) <= 8
    assert set(state.codebooks) == set(state.masks)
    assert len(state.files["model.sct"]) == ran.measurements["file_bytes"].value
    assert final_state(trial, store, "train").masks is None


def test_a_missing_object_is_made_anew(done):
    store, recipe, ran = done
    key = ran.plan.trials[0].steps[2].key
    place = store.outcome(key).state["weights"].removeprefix("object:")
    content = store.objects.get(place)
    store.objects.drop(place)
    assert run(recipe, store).computed == 1
    assert store.objects.get(place) == content


GRID = """
[grid]
"prune.criterion" = ["magnitude", "random"]
"prune.budget" = [0.5, 0.9]
"""


def test_trials_share_what_they_have_in_common_and_processes_change_nothing(tmp_path):
    recipe = Recipe.parse(TEXT + GRID)
    one, two = Store(tmp_path / "1"), Store(tmp_path / "2")
    ran = run(recipe, one)
    # One training; then four times prune, retrain, share, pack.
    assert (ran.computed, ran.cached, len(ran.plan.trials)) == (17, 0, 4)
    spread = run(recipe, two, jobs=2)
    assert spread.computed == 17
    assert states(one, recipe) == states(two, recipe)
    assert [trial["status"] for trial in two.trials(1)] == ["done"] * 4


def test_a_failed_trial_is_stored_and_the_others_go_on(tmp_path):
    text = (
        TEXT.replace('kind = "retrain"', 'kind = "retrain"\nlr = 0.01')
        + '[grid]\n"prune.budget" = [0.5, 0.0]\n'
    )
    store = Store(tmp_path)
    ran = run(Recipe.parse(text), store)
    ((index, message),) = ran.failures
    assert index == 1
    assert "removes nothing" in message
    assert [trial["status"] for trial in store.trials(1)] == ["done", "failed"]
    assert store.trials(1)[1]["error"].startswith("prune: ")
    assert store.run(1).status == "failed"


def test_one_trial_raises_its_own_error(tmp_path):
    store = Store(tmp_path)
    recipe = Recipe.parse("[model]\nname='lenet5'\n[data]\nlimit=50\n[[step]]\nkind='retrain'\nepochs=1")
    with pytest.raises(NothingToDoError, match="step 'retrain': nothing was pruned before it"):
        run(recipe, store)
    assert store.run(1).status == "failed"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["prune.skip=['fc9']"], LookupError, r"tiny: step 'prune': pattern 'fc9' matches no prunable layer"),
        (
            ["retrain.teacher=trian"],
            RecipeError,
            r"teacher 'trian' is no earlier step; did you mean 'train'\?",
        ),
        (["retrain.distill_alpha=0.5"], RecipeError, "distill_alpha needs a teacher"),
        (["pack.file=../x"], OptionError, "expected a plain file name"),
        (["lab.device=cuda"], OptionError, "has no CUDA; use --device cpu"),
        (["prune.budget={name='overal', sparsity=0.5}"], OptionError, "did you mean 'overall'"),
        (
            ["prune.budget=overal"],
            OptionError,
            "step 'prune': unknown budget 'overal': did you mean 'overall'",
        ),
        (
            ["prune.budget='0.5'"],
            OptionError,
            "budget: got the text '0.5'; write the number 0.5 without quotes",
        ),
        (["prune.budget=overall"], OptionError, "budget 'overall' needs its options"),
        (
            ["prune.schedule={name='gradul'}"],
            RecipeError,
            "unknown schedule 'gradul': did you mean 'gradual'",
        ),
        (["model.weights=none.safetensors"], SecateurError, "no such file of weights"),
        (
            ["share.bits=9"],
            OptionError,
            "step 'share': bits of K-means: expected a whole number from 1 to 8, got 9",
        ),
        (["share.method=kmean"], OptionError, "'kmean': did you mean 'kmeans'"),
        (["share.start=liner"], OptionError, "'liner': did you mean 'linear'"),
        (["share.per=layer"], OptionError, "per: expected 'tensor', 'channel', 'model' or a list"),
        (["share.per=['fc9']"], LookupError, "per: pattern 'fc9' matches no tensor"),
        (["share.options={iteration=3}"], OptionError, "method 'kmeans' does not take the options"),
        (["pack.names=fil"], OptionError, "names: Input should be 'file' or 'model', got 'fil'"),
        (
            ["pack.batch_norm=fp8"],
            OptionError,
            "batch_norm: expected None, 'fp32', 'fp16', 'bf16' or a number",
        ),
        (["pack.batch_norm=1"], OptionError, "batch_norm: expected a whole number from 2 to 12, got 1"),
        (["pack.biases=13"], OptionError, "biases: expected a whole number from 2 to 12, got 13"),
        (["pack.codebook_bits=9"], OptionError, "codebook_bits: expected a whole number from 2 to 8, got 9"),
        (
            ["pack.precision=int8"],
            OptionError,
            "precision: expected None, 'fp32', 'fp16' or 'bf16', got 'int8'",
        ),
        (["pack.coder=stron"], OptionError, "unknown coder 'stron': did you mean 'strong'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(settings, error, words):
    import torch

    if "lab.device=cuda" in settings and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=words):
        plan(Recipe.parse(TEXT, settings))


def test_a_run_tells_where_its_numbers_come_from(done):
    store, recipe, ran = done
    row = store.run(ran.run)
    assert row.recipe == json.loads(json.dumps(recipe.plain()))
    assert row.versions["torch"]
    assert row.hardware["cores"] >= 1
    assert (row.seed, row.device, row.status, row.seconds > 0) == (0, "cpu", "done", True)


def test_nothing_private_reaches_the_store(tmp_path, monkeypatch):
    home = str(Path.home())
    monkeypatch.setattr(
        sys, "argv", [f"{home}/bin/secateur", "run", f"{home}/r.toml", "--set", "hub_token=abcdef"]
    )
    store = Store(tmp_path)
    run(Recipe.parse(TEXT, [f"name='{home}/mine'", "prune.skip=['fc3']", "train.epochs=1"]), store)
    assert store.run().recipe["name"] == "~/mine"
    assert store.run().command == "secateur run ~/r.toml --set hub_token=***"
    tables = ("runs", "steps", "plan", "measurements", "trials")
    whole = "".join(str(tuple(line)) for table in tables for line in store.rows(f"SELECT * FROM {table}"))
    assert f"{home}/" not in whole
    assert "abcdef" not in whole


# -- killed at any moment
# -----------------------------------------------------------------------------------------
_KILL = """
import json, os, random, signal, sys, time
from secateur.lab.engine import run
from secateur.lab.engines import Event
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

folder, text = sys.argv[1], sys.argv[2]
recipe = Recipe.parse(text)

def states(store):
    return [dict(store.outcome(step.key).state) for trial in plan(recipe).trials for step in trial.steps]

def attempt(where, patience):
    # A fork, so that each of the attempts need not import torch again; it has one thread, so that is safe.
    child = os.fork()
    if child == 0:
        try:
            run(recipe, Store(where))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(7)
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            assert code == 0, "a resumed run failed"
            return "finished"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"

import torch
torch.set_num_threads(1)
# Once in this process, so that no attempt spends its time importing: the kills are to fall into the work.
run(recipe, Store(folder + "/warm"))
start = time.perf_counter()
assert attempt(folder + "/undisturbed", 300) == "finished"
whole = time.perf_counter() - start
expected = states(Store(folder + "/undisturbed"))
chance = random.Random(int(sys.argv[3]))
kills, stores = 0, 0
while kills < 20:
    where = f"{folder}/{stores}"
    finished = False
    while not finished:
        # Short enough that several kills fall into one run; once there are twenty, it may finish.
        patience = chance.uniform(0, whole * 0.6) if kills < 20 else 300
        if attempt(where, patience) == "killed":
            kills += 1
        else:
            finished = True
    assert states(Store(where)) == expected, f"other bytes after being killed, in store {stores}"
    for state in expected:
        Store(where).objects.get(state["weights"].removeprefix("object:"))  # whole, not only there
    stores += 1
print(json.dumps({"kills": kills, "stores": stores, "seconds": whole}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start twenty runs quickly")
def test_killed_at_twenty_random_moments_the_numbers_are_the_same(tmp_path):
    seed = str(
        int(time.time())
    )  # another twenty moments each time; printed, so that a failure can be repeated
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    script = subprocess.run(
        [sys.executable, "-c", _KILL, str(tmp_path), TEXT, seed],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0, f"seed {seed}: {script.stderr}"
    found = json.loads(script.stdout)
    assert found["kills"] >= 20


def test_two_processes_on_one_store_compute_each_step_once(tmp_path):
    code = """
import json, sys
from secateur.lab.engine import run
from secateur.lab.engines import Event
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
print(json.dumps(run(Recipe.parse(sys.argv[2]), Store(sys.argv[1])).computed))
"""
    command = [sys.executable, "-c", code, str(tmp_path), TEXT]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    computed = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(computed) == 5
    store = Store(tmp_path)
    assert len(store.rows("SELECT key FROM steps")) == 5
    assert [row.status for row in store.runs()] == ["done", "done"]


def test_stored_weights_of_a_changed_model_are_refused(done):
    import torch

    from secateur.lab.state import revive

    store, _, ran = done
    with pytest.raises(StoreError, match="the stored weights do not fit a fresh Linear"):
        revive(store.outcome(ran.plan.keys()[0]).state, store.objects, lambda: torch.nn.Linear(2, 1))


SWEPT = """
[data]
limit = 20
size = 28
[model]
name = "fc"
[[step]]
kind = "prune"
[[step]]
kind = "measure"
what = ["params"]
[grid]
"prune.budget" = [0.5, 0.6, 0.7]
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_freed_while_a_run_begins_are_computed_again(tmp_path, monkeypatch, jobs):
    store, recipe = Store(tmp_path / "runs"), Recipe.parse(SWEPT)
    assert len(run(recipe, store).measurements) == 12

    def command():  # it is asked for while the run is registered: until then nothing keeps `gc` away
        Store(tmp_path / "runs").gc(keep=0)
        return "secateur run"

    monkeypatch.setattr("secateur.lab.engine.command", command)
    again = run(recipe, store, jobs=jobs)
    assert (again.failures, again.computed, len(again.measurements)) == ((), 6, 12)
    assert store.run().status == "done"


class _Forgetful:
    """An engine that says that everything is done, and stores nothing."""

    slots = 2

    def __init__(self):
        self.keys = []

    def submit(self, node):
        self.keys.append(node.key)

    def events(self):
        keys, self.keys = self.keys, []
        return [Event("done", key) for key in keys]

    def close(self, *, now):
        pass


def test_a_run_that_lacks_outcomes_has_failed(tmp_path):
    store = Store(tmp_path / "runs")
    ran = run(Recipe.parse(SWEPT), store, engine=_Forgetful())
    assert [index for index, _ in ran.failures] == [0, 1, 2]
    assert "prune: the store holds no outcome of this step after the run" in ran.failures[0][1]
    assert store.run().status == "failed"
    with pytest.raises(StoreError, match="no outcome of this step after the run"):
        run(Recipe.parse(SWEPT.partition("[grid]")[0]), store, engine=_Forgetful())
    assert [row.status for row in store.runs()] == ["failed", "failed"]
