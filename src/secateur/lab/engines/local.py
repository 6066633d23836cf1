"""The local engine: processes on this machine, with its cores and GPUs distributed among them.

A process that is killed is replaced, and its step begins again (a training from its last complete epoch); after the
third time the step fails. All processes end when the one that started them ends.

    engine = LocalEngine(Store("runs"), jobs=2, threads=1, gpus=[("0",), ("1",)])
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection, get_context
from types import ModuleType
from typing import TYPE_CHECKING

from secateur.lab.display import Progress
from secateur.lab.engines import EngineCall, Event, Node
from secateur.lab.engines.driving import numbers
from secateur.lab.planning import PlannedTrial
from secateur.lab.store import Store

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from secateur.lab.training import EpochRecord, TrainingProgress

__all__ = ["LocalEngine", "ReportingProgress", "failed"]

_ATTEMPTS = 3
_REPORT_EVERY = 0.5  # seconds between two reports of a training


class _Worker:
    """A process, the connection to it, and the node it computes."""

    def __init__(self, folder: str, threads: int, gpus: tuple[str, ...], node: Node | EngineCall | None):
        # Not fork: a forked process inherits torch's thread pools in an undefined state.
        context = get_context("spawn")
        self.gpus = gpus
        self.node = node
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, folder, threads, gpus, os.getpid()), daemon=True
        )
        scripted = node is not None and node.scripted
        with _interrupts_held(), contextlib.nullcontext() if scripted else _script_hidden():
            self.process.start()
        theirs.close()

    def end(self, *, now: bool) -> None:
        if not now:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C while a process starts, so that the process never gets it; here it arrives a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """Start a process that does not run the user's script again, as spawned processes do by default: that would take
    time, and never end for a script without `if __name__ == "__main__":`."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class LocalEngine:
    """Computes in processes on this machine.

    Args:
        store: The store that they read and write.
        jobs: How many processes.
        threads: torch's threads in each.
        gpus: Per process the GPUs it sees; where left out every process sees all.
    """

    def __init__(self, store: Store, jobs: int, threads: int, gpus: Sequence[tuple[str, ...]] = ()):
        self.slots = jobs
        self._folder, self._threads = str(store.folder), threads
        self._gpus = list(gpus) or [()] * jobs
        self._workers: list[_Worker] = []
        self._attempts: dict[str, int] = {}
        self._pending: deque[Event] = deque()

    def submit(self, node: Node | EngineCall) -> None:
        """Send the node or call to an idle process."""
        worker = next((one for one in self._workers if one.node is None), None)
        if worker is None:
            worker = _Worker(self._folder, self._threads, self._gpus[len(self._workers)], node)
            self._workers.append(worker)
        worker.node = node
        self._attempts[node.key] = self._attempts.get(node.key, 0) + 1
        # `events` notices a process that died while idle, and gives the node to its replacement.
        with contextlib.suppress(OSError):
            worker.connection.send(_order(node))

    def events(self) -> Iterable[Event]:
        """What the processes reported; those that died are replaced."""
        connections = {worker.connection: worker for worker in self._workers}
        for ready in connection.wait(list(connections), timeout=0.2):
            worker = connections[ready]  # type: ignore[index]
            try:
                while True:
                    event = worker.connection.recv()
                    if event.what in ("done", "failed"):
                        worker.node = None
                        self._attempts.pop(event.key, None)
                    self._pending.append(event)
                    if not worker.connection.poll():
                        break
            except (EOFError, OSError):
                self._replace(worker)
        found, self._pending = list(self._pending), deque[Event]()
        return found

    def _replace(self, worker: _Worker) -> None:
        node = worker.node
        place = self._workers.index(worker)
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        worker.end(now=True)
        self._workers[place] = fresh = _Worker(self._folder, self._threads, worker.gpus, node)
        if node is None:
            return
        if self._attempts[node.key] < _ATTEMPTS:
            self._attempts[node.key] += 1
            fresh.connection.send(_order(node))
            return
        why = (
            f"its process was killed {_ATTEMPTS} times (exit code {code}; out of memory, perhaps); steps that are "
            "done are kept: run it again, with fewer --jobs"
        )
        fresh.node = None
        self._pending.append(Event("failed", node.key, text=why, trace=why))

    def close(self, *, now: bool) -> None:
        """End all processes."""
        for worker in self._workers:
            if now:
                worker.process.terminate()
            else:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
        for worker in self._workers:
            worker.end(now=now)
        self._workers = []


