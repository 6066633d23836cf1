"""Who codes and decodes beside each other: threads for what is quick, processes for what is slow.

>>> with TensorWorkers(2) as crew:
...     crew.submit(False, len, "abc").result()
3
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from secateur.errors import OptionError
from secateur.execution.processors import cores

__all__ = ["TensorWorkers", "hands"]

_Result = TypeVar("_Result")


_WORTH = 64 << 20  # bytes of tensors from which several are worth their start
_MOST = 8  # each has a section in memory


def hands(workers: int | None, nbytes: int) -> int:
    """How many workers there are to be for so many bytes of tensors; None stands for as many as pay.

    >>> hands(3, 1000), hands(None, 1000)
    (3, 1)
    """
    if workers is None:
        return min(cores(), _MOST) if nbytes >= _WORTH else 1
    if workers < 1:
        raise OptionError(f"workers: expected at least 1, got {workers}")
    return workers


class TensorWorkers:
    """Threads for quick jobs and processes for slow ones; the processes start with the first that needs them."""

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

    def submit(self, slow: bool, what: Callable[..., _Result], *given: Any) -> Future[_Result]:
        """Have it done: in a thread, or in a process (Python runs one thread's own code at a time)."""
        if not slow:
            return self._threads.submit(what, *given)
        if self._processes is None:
            self._processes = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"))
        return self._processes.submit(what, *given)
