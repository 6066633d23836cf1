"""`Usage`: what a run takes of the machine over time: processors, memory and GPUs, while trials share them.

Samples are taken by a thread of the process that started the run, about once a second; a long run is sampled less
often, so that there are never more than `MOST`. The store keeps them as data of the run; the report draws them. GPUs
are read by NVML where `nvidia-ml-py` is installed. Of a cluster only this machine is seen.

>>> usage = Usage(interval=0.01, readers=(lambda: {"processors": 0.5},))
>>> for k in range(3):
...     usage.sample(float(k))
>>> [row.name for row in usage.measurements()], usage.measurements()[0].value
(['usage'], 0.5)
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeAlias

import psutil

from secateur.core.measurement import Measurement, Measurements

__all__ = ["MOST", "Reader", "Usage"]

MOST = 400
"""The largest number of samples of a run."""

Reader: TypeAlias = Callable[[], Mapping[str, float]]
"""Reads some numbers of the machine now, by name."""

_FEW = 3  # fewer samples are not worth a chart
_GIB = 2**30
_TEXTS = {
    "processors": ("", "share of this machine's processors that were busy, by any program"),
    "memory": ("GiB", "memory of this run's processes"),
    "trials": ("", "steps of trials computed at the same moment"),
}


def machine() -> Reader:
    """A reader of processors and memory."""
    psutil.cpu_percent(None)  # the first reading of a process has no time before it
    this = psutil.Process()

    def read() -> dict[str, float]:
        held = 0
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has just ended
                held += process.memory_info().rss
        return {"processors": psutil.cpu_percent(None) / 100, "memory": held / _GIB}

    return read


def gpus() -> Reader | None:
    """A reader of every NVIDIA GPU; None without NVML or without a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no library, no driver, or a driver that refuses
        return None

    def read() -> dict[str, float]:
        found = {}
        for index, handle in enumerate(handles):
            found[f"GPU {index}"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            found[f"memory of GPU {index}"] = pynvml.nvmlDeviceGetMemoryInfo(handle).used / _GIB
        return found

    return read if handles else None


class Usage:
    """Samples of one run.

    Args:
        interval: Seconds between two samples at first.
        readers: What is read; None: processors, memory and GPUs of this machine.
    """

    def __init__(self, interval: float = 1.0, readers: tuple[Reader, ...] | None = None):
        self.running = 1
        """Steps that are computed now; the engine sets it."""
        self.interval = interval
        self._readers = readers
        self._rows: list[tuple[float, dict[str, float]]] = []
        self._timed, self._ended, self._sampling = threading.Event(), threading.Event(), threading.Lock()

    def sample(self, seconds: float) -> None:
        """Take one sample.

        Args:
            seconds: Since the run began.
        """
        if self._readers is None:
            self._readers = tuple(reader for reader in (machine(), gpus()) if reader is not None)
        row: dict[str, float] = {}
        for reader in self._readers:
            row |= reader()
        self._rows.append((seconds, row | {"trials": float(self.running)}))
        if len(self._rows) >= MOST:
            del self._rows[1::2]
            self.interval *= 2

    @contextlib.contextmanager
    def taken(self) -> Iterator[Usage]:
        """Sample while the block runs; without samples where the system gives no thread.

        A `threading.Thread` is not started here: where there is no memory for it, its `start` waits for ever. And the
        thread begins in a generator, whose frame is there already: a function's needs memory, and Python would print
        that there is none.
        """
        with contextlib.suppress(RuntimeError, MemoryError):
            _thread.start_new_thread(self._watch(time.monotonic()).__next__, ())
        try:
            yield self
        finally:
            self._ended.set()
            with self._sampling:  # a sample that is being taken is finished
                pass

    @contextlib.contextmanager
    def paused(self, timed: bool = True) -> Iterator[None]:
        """No samples while the block runs in this process, because its time is measured.

        Args:
            timed: Whether that is so; else the block runs as any other.
        """
        if timed:
            self._timed.set()
        try:
            yield
        finally:
            self._timed.clear()

    def _watch(self, began: float) -> Generator[None]:
        """Sample until the block has ended; yields once, at its end.

        Args:
            began: When the run began, by the monotone clock.
        """
        try:
            while not self._ended.wait(self.interval):
                with self._sampling:
                    if not (self._timed.is_set() or self._ended.is_set()):
                        self.sample(time.monotonic() - began)
        except Exception:  # a run never fails because the machine cannot be read
            pass
        yield

    def measurements(self) -> Measurements:
        """The samples, one measurement for each quantity; empty for a run too short to have several."""
        if len(self._rows) < _FEW:
            return Measurements()
        names = dict.fromkeys(name for _, row in self._rows for name in row)
        found = []
        for name in names:
            own = [(seconds, row[name]) for seconds, row in self._rows if name in row]
            seconds, values = zip(*own)
            unit, text = _TEXTS.get(
                name, ("GiB", f"{name} in use") if "memory" in name else ("", f"{name}, share busy")
            )
            context = {
                "what": name,
                "seconds": [round(one, 2) for one in seconds],
                "values": [round(one, 4) for one in values],
            }
            mean = round(sum(values) / len(values), 4)
            found.append(
                Measurement("usage", mean, unit, f"{text}; mean of {len(own)} samples", context=context)
            )
        only = [one for one in found if one.context["what"] != "trials"]
        most = max(found, key=lambda one: one.context["what"] == "trials")
        return Measurements(found if max(most.context["values"]) > 1 else only)
