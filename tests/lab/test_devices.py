"""Devices: what was computed on one goes on on another; only what is timed belongs to its device and machine."""

from __future__ import annotations

import pytest
import torch
from attacks.tiny_recipe import tiny

from secateur.execution.devices import device_word
from secateur.lab.display.progress import Progress
from secateur.lab.engine import final_state, run
from secateur.lab.engines import Event
from secateur.lab.engines.driving import drive
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Outcome, Store

TEXT = tiny("""
[[step]]
kind = "train"
epochs = 3
lr = 0.05
batch_size = 32
[[step]]
kind = "measure"
what = ["params"]
[[step]]
kind = "prune"
budget = 0.5
""")

OTHER = "cuda" if torch.cuda.is_available() else "cpu:0"  # without a GPU: another name at least


def test_only_what_is_timed_belongs_to_its_device():
    recipe = Recipe.parse(TEXT)
    here, there = (plan(recipe, device=device).keys() for device in ("cpu", "cuda"))
    assert [a == b for a, b in zip(here, there)] == [True, False, True]


def test_only_what_is_timed_belongs_to_its_machine(monkeypatch):
    recipe = Recipe.parse(TEXT)
    here = plan(recipe, device="cpu").keys()
    monkeypatch.setattr("secateur.lab.planning.fingerprint", lambda: "another machine")
    there = plan(recipe, device="cpu").keys()
    assert [a == b for a, b in zip(here, there)] == [True, False, True]


class _Interrupting(Progress):
    """Stops the first training when its first epoch is written down, as Ctrl-C does."""

    def training(self):
        class Epochs:
            def start(self, epochs, steps, done):
                self.done = done

            def step(self, epoch, step, loss):
                if epoch == 2:
                    raise KeyboardInterrupt

            def epoch(self, record):
                pass

            def finish(self):
                pass

        return Epochs()


def test_a_training_interrupted_on_one_device_goes_on_on_another(tmp_path, monkeypatch):
    recipe = Recipe.parse(TEXT)
    store = Store(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr("secateur.lab.computing.device_word", lambda asked: OTHER)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, store, progress=_Interrupting(), plan=plan(recipe, device=OTHER))
    key = plan(recipe, device="cpu").keys()[0]
    assert not store.has(key)
    assert store.checkpoint(key).is_file()
    monkeypatch.setattr("secateur.lab.computing.device_word", lambda asked: "cpu")
    ran = run(recipe, store, plan=plan(recipe, device="cpu"))
    outcome = store.outcome(key)
    assert outcome.log["resumed_from"] == 1
    assert outcome.provenance["device"] == "cpu"
    whole = Store(tmp_path / "whole")
    undisturbed = run(recipe, whole, plan=plan(recipe, device="cpu"))
    ours = final_state(ran.plan.trials[0], store, "train").model.state_dict()
    theirs = final_state(undisturbed.plan.trials[0], whole, "train").model.state_dict()
    assert whole.outcome(key).log["resumed_from"] == 0
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_device_an_outcome_came_from_is_kept(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    run(Recipe.parse(TEXT, ["lab.device=cpu"]), store)
    for step in store.trials(1)[0]["steps"]:
        assert step["device"] == "cpu"
        assert store.outcome(step["key"]).provenance["visible_gpus"] == "1"


def test_precision_is_an_option_named_in_the_recipe_and_kept_with_the_outcome(tmp_path):
    store = Store(tmp_path)
    recipe = Recipe.parse(TEXT, ["train.epochs=1", "lab.device=auto"], ["train.precision=fp32,tf32,bf16"])
    ran = run(recipe, store)
    trials = store.trials(1)
    assert [trial["steps"][0]["precision"] for trial in trials] == ["fp32", "tf32", "bf16"]
    assert [trial["steps"][2]["precision"] for trial in trials] == [None, None, None]
    # `auto` is written down as what it came to.
    auto = device_word("auto")
    assert store.run(1).device == ran.plan.device == auto
    assert {step["device"] for trial in trials for step in trial["steps"]} == {auto}
    assert len({trial["steps"][0]["key"] for trial in trials}) == 3


class _Pretend:
    """An engine that does nothing, in order, but fails what it is told to."""

    slots = 1

    def __init__(self, store, failing=()):
        self.store, self.failing = store, failing
        self.did, self.todo = [], []

    def submit(self, node):
        self.todo.append(node)

    def events(self):
        for node in self.todo:
            options = node.trial.steps[node.position].step.chosen()
            self.did.append((node.label, node.trial.index))
            if options.get("batch") in self.failing:
                yield Event("failed", node.key, text="no")
            else:
                self.store.keep(Outcome(key=node.key, kind="idle", state={}, seconds=0.0))
                yield Event("done", node.key)
        self.todo = []

    def close(self, *, now):
        pass


@pytest.mark.parametrize("failing", [1, 2])
def test_a_shared_step_waits_for_no_particular_timing(tmp_path, failing):
    """The prune comes after two measurements, which its address does not name: the one that fails stops its own
    trial alone."""
    recipe = Recipe.parse(TEXT, grid=["measure.batch=1,2"])
    made = plan(recipe, device="cpu")
    assert len(made.keys()) == 4
    store = Store(tmp_path)
    engine = _Pretend(store, failing=(failing,))
    number, alive = store.start_run(
        name="x", recipe=recipe.plain(), command="", seed=0, device="cpu", versions={}, hardware={},
        trials=[
            (trial.settings, [(step.label, step.step.kind(), step.key) for step in trial.steps])
            for trial in made.trials
        ],
    )  # fmt: skip
    with alive:
        computed, failures = drive(made, store, number, Progress(), engine, set())
    assert sorted(engine.did) == sorted(
        [("train", 0), ("measure", 0), ("measure", 1), ("prune", 2 - failing)]
    )
    assert (computed, failures) == (3, [(failing - 1, "no")])
    assert [trial["status"] for trial in store.trials(number)][2 - failing] == "done"
