"""What the processor offers: `cores`, how many of them this process may use; and whether it multiplies bfloat16.

>>> cores() >= 1
True
"""

from __future__ import annotations

import os
import platform

import torch

from secateur.core.user_warnings import warn

__all__ = ["cores", "multiplies_bfloat16", "warn_of_slow_bfloat16"]

_X86 = ("x86_64", "amd64", "i386", "i686")
_INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def cores() -> int:
    """How many this process may use; a container or `taskset` may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def multiplies_bfloat16() -> bool:
    """Whether an x86 processor has instructions that multiply bfloat16; without them float32 is faster."""
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in _INSTRUCTIONS)


def warn_of_slow_bfloat16(device: torch.device | str) -> None:
    """Warn where bfloat16 would be emulated: on an x86 processor without instructions for it.

    Args:
        device: Where bfloat16 is about to be computed.
    """
    if (
        torch.device(device).type == "cpu"
        and platform.machine().lower() in _X86
        and not multiplies_bfloat16()
    ):
        warn(
            "precision bf16: this processor has no instructions for bfloat16, and emulates it many times slower than "
            "it computes float32; take precision fp32 here (in a recipe: --set train.precision=fp32, by the step's "
            "label)"
        )
