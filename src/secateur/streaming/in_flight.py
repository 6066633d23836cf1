"""`in_flight`: work on several items at a time, in order, within a limit of memory.

>>> list(in_flight([Item(8, lambda n=n: n, lambda n: n * n) for n in range(4)], memory=16, workers=2))
[0, 1, 4, 9]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

from secateur.errors import OptionError
from secateur.execution.processors import cores

__all__ = ["Item", "in_flight", "memory_limit", "worker_limit"]

_Read = TypeVar("_Read")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Item(Generic[_Read, _Found]):
    """One piece of work.

    Attributes:
        cost: The bytes that it takes while it is processed.
        read: Returns the input of `work`; called in the caller's thread, in order.
        work: Computes the result; called in a thread of the pool.
    """

    cost: int
    read: Callable[[], _Read]
    work: Callable[[_Read], _Found]


def in_flight(items: Iterable[Item[_Read, _Found]], memory: int, workers: int) -> Iterator[_Found]:
    """The results in the order of the items; an item is read only when it fits in addition to those in progress. An
    item larger than the limit is processed alone.

    Args:
        items: The items.
        memory: The bytes that items in progress may take together.
        workers: How many are processed at a time.
    """
    waiting: deque[tuple[int, Future[_Found]]] = deque()
    used = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                while waiting and (len(waiting) > workers or used + item.cost > memory):
                    cost, future = waiting.popleft()
                    yield future.result()
                    del future
                    used -= cost
                used += item.cost
                waiting.append((item.cost, pool.submit(item.work, item.read())))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)


def memory_limit(memory: int | None) -> int:
    """The limit asked for; None for half of what is free now.

    Args:
        memory: Bytes, or None.

    Raises:
        OptionError: It is not a number of at least a mebibyte.
    """
    if memory is None:
        return psutil.virtual_memory().available // 2
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1 << 20:
        raise OptionError(f"memory: expected a number of bytes, of at least {1 << 20:,}, got {memory!r}")
    return memory


def worker_limit(workers: int | None) -> int:
    """The number of threads asked for; None for one for each processor.

    Args:
        workers: At least 1, or None.
    """
    if workers is None:
        return cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise OptionError(f"workers: expected a whole number of at least 1, got {workers!r}")
    return workers
