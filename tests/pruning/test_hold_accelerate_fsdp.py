"""hold where accelerate shards a model by FSDP2: two processes over gloo, each with a part, end where one does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.pruning.two_processes import check_two_processes_end_as_one

pytest.importorskip("torch.distributed.fsdp", reason="needs fully_shard")
pytest.importorskip("accelerate", minversion="1.6", reason="needs accelerate that prepares by fully_shard")

WORKER = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
import secateur as sc

rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
masks = sc.Masks.load(f"{folder}/masks.safetensors")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
accelerator = Accelerator(cpu=True)
# accelerate shards where there are GPUs; what it does there runs on the processor as well
accelerator.state.distributed_type = DistributedType.FSDP
accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",
    transformer_cls_names_to_wrap=["Linear"],
    cpu_ram_efficient_loading=False,
)
model, optimizer = accelerator.prepare(model, optimizer)
torch.manual_seed(1)
inputs = torch.randn(5, 8, 6, dtype=torch.float64)
with sc.hold(model, masks, optimizer) as held:
    for step in range(5):
        optimizer.zero_grad()
        accelerator.backward(model(inputs[step, rank * 4 : rank * 4 + 4]).square().mean())
        for name, parameter in model.named_parameters():
            if name in masks:
                assert parameter.to_local().shape != masks[name].shape, "not sharded"
                assert bool((parameter.grad.full_tensor()[~masks[name]] == 0).all()), "gradient"
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name in masks:
                gone = parameter.full_tensor().detach()[~masks[name]]
                assert bool((gone == 0).all()) and not bool(torch.signbit(gone).any()), "weight"
    assert held.steps == 5
state = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
torch.save(state, f"{folder}/rank{rank}.pt")
dist.barrier()  # gloo aborts a process whose peer closes the connection first
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the interpreter that ends under them
"""


@pytest.mark.skipif(os.name == "nt", reason="gloo meets over a file")
def test_two_processes(tmp_path: Path) -> None:
    check_two_processes_end_as_one(WORKER, tmp_path, 7)  # odd: the two parts differ in size
