"""Which GPUs each process of this machine uses: one each in turn, a fraction of one, or several.

A process sees only its own GPUs (CUDA_VISIBLE_DEVICES), by the names that this process has for them.

>>> distributed(3, ["0", "1"])
[('0',), ('1',), ('0',)]
>>> distributed(4, ["2", "5"], each=0.5)
[('2',), ('5',), ('2',), ('5',)]
>>> distributed(2, ["0", "1", "2", "3"], each=2)
[('0', '1'), ('2', '3')]
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from secateur.errors import OptionError

__all__ = ["checked_share", "distributed", "gpus_here"]


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES, else by their numbers."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [word.strip() for word in given.split(",") if word.strip()]
    return (names or [str(index) for index in range(count)])[:count]


def checked_share(gpus: float) -> float:
    """The number of GPUs of a trial, checked: a fraction below 1, or a whole number.

    Args:
        gpus: The number.

    Returns:
        The same number.

    Raises:
        OptionError: It is something else.

    >>> checked_share(1.5)
    Traceback (most recent call last):
    secateur.errors.OptionError: gpus: expected a fraction below 1 or a whole number, got 1.5
    """
    if gpus < 0:
        raise OptionError(f"gpus: expected 0 or more, got {gpus}")
    if gpus > 1 and gpus != int(gpus):
        raise OptionError(f"gpus: expected a fraction below 1 or a whole number, got {gpus}")
    return gpus


def distributed(jobs: int, gpus: Sequence[str], each: float | None = None) -> list[tuple[str, ...]]:
    """The GPUs of each process.

    Args:
        jobs: How many processes.
        gpus: The names of the GPUs.
        each: GPUs of each process; a fraction puts several on one GPU; None gives one to each, in turn.

    Returns:
        Names of GPUs, per process.

    Raises:
        OptionError: There are not enough GPUs.

    >>> distributed(5, ["0", "1"], each=0.5)
    Traceback (most recent call last):
    secateur.errors.OptionError: 5 jobs of 0.5 GPUs each: 2 GPUs have room for 4; take fewer jobs or smaller shares
    >>> distributed(2, [])
    [(), ()]
    """
    if each is None:
        return [(gpus[job % len(gpus)],) if gpus else () for job in range(jobs)]
    checked_share(each)
    if each == 0:
        return [()] * jobs
    # The tolerance lets ten shares of 0.1 fit one GPU in spite of rounding.
    room = len(gpus) * int(1 / each + 1e-9) if each < 1 else len(gpus) // int(each)
    if jobs > room:
        raise OptionError(
            f"{jobs} jobs of {each:g} GPUs each: {len(gpus)} {'GPU has' if len(gpus) == 1 else 'GPUs have'} room "
            f"for {room}; take fewer jobs or smaller shares"
        )
    if each < 1:
        return [(gpus[job % len(gpus)],) for job in range(jobs)]
    count = int(each)
    return [tuple(gpus[job * count : (job + 1) * count]) for job in range(jobs)]
