"""hold under fully_shard (FSDP2): two processes over gloo, each with a part of every weight or with a copy
of it (a mesh of two axes), end where one does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.pruning.two_processes import check_two_processes_end_as_one

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
masks = sc.Masks.load(f"{folder}/masks.safetensors")

def trained(mesh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
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
                    whole = parameter.to_local().shape == masks[name].shape
                    assert whole == (mesh.shape[-1] == 1), "sharded otherwise"
                    assert bool((parameter.grad.full_tensor()[~masks[name]] == 0).all()), "gradient"
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            for name, parameter in model.named_parameters():
                if name in masks:
                    for value in (parameter, optimizer.state[parameter]["exp_avg"]):
                        gone = value.full_tensor().detach()[~masks[name]]
                        assert bool((gone == 0).all()) and not bool(torch.signbit(gone).any()), "weight"
        assert held.steps == 5
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}

state = trained(init_device_mesh("cpu", (2,)))
torch.save(state, f"{folder}/rank{rank}.pt")
# replicated along the first axis, and sharded along the second, which has one process here
both = trained(init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicated", "sharded")))
assert all(torch.allclose(both[name], value, rtol=1e-10, atol=1e-14) for name, value in state.items()), "2-D"
dist.barrier()  # gloo aborts a process whose peer closes the connection first
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the interpreter that ends under them
"""


@pytest.mark.skipif(os.name == "nt", reason="gloo meets over a file")
def test_two_processes(tmp_path: Path) -> None:
    check_two_processes_end_as_one(WORKER, tmp_path, 7)  # odd: the two parts differ in size
