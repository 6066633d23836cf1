"""The jobs of an evaluation, distributed: over threads, processes, or a pool of workers.

Each of them prepares a copy of the model once, as `repeated` does, and evaluates its share of the jobs with it. A value
is the same wherever it is computed.

>>> import torch
>>> from torch import nn
>>> from secateur.core.masks import Masks
>>> model = nn.Linear(4, 2)
>>> batches = [(torch.randn(9, 4), torch.randint(0, 2, (9,)))]
>>> jobs = [EvaluationJob(["weight"], [("none", Masks({"weight": torch.zeros(2, 4, dtype=torch.bool)}))])]
>>> [name for name, _ in on_threads(model, Evaluation.of(batches), jobs, 2, 1 << 20, True)]
['none']
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from threading import Barrier, Event, Lock
from typing import Any, Protocol

import psutil
import torch
from torch import nn
from torch.multiprocessing import get_context

from secateur.core.nested import tensors_in
from secateur.errors import OptionError
from secateur.sensitivity.evaluation import Evaluation, EvaluationJob, Value, repeated

__all__ = ["CallPool", "on_pool", "on_threads", "on_workers", "worth_threads"]


def on_workers(
    model: nn.Module,
    evaluation: Evaluation,
    jobs: Sequence[EvaluationJob],
    workers: int,
    memory: int,
    quick: bool,
) -> Iterator[tuple[str, Value]]:
    """The values of these jobs from this number of processes, each with its share of the threads and of the memory.

    Neighbouring jobs stay together, so that every process computes what comes before its first layer once.
    """
    context = get_context("spawn")
    answers = context.Queue()
    threads = max(1, torch.get_num_threads() // workers)
    started = []
    try:
        for part in _parts(jobs, workers):
            given = (model, evaluation, part, memory // workers, quick, threads, answers)
            process = context.Process(target=_work, args=given, daemon=True)
            try:
                process.start()
            except Exception as error:
                raise OptionError(
                    f"workers: the model and evaluate are sent to other processes and cannot be pickled ({error}); "
                    "define them at the "
                    "top of a module, or leave workers out"
                ) from error
            started.append(process)
        running = len(started)
        while running:
            try:
                kind, payload = answers.get(timeout=1.0)
            except Exception:  # nothing yet: is a process still alive?
                if all(process.exitcode is not None for process in started) and answers.empty():
                    codes = [process.exitcode for process in started]
                    raise OptionError(f"workers: the processes ended without an answer ({codes})") from None
                continue
            if kind == "value":
                yield payload
            elif kind == "done":
                running -= 1
            else:
                raise payload
    finally:
        for process in started:
            process.terminate()
            process.join()


def on_threads(
    model: nn.Module,
    evaluation: Evaluation,
    jobs: Sequence[EvaluationJob],
    workers: int,
    memory: int,
    quick: bool,
) -> Iterator[tuple[str, Value]]:
    """The values of these jobs from threads of this process, each with a copy of the model and its share of memory.

    Nothing is pickled and no script is started again, so this works wherever the call is made.
    """
    answers: Queue[tuple[str, Value] | Exception | None] = Queue()
    before, stop = torch.get_num_threads(), Event()
    parts = _parts(jobs, workers)
    # To trace a model changes what every call of a module does, in all threads: one prepares at a time, and none runs
    # before all are prepared.
    preparing, prepared = Lock(), Barrier(len(parts))

    def work(part: Sequence[EvaluationJob]) -> None:
        torch.set_num_threads(max(1, before // workers))
        try:
            with ExitStack() as stack:
                try:
                    with preparing:
                        now = stack.enter_context(
                            repeated(copy.deepcopy(model), evaluation, memory // workers, quick)
                        )
                finally:
                    prepared.wait()
                if now.cache is not None:
                    now.dense()
                for found in now.values(part):
                    answers.put(found)
                    if stop.is_set():
                        return
        except Exception as error:
            answers.put(error)
        finally:
            answers.put(None)

    running = len(parts)
    with ThreadPoolExecutor(running) as pool:
        try:
            for part in parts:
                pool.submit(work, part)
            while running:
                found = answers.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield found
        finally:
            stop.set()
            prepared.abort()
            torch.set_num_threads(before)


_PAYS_OFF = 10.0
"""Seconds of work from which threads pay off: each prepares its own copy of the model."""


def worth_threads(model: nn.Module, evaluation: Evaluation, jobs: int, seconds: float, memory: int) -> int:
    """How many threads are worth starting: as many as torch may use, as far as memory allows.

    Args:
        model: The model.
        evaluation: How it is evaluated. A user's own function is not called by several threads at a time.
        jobs: How many jobs are left.
        seconds: How long they would take in this thread.
        memory: The bytes that kept values may take, all threads together.
    """
    most = min(torch.get_num_threads(), jobs)
    if most < 2 or evaluation.function is not None or seconds < _PAYS_OFF:
        return 1
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        return 1
    model_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    batch_bytes = max((t.nbytes for t in tensors_in(list(evaluation.batches))), default=0)
    free = psutil.virtual_memory().available - memory
    return max(1, min(most, free // (3 * model_bytes + _ACTIVATIONS * batch_bytes + 1)))


_ACTIVATIONS = 64
"""Bytes of activations of a forward pass, for each byte of its batch, that are reckoned with."""


class CallPool(Protocol):
    """Processes that call functions: `secateur.lab.engines.worker_pool.WorkerPool` is one."""

    slots: int

    def each(
        self,
        function: Callable[..., Iterable[Any]],
        common: tuple[Any, ...],
        parts: Sequence[tuple[Any, ...]],
    ) -> Iterator[Any]:
        """Yield what `function(*common, *part)` yields for every part, as it arrives."""


def on_pool(
    model: nn.Module,
    evaluation: Evaluation,
    jobs: Sequence[EvaluationJob],
    pool: CallPool,
    memory: int,
    quick: bool,
) -> Iterator[tuple[str, Value]]:
    """The values of these jobs, each job one call of the pool; every value once."""
    met = set()
    common = (model, evaluation, memory // pool.slots, quick)
    for name, value in pool.each(_of_one, common, [(job,) for job in jobs]):
        if name not in met:  # a part that was started again
            met.add(name)
            yield name, value


def _of_one(
    model: nn.Module, evaluation: Evaluation, memory: int, quick: bool, job: EvaluationJob
) -> Iterator[tuple[str, Value]]:
    """The values of one job, in a process of its own."""
    with repeated(model, evaluation, memory, quick) as now:
        if now.cache is not None:
            now.dense()
        yield from now.values([job])


def _parts(jobs: Sequence[EvaluationJob], workers: int) -> list[list[EvaluationJob]]:
    """The jobs distributed in turn, so that the early ones, which take longest, go to different processes."""
    return [part for part in (list(jobs[i::workers]) for i in range(workers)) if part]


def _work(
    model: nn.Module,
    evaluation: Evaluation,
    jobs: list[EvaluationJob],
    memory: int,
    quick: bool,
    threads: int,
    answers: Any,
) -> None:
    """The main function of a process: it sends every value of its jobs, or the error that stopped it."""
    torch.set_num_threads(threads)
    try:
        with repeated(model, evaluation, memory, quick) as now:
            if now.cache is not None:
                now.dense()
            for found in now.values(jobs):
                answers.put(("value", found))
        answers.put(("done", None))
    except BaseException as error:
        answers.put(("error", error))
