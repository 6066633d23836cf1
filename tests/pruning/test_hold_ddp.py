"""hold under DistributedDataParallel: two real processes over gloo end where one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import secateur as sc

WORKER = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
import secateur as sc

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
masks = sc.Masks.load(f"{folder}/masks.safetensors")
view = sys.argv[3] == "view"
wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
torch.manual_seed(1)
inputs = torch.randn(5, 8, 6, dtype=torch.float64)
with sc.hold(wrapped, masks, optimizer) as held:
    for step in range(5):
        optimizer.zero_grad()
        wrapped(inputs[step, rank * 4 : rank * 4 + 4]).square().mean().backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 0.1)
        for name, parameter in model.named_parameters():
            if name in masks:
                assert bool((parameter.grad[~masks[name]] == 0).all()), "gradient"
        optimizer.step()
        for name, mask in masks.items():
            gone = dict(model.named_parameters())[name].detach()[~mask]
            assert bool((gone == 0).all()) and not bool(torch.signbit(gone).any()), "weight"
    assert held.steps == 5
torch.save(model.state_dict(), f"{folder}/rank{rank}.pt")
dist.barrier()  # gloo aborts a process whose peer closes the connection first
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the interpreter that ends under them
"""


def single_process(masks: sc.Masks) -> dict[str, torch.Tensor]:
    """The same training by one process that sees both halves of every batch."""
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
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


def test_two_processes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = sc.Masks(
        {
            "0.weight": torch.rand(8, 6, generator=generator) > 0.5,
            "2.weight": torch.rand(3, 8, generator=generator) > 0.5,
        }
    )
    masks.save(tmp_path / "masks.safetensors")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    source = str(Path(sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), "view"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=90)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = single_process(masks)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-10, atol=1e-14), name
