"""One recipe started as two gloo processes on CPU: what one process gets, stored once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

TEXT = """
name = "tiny"
[data]
limit = 120
[model]
name = "lenet-300-100"
[lab]
threads = 1
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
"""


@pytest.mark.slow
def test_two_launched_processes_are_one_run(tmp_path):
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "r.toml").write_text(TEXT)
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
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    two, one = Store(tmp_path / "runs"), Store(tmp_path / "one")
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
