"""`cores`: the number of processors available to this process.

>>> cores() >= 1
True
"""

from __future__ import annotations

import os

__all__ = ["cores"]


def cores() -> int:
    """How many this process may use; a container or `taskset` may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
