"""hold under fully_shard (FSDP2): two processes over gloo, each with a part of every weight, end where one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc

pytest.importorskip("torch.distributed.fsdp", reason="needs fully_shard")

WORKER = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import secateur as sc

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
masks = sc.Masks.load(f"{folder}/masks.safetensors")
mesh = init_device_mesh("cpu", (2,))
for part in (model[0], model[2], model):
    fully_shard(part, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
torch.manual_seed(1)
inputs = torch.randn(5, 8, 6, dtype=torch.float64)
with sc.hold(model, masks, optimizer) as held:
    for step in range(5):
        optimizer.zero_grad()
        model(inputs[step, rank * 4 : rank * 4 + 4]).square().mean().backward()
        for name, parameter in model.named_parameters():
            if name in masks:
                assert parameter.to_local().shape != masks[name].shape, "not sharded"
                assert bool((parameter.grad.full_tensor()[~masks[name]] == 0).all()), "gradient"
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name in masks:
                for value in (parameter, optimizer.state[parameter]["exp_avg"]):
                    gone = value.full_tensor().detach()[~masks[name]]
                    assert bool((gone == 0).all()) and not bool(torch.signbit(gone).any()), "weight"
    assert held.steps == 5
state = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
torch.save(state, f"{folder}/rank{rank}.pt")
dist.barrier()  # gloo aborts a process whose peer closes the connection first
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the interpreter that ends under them
"""


def single_process(masks: sc.Masks) -> dict[str, torch.Tensor]:
    """The same training by one process that has every weight and sees both halves of every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
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


@pytest.mark.skipif(os.name == "nt", reason="gloo meets over a file")
def test_two_processes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (7, 6), "2.weight": (3, 7)}  # odd: the two parts differ in size
    masks = sc.Masks({name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items()})
    masks.save(tmp_path / "masks.safetensors")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    source = str(Path(sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, value in single_process(masks).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-10, atol=1e-14), name