def _order(node: Node | EngineCall) -> EngineCall | tuple[PlannedTrial, int]:
    """What is sent to a process."""
    return node if isinstance(node, EngineCall) else (node.trial, node.position)


# -- in the process
class _ReportedTraining:
    """Reports a training's progress as text, at intervals."""

    def __init__(self, report: Callable[[str], object]):
        self._report, self._last, self._epochs, self._accuracy = report, 0.0, 0, ""

    def start(self, epochs: int, steps: int, done: int) -> None:
        self._epochs = epochs

    def step(self, epoch: int, step: int, loss: float) -> None:
        if time.monotonic() - self._last > _REPORT_EVERY:
            self._last = time.monotonic()
            self._report(f"epoch {min(epoch, self._epochs)}/{self._epochs}  loss {loss:.3f}{self._accuracy}")

    def epoch(self, record: EpochRecord) -> None:
        accuracy = record.metrics.get("accuracy")
        self._accuracy = f"  accuracy {accuracy:.1%}" if accuracy is not None else ""

    def finish(self) -> None:
        pass


class ReportingProgress(Progress):
    """Reports the epochs of a step as text, to be sent to another process.

    Args:
        report: Called with the text.
    """

    def __init__(self, report: Callable[[str], object]):
        self._report = report

    def training(self) -> TrainingProgress:
        """The display of one training."""
        return _ReportedTraining(self._report)


def _serve(line: Connection, folder: str, threads: int, gpus: tuple[str, ...], parent: int) -> None:
    """What a process does: compute what it is sent, and report the result."""
    if gpus:  # before the driver reads it, which it does once
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # Ctrl-C goes to every process of the terminal; the parent handles it, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    import torch

    torch.set_num_threads(threads)
    store = Store(folder)
    while True:
        try:
            task = line.recv()
        except (EOFError, OSError):
            return
        if task is None:
            return
        if isinstance(task, EngineCall):
            line.send(_called(task, line))
            continue
        trial, position = task
        line.send(_one(store, trial, position, line))


def _called(call: EngineCall, line: Connection) -> Event:
    """Call a function, and report each value at once."""
    line.send(Event("start", call.key))
    try:
        for value in call.values():
            line.send(Event("value", call.key, value=value))
    except Exception as error:
        return failed(call.key, error)
    return Event("done", call.key)


def failed(key: str, error: Exception) -> Event:
    """The event of a call that ended with an error; `value` is the error, where it can be pickled.

    Args:
        key: Of the call.
        error: What it raised.

    Returns:
        The event.
    """
    try:
        whole = pickle.loads(pickle.dumps(error))
    except Exception:
        whole = None
    return Event(
        "failed", key, text=str(error) or type(error).__name__, trace=traceback.format_exc(), value=whole
    )


def _one(store: Store, trial: PlannedTrial, position: int, line: Connection) -> Event:
    """Compute one step, unless another process has computed it meanwhile."""
    from secateur.lab import computing

    key = trial.steps[position].key
    try:
        with store.lock(key):
            outcome = store.outcome(key)
            how = "cached"
            if outcome is None:
                how = "computed"
                line.send(Event("start", key))
                checkpoint = store.checkpoint(key)
                with computing.threads(trial.recipe.lab.threads):
                    outcome = computing.compute(
                        trial,
                        position,
                        before=lambda count: computing.state_after(trial, count, store),
                        objects=store.objects,
                        checkpoint=checkpoint,
                        progress=ReportingProgress(lambda text: line.send(Event("epoch", key, text=text))),
                    )
                store.keep(outcome)
                checkpoint.unlink(missing_ok=True)
        text = str(outcome.log.get("line", ""))
        return Event("done", key, how, outcome.seconds, text, found=numbers(outcome.measurements))
    except Exception as error:
        return Event("failed", key, text=str(error) or type(error).__name__, trace=traceback.format_exc())


def _die_with(parent: int) -> None:
    """End this process when its parent has ended, so that a killed run leaves no process behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
