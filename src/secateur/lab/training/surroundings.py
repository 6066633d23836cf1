"""The environment of a training: its own accelerator, its own random state, deterministic kernels.

>>> from secateur.lab.training.options import TrainingOptions
>>> with own_random_state(torch.device("cpu")), exact(torch.device("cpu"), TrainingOptions()):
...     _ = torch.rand(1)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from secateur.errors import OptionError
from secateur.execution.processors import warn_of_slow_bfloat16
from secateur.lab.training.options import TrainingOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["accelerated", "exact", "own_random_state"]


@contextmanager
def accelerated(options: TrainingOptions, device: torch.device) -> Iterator[Accelerator]:
    """An accelerator for one training. accelerate keeps one global state, which another part of the program may use:
    it is set aside and restored. In a distributed launch the process group and its device stay shared."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if options.precision == "fp16" and device.type != "cuda":
        raise OptionError(
            f"precision: fp16 training needs CUDA, and the device is {device}; take bf16 or fp32"
        )
    if options.precision == "bf16":
        warn_of_slow_bfloat16(device)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # accelerate has no public way to set its global state aside.
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    if not launched:
        shared.append(PartialState._shared_state)
    kept = [dict(state) for state in shared]
    environment = os.environ.get("ACCELERATE_TORCH_DEVICE")
    for state in shared:
        state.clear()
    mixed = options.precision if options.precision in ("bf16", "fp16") else "no"
    try:
        if not launched:
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
        yield Accelerator(mixed_precision=mixed, cpu=device.type == "cpu" and not launched)
    finally:
        if not launched:
            os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
            if environment is not None:
                os.environ["ACCELERATE_TORCH_DEVICE"] = environment
        for state, before in zip(shared, kept):
            state.clear()
            state.update(before)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random state afterwards."""
    devices = [device.index or 0] if device.type in ("cuda", "mps") else []
    kind = device.type if device.type != "cpu" else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        yield


@contextmanager
def exact(device: torch.device, options: TrainingOptions) -> Iterator[None]:
    """Choose deterministic kernels, and exact fp32 unless tf32 is asked for; restore the choice afterwards."""
    if device.type != "cuda":
        yield  # the CPU has deterministic kernels only
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    strict = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.allow_tf32 = matmul.allow_tf32 = options.precision == "tf32"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = kept
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
