"""A training held on masks by two gloo processes, and the same by one: what the tests of `hold` compare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import secateur as sc

__all__ = ["check_two_processes_end_as_one"]


def check_two_processes_end_as_one(worker: str, folder: Path, width: int, *arguments: str) -> None:
    """Run a script in two processes, and compare their weights with each other and with those of one process.

    Args:
        worker: The script. It gets its rank, the folder and the arguments, reads `masks.safetensors` of the folder, and
            writes its parameters as `rank0.pt` or `rank1.pt`.
        folder: An empty folder.
        width: The width of the hidden layer.
        *arguments: More arguments of the script.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (width, 6), "2.weight": (3, width)}
    masks = sc.Masks({name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items()})
    masks.save(folder / "masks.safetensors")
    script = folder / "worker.py"
    script.write_text(worker)
    source = str(Path(sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [each.communicate(timeout=120)[0] for each in workers]
    finally:
        for each in workers:
            each.kill()
    assert [each.returncode for each in workers] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in range(2))
    for name, value in _alone(masks, width).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-10, atol=1e-14), name


def _alone(masks: sc.Masks, width: int) -> dict[str, torch.Tensor]:
    """The weights after the same training by one process that sees both halves of every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    torch.manual_seed(1)
    inputs = torch.randn(5, 8, 6, dtype=torch.float64)
    with sc.hold(model, masks, optimizer):
        for step in range(5):
            optimizer.zero_grad()
            model(inputs[step]).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    return model.state_dict()
