"""A pool of workers that code and decode tensors: threads for fast jobs, processes for slow ones.

>>> with TensorWorkers(2) as pool:
...     pool.submit(False, len, "abc").result()
3
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from secateur.errors import OptionError
from secateur.execution.processors import cores

__all__ = ["TensorWorkers", "worker_count"]

_Result = TypeVar("_Result")


_ENOUGH = 64 << 20  # bytes of tensors from which starting several workers pays off
_MOST = 8  # each worker holds a section in memory


def worker_count(workers: int | None, nbytes: int) -> int:
    """The number of workers for `nbytes` of tensors; None asks for as many as pay off.

    >>> worker_count(3, 1000), worker_count(None, 1000)
    (3, 1)
    """
    if workers is None:
        return min(cores(), _MOST) if nbytes >= _ENOUGH else 1
    if workers < 1:
        raise OptionError(f"workers: expected at least 1, got {workers}")
    return workers


class TensorWorkers:
    """Threads for fast jobs and processes for slow ones; the processes start with the first slow job."""

    def __init__(self, workers: int):
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> TensorWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)

    def submit(self, slow: bool, function: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """Run a function in a process if it is slow Python code (its threads take turns), else in a thread."""
        if not slow:
            return self._threads.submit(function, *arguments)
        if self._processes is None:
            self._processes = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"))
        return self._processes.submit(function, *arguments)
