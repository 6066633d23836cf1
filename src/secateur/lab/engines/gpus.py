"""Which GPUs each process of this machine uses: in turn, a share of one, or several.

A process is shown its GPUs and no other (CUDA_VISIBLE_DEVICES), by the names under which this process sees them.

>>> shared_out(3, ["0", "1"])
[('0',), ('1',), ('0',)]
>>> shared_out(4, ["2", "5"], each=0.5)
[('2',), ('5',), ('2',), ('5',)]
>>> shared_out(2, ["0", "1", "2", "3"], each=2)
[('0', '1'), ('2', '3')]
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from secateur.errors import OptionError

__all__ = ["checked_share", "gpus_here", "shared_out"]


def gpus_here() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them: numbers, or what it was told."""
    count = torch.cuda.device_count()
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [word.strip() for word in told.split(",") if word.strip()]
    return (names or [str(index) for index in range(count)])[:count]


def checked_share(gpus: float) -> float:
    """How many GPUs a trial takes: a fraction below 1, or a whole number.

    >>> checked_share(1.5)
    Traceback (most recent call last):
    secateur.errors.OptionError: gpus: expected a fraction below 1 or a whole number, got 1.5
    """
    if gpus < 0:
        raise OptionError(f"gpus: expected 0 or more, got {gpus}")
    if gpus > 1 and gpus != int(gpus):
        raise OptionError(f"gpus: expected a fraction below 1 or a whole number, got {gpus}")
    return gpus


def shared_out(jobs: int, gpus: Sequence[str], each: float | None = None) -> list[tuple[str, ...]]:
    """Per process the GPUs it uses; `each` is how many a trial takes, None as it comes.

    A fraction puts so many processes on one GPU, evenly over all of them.

    >>> shared_out(5, ["0", "1"], each=0.5)
    Traceback (most recent call last):
    secateur.errors.OptionError: 5 jobs of 0.5 GPUs each: 2 GPUs have room for 4; take fewer jobs or smaller shares
    >>> shared_out(2, [])
    [(), ()]
    """
    if each is None:
        return [(gpus[job % len(gpus)],) if gpus else () for job in range(jobs)]
    checked_share(each)
    if each == 0:
        return [()] * jobs
    # Written so that 0.1 ten times is one GPU, though ten tenths of a float are not 1.
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
