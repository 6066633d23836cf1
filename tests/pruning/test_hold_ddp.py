"""hold under DistributedDataParallel: two real processes over gloo end where one process does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.pruning.two_processes import check_two_processes_end_as_one

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


@pytest.mark.skipif(os.name == "nt", reason="gloo meets over a file")
def test_two_processes(tmp_path: Path) -> None:
    check_two_processes_end_as_one(WORKER, tmp_path, 8, "view")
