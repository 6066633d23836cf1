"""Two processes train what one does: the batches are shared, the gradients averaged, the masks held."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

_SCRIPT = """
import os, sys
import torch
from torch import nn
from secateur import data
from secateur.core.masks import Masks
from secateur.lab.training import TrainingContext, TrainingOptions, train

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
masks = Masks({"1.weight": torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) > 0.5})
options = TrainingOptions(epochs=3, lr=0.05, batch_size=33, accumulate=2, augment="standard", schedule="cosine")
digits = data.load("digits", limit=300)
trained = train(model, digits, options, masks=masks, device="cpu",
                context=TrainingContext(checkpoint=sys.argv[1] + ".checkpoint"))
if os.environ.get("RANK", "0") == "0":
    losses = [record.train_loss for record in trained.history]
    right = trained.history[-1].train_accuracy
    torch.save({"model": model.state_dict(), "losses": losses, "right": right}, sys.argv[1])
if torch.distributed.is_initialized():
    torch.distributed.barrier()  # gloo aborts a process whose peer closes the connection first
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter that ends under them
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [subprocess.Popen([sys.executable, str(script), str(tmp_path / "one")], env=quiet)]
    for rank in ("0", "1"):
        launched = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        running.append(
            subprocess.Popen([sys.executable, str(script), str(tmp_path / "two")], env={**quiet, **launched})
        )
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    one, two = torch.load(tmp_path / "one"), torch.load(tmp_path / "two")
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-4, atol=1e-5)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["right"] == pytest.approx(one["right"], abs=0.01)
    removed = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) <= 0.5
    assert (two["model"]["1.weight"][removed] == 0).all()
