"""One recipe run by two launched gloo processes on the CPU: the result of one process, stored once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from attacks.tiny_recipe import tiny

from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.steps import registry
from secateur.lab.store import Store

TEXT = tiny(
    """
device = "cpu"
[[step]]
kind = "train"
epochs = 2
lr = 0.05
batch_size = 32
[[step]]
kind = "prune"
budget = 0.5
[[step]]
kind = "retrain"
epochs = 1
lr = 0.01
batch_size = 32
""",
    limit=120,
)


# One step of every kind that trains. A kind that trains and is missing here fails the first test below.
EVERY = tiny(
    """
device = "cpu"
[[step]]
kind = "train"
epochs = 1
lr = 0.05
batch_size = 32
[[step]]
kind = "gradual"
sparsity = 0.5
every = 1
epochs = 1
lr = 0.02
batch_size = 32
[[step]]
kind = "retrain"
epochs = 1
lr = 0.01
batch_size = 32
[[step]]
kind = "epoch_time"
against = "train"
turns = 1
batch_size = 32
[[step]]
kind = "rate_train"
target = 2000
epochs = 1
lr = 0.001
batch_size = 32
coder = "fast"
[[step]]
kind = "share"
bits = 2
[[step]]
kind = "refine"
epochs = 1
batch_size = 32
""",
    limit=120,
    name="every",
)


def test_every_kind_of_step_that_trains_is_run_here():
    kinds = {step.kind() for step in Recipe.parse(EVERY).steps}
    trains = {kind for kind in registry.names() if registry.get(kind).trains}
    assert trains == {"train", "retrain", "gradual", "rate_train", "refine", "epoch_time"}
    assert trains <= kinds


def launched(folder, text):
    """The recipe as two processes that `accelerate launch` starts; their store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (folder / "r.toml").write_text(text)
    # `accelerate launch`, by its module. --cpu alone starts one process unless mpirun is there; told by the
    # environment to stay on the CPU, what is started for several GPUs is two processes that talk through gloo.
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        port,
    ]
    command = [sys.executable, *launch, "-m", "secateur", "run", "r.toml"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return Store(folder / "runs")


@pytest.mark.slow
def test_two_launched_processes_are_one_run(tmp_path):
    two, one = launched(tmp_path, TEXT), Store(tmp_path / "one")
    assert [(row.status, row.computed) for row in two.runs()] == [("done", 3)]
    recipe = Recipe.parse(TEXT)
    ran = run(recipe, one)
    ours = final_state(ran.plan.trials[0], one).model.state_dict()
    theirs = final_state(ran.plan.trials[0], two).model.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)
    assert ran.computed == 3
    # Not the same bytes: sums were made in another order. So the two processes did share the work.
    assert any(not torch.equal(theirs[name], tensor) for name, tensor in ours.items())


@pytest.mark.slow
def test_every_kind_that_trains_runs_on_two_processes(tmp_path):
    two, one = launched(tmp_path, EVERY), Store(tmp_path / "one")
    assert [(row.status, row.computed) for row in two.runs()] == [("done", 7)]
    ran = run(Recipe.parse(EVERY), one)
    for label in ("train", "gradual", "retrain"):
        ours, theirs = (final_state(ran.plan.trials[0], store, label) for store in (one, two))
        weights = theirs.model.state_dict()
        for name, tensor in ours.model.state_dict().items():
            # Rounding may choose another weight of nearly the same size to remove: a few elements may differ.
            differs = ~torch.isclose(weights[name], tensor, rtol=1e-2, atol=1e-3)
            assert differs.float().mean() < 0.01, (label, name)
    masked, book = (final_state(ran.plan.trials[0], two, label) for label in ("gradual", "refine"))
    assert masked.masks is not None
    assert masked.masks.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(len(values.values) <= 5 for values in book.codebooks.values())
    times = {m.name for m in two.measurements(1) if m.context["step"] == "epoch_time"}
    assert times == {"training_time", "training_speedup", "evaluation_time", "evaluation_speedup"}
