"""The judge of an attack: one input at a time is read, and the promise of docs/SECURITY.md is held to it.

Of each input: no exception but our own; at most two seconds of processor time; at most 64 MB + 8 times its size of
memory, by the kernel's high-water mark, which is set back before each input; and no change of the quick fingerprint
of the process (random generators, descriptors, threads, settings, the defaults of the commonest classes). Of each
batch, besides: no change of the whole snapshot, every class among it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from attacks import process_state
from attacks.targets import Target

MOST_SECONDS, FREE_BYTES, BYTES_PER_BYTE = 2.0, 64 << 20, 8
_ENDLESS = 20.0  # seconds of processor time after which an input is ended


class BatchError(AssertionError):
    """The promise was broken by one of the inputs of a batch."""


class TooLong(BaseException):
    """An input that does not end; no reader may catch it."""


@dataclass
class Tally:
    """What came of inputs.

    Attributes:
        verdicts: How many of a target were refused or taken, by "TARGET: refused" and "TARGET: taken".
        slowest: The most processor time one took, in seconds.
        largest: The most memory one took, in bytes.
        seconds: The processor time of all of a target, by its name.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Judge:
    """Runs inputs and holds them to the promise.

    Attributes:
        tally: What came of them.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self._began = 0.0
        self._marks = os.open(
            "/proc/self/clear_refs", os.O_WRONLY
        )  # of Linux, as is all that is read below /proc
        self._sizes = os.open("/proc/self/statm", os.O_RDONLY)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self.look()

    def look(self) -> None:
        """Take the process as it is now for what no input may change."""
        self._fingerprint = process_state.fingerprint()

    def close(self) -> None:
        """Close what the measure of memory holds open."""
        os.close(self._marks)
        os.close(self._sizes)
        os.close(self._status)

    def one(self, target: Target, data: bytes) -> None:
        """Run one input.

        Args:
            target: The reader.
            data: The input.

        Raises:
            AssertionError: The promise was broken. Any other exception of the reader comes through.
        """
        os.write(self._marks, b"5")  # see proc(5)
        before = int(os.pread(self._sizes, 64, 0).split()[1]) * resource.getpagesize()
        began = self._began = time.process_time()
        verdict = target.run(data)
        took = time.process_time() - began
        grown = self._high_water() - before
        self.tally.verdicts[f"{target.name}: {verdict}"] += 1
        self.tally.seconds[target.name] = self.tally.seconds.get(target.name, 0.0) + took
        self.tally.slowest, self.tally.largest = max(self.tally.slowest, took), max(self.tally.largest, grown)
        if took > MOST_SECONDS:
            raise AssertionError(f"{took:.2f} s of processor time, at most {MOST_SECONDS} are promised")
        if grown > FREE_BYTES + BYTES_PER_BYTE * len(data):
            raise AssertionError(f"{grown:,} bytes of memory for an input of {len(data):,}")
        now = process_state.fingerprint()
        if now != self._fingerprint:
            changed = [name for name, value in now.items() if value != self._fingerprint[name]]
            self._fingerprint = now
            raise AssertionError(f"the process has changed: {changed}")

    def _high_water(self) -> int:
        """The most memory since the mark was set back, in bytes.

        Not `ru_maxrss`: there a process that was started by a larger one keeps the mark of that one.
        """
        status = os.pread(self._status, 1 << 14, 0)
        return int(status.partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Inputs that are judged together, by the whole snapshot of the process.

        Raises:
            BatchError: Something in it has changed.
        """
        with self._endless_ends():
            ctypes.CDLL(None).malloc_trim(0)  # so that what earlier inputs freed hides nothing of the next
            before = process_state.snapshot()
            self.look()
            yield
            gc.collect()
            changed = process_state.changes(before, process_state.snapshot())
        if changed:
            raise BatchError(f"the process has changed: {changed[:3]}")

    @contextlib.contextmanager
    def _endless_ends(self) -> Iterator[None]:
        """Within it, an input that does not end is ended by `TooLong`.

        The clock of the wall looks at the processor's: a timer of the processor's time would make that clock coarse.
        """

        def look(number: int, frame: FrameType | None) -> None:
            if time.process_time() - self._began > _ENDLESS:
                raise TooLong(f"not ended after {_ENDLESS} s of processor time")

        handler = signal.signal(signal.SIGALRM, look)
        self._began = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, _ENDLESS / 4, _ENDLESS / 4)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
