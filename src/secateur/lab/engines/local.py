"""The local engine: processes on this machine, the cores and the GPUs shared out among them.

A process that is killed is replaced, and its step begun again (a training from its last whole epoch); the third time
the step counts as failed. All processes end with the one that started them, however that ends.

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
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import connection, get_context
from types import ModuleType
from typing import Any

from secateur.lab.display.progress import Progress
from secateur.lab.engines import EngineCall, Event, Node, numbers
from secateur.lab.store import Store

__all__ = ["LocalEngine", "TellingProgress", "failed"]

_ATTEMPTS = 3
_TELL_EVERY = 0.5  # seconds between two words about a training


class _Worker:
    """A process, the line to it, and what it is doing."""

    def __init__(self, folder: str, threads: int, gpus: tuple[str, ...], node: Node | EngineCall | None):
        # Not fork: a forked process inherits torch's thread pools in a state nobody defined.
        context = get_context("spawn")
        self.gpus = gpus
        self.node = node
        self.line, theirs = context.Pipe()
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
                self.line.send(None)
            self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.line.close()
        self.process.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, not even while they import; here it comes a moment later."""
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
    """Start processes that do not run the user's script again, as spawned ones do otherwise: that would cost its
    time once for each, and never end for a script without `if __name__ == "__main__":`."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class LocalEngine:
    """So many processes on this machine, each with so many of torch's threads and the GPUs named for it.

    Where `gpus` is left out every process sees them all.
    """

    def __init__(self, store: Store, jobs: int, threads: int, gpus: Sequence[tuple[str, ...]] = ()):
        self.slots = jobs
        self._folder, self._threads = str(store.folder), threads
        self._gpus = list(gpus) or [()] * jobs
        self._workers: list[_Worker] = []
        self._tries: dict[str, int] = {}
        self._pending: deque[Event] = deque()

    def submit(self, node: Node | EngineCall) -> None:
        """Give it to a process that has nothing to do."""
        worker = next((one for one in self._workers if one.node is None), None)
        if worker is None:
            worker = _Worker(self._folder, self._threads, self._gpus[len(self._workers)], node)
            self._workers.append(worker)
        worker.node = node
        self._tries[node.key] = self._tries.get(node.key, 0) + 1
        # A process that died while idle is noticed by `events`, which gives the node to its successor.
        with contextlib.suppress(OSError):
            worker.line.send(_order(node))

    def events(self) -> Iterable[Event]:
        """What the processes say, and which of them are gone."""
        lines = {worker.line: worker for worker in self._workers}
        for ready in connection.wait(list(lines), timeout=0.2):
            worker = lines[ready]  # type: ignore[index]
            try:
                while True:
                    event = worker.line.recv()
                    if event.what in ("done", "failed"):
                        worker.node = None
                        self._tries.pop(event.key, None)
                    self._pending.append(event)
                    if not worker.line.poll():
                        break
            except (EOFError, OSError):
                self._replace(worker)
        found, self._pending = list(self._pending), deque()
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
        if self._tries[node.key] < _ATTEMPTS:
            self._tries[node.key] += 1
            fresh.line.send(_order(node))
            return
        why = (
            f"its process was killed {_ATTEMPTS} times (exit code {code}; out of memory, perhaps); what was finished "
            "is kept: run it again, with fewer --jobs"
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
                    worker.line.send(None)
        for worker in self._workers:
            worker.end(now=now)
        self._workers = []


def _order(node: Node | EngineCall) -> Any:
    """What a process is sent."""
    return node if isinstance(node, EngineCall) else (node.trial, node.position)


# -- in the process
# ---------------------------------------------------------------------------------------------------------------------
class _Told:
    """A training's progress, told through the line now and then."""

    def __init__(self, tell: Any):
        self._tell, self._last, self._epochs, self._accuracy = tell, 0.0, 0, ""

    def start(self, epochs: int, steps: int, done: int) -> None:
        self._epochs = epochs

    def step(self, epoch: int, step: int, loss: float) -> None:
        if time.monotonic() - self._last > _TELL_EVERY:
            self._last = time.monotonic()
            self._tell(f"epoch {min(epoch, self._epochs)}/{self._epochs}  loss {loss:.3f}{self._accuracy}")

    def epoch(self, record: Any) -> None:
        accuracy = record.metrics.get("accuracy")
        self._accuracy = f"  accuracy {accuracy:.1%}" if accuracy is not None else ""

    def finish(self) -> None:
        pass


class TellingProgress(Progress):
    """What a step in another process reports its epochs to."""

    def __init__(self, tell: Any):
        self._tell = tell

    def training(self) -> Any:
        """Something that tells how far a training is."""
        return _Told(self._tell)


def _serve(line: Any, folder: str, threads: int, gpus: tuple[str, ...], parent: int) -> None:
    """The life of a process: compute what comes through the line, say what came of it."""
    if gpus:  # before anything asks for a GPU: the driver looks at this once
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # Ctrl-C goes to every process of the terminal; the parent decides what it means, and ends this one.
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


def _called(call: EngineCall, line: Any) -> Event:
    """Call a function, and tell each value as it comes."""
    line.send(Event("start", call.key))
    try:
        for value in call.values():
            line.send(Event("value", call.key, value=value))
    except Exception as error:
        return failed(call.key, error)
    return Event("done", call.key)


def failed(key: str, error: Exception) -> Event:
    """What is told of a call that ended with an error: the error itself, where it can travel."""
    try:
        whole = pickle.loads(pickle.dumps(error))
    except Exception:
        whole = None
    return Event(
        "failed", key, text=str(error) or type(error).__name__, trace=traceback.format_exc(), value=whole
    )


def _one(store: Store, trial: Any, position: int, line: Any) -> Event:
    """Compute one step, unless somebody else has by now."""
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
                        progress=TellingProgress(lambda text: line.send(Event("epoch", key, text=text))),
                    )
                store.keep(outcome)
                checkpoint.unlink(missing_ok=True)
        text = str(outcome.log.get("line", ""))
        return Event("done", key, how, outcome.seconds, text, found=numbers(outcome.measurements))
    except Exception as error:
        return Event("failed", key, text=str(error) or type(error).__name__, trace=traceback.format_exc())


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, so that a killed run leaves no process behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
