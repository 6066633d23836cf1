"""`MaskedEvaluation`: one evaluation repeated under many masks, in the fastest way that gives the same numbers.

Where the evaluation is batches and the model can be recorded, `ScreenedTop1` counts the correct predictions. Where it
is a function of the model, it is opaque: `PrefixCache` keeps what the model computes before the masked layer, and the
rest runs as it is.

>>> import torch
>>> from secateur.core.masks import Masks
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> batches = [(torch.randn(9, 4), torch.randint(0, 2, (9,)))]
>>> half = Masks({"2.weight": torch.arange(16).reshape(2, 8) < 8})
>>> evaluation = Evaluation.of(batches)
>>> with repeated(model, evaluation) as now:
...     dense, found = now.dense(), list(now.values([EvaluationJob(["2.weight"], [("half", half)])]))
>>> name, (share, interval) = found[0]
>>> name, share == top_1(half.apply(model), batches)[0], interval
('half', True, None)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Queue
from threading import Barrier, Event, Lock
from typing import Any, Protocol

import psutil
import torch
from torch import nn
from torch.multiprocessing import get_context

from secateur.core.interrupts import uninterrupted
from secateur.core.masks import Masks
from secateur.core.nested import tensors_in
from secateur.errors import DataError, OptionError
from secateur.execution.undisturbed import undisturbed
from secateur.metrics.accuracy import top_1
from secateur.sensitivity.prefix_cache import PrefixCache
from secateur.sensitivity.screened_top1 import ScreenedTop1

__all__ = [
    "CallPool",
    "Evaluation",
    "EvaluationJob",
    "MaskedEvaluation",
    "Value",
    "on_pool",
    "on_threads",
    "on_workers",
    "repeated",
    "worth_threads",
]

Value = tuple[float, float | None]  # the number, and half of its 95 % interval or None


@dataclass(frozen=True)
class Evaluation:
    """A function of the model, or batches for top-1 of which each value has an `interval` if they are a sample."""

    function: Callable[[nn.Module], float] | None = None
    batches: list[Any] = field(default_factory=list)
    interval: bool = False

    @classmethod
    def of(cls, evaluate: Any, subset: int | None = None) -> Evaluation:
        """From the argument of `scan`: a function, or batches of which the first `subset` examples are taken."""
        if not callable(evaluate):
            return cls(None, _first(evaluate, subset), subset is not None)
        if subset is not None:
            raise OptionError(
                "subset: a function decides itself what it evaluates on; pass batches (inputs, targets) instead of a "
                "function, or let the function take fewer"
            )
        return cls(evaluate)

    def plainly(self, model: nn.Module) -> Value:
        """The value of the unmasked model, computed by running it."""
        if self.function is None:
            return self.share(*top_1(model, self.batches))
        value = float(self.function(model))
        if math.isnan(value):
            raise DataError("scan: evaluate returned NaN; return a finite number for every pruned model")
        return value, None

    def share(self, share: float, count: int) -> Value:
        """A share of counted targets, with its interval if they are a sample."""
        return share, (_half_width(share, count) if self.interval else None)


@dataclass(frozen=True)
class EvaluationJob:
    """Masks over the same parameters, each with the name its value is known by."""

    names: list[str]
    masks: list[tuple[str, Masks]]

    @property
    def rows(self) -> bool:
        """Whether the masks remove only whole rows of one tensor."""
        if len(self.names) != 1:
            return False
        found = [masks[self.names[0]] for _, masks in self.masks]
        flat = [mask.flatten(1) for mask in found if mask.dim() > 1]
        return len(flat) == len(found) and all(bool((m.all(1) | ~m.any(1)).all()) for m in flat)


@contextmanager
def repeated(
    model: nn.Module, evaluation: Evaluation, memory: int = 1 << 30, quick: bool = True
) -> Iterator[MaskedEvaluation]:
    """An evaluation of this model that can be repeated. The model's weights are restored exactly."""
    screened: ScreenedTop1 | str = "quick=False was given"
    with undisturbed(model), torch.no_grad():
        if quick and evaluation.function is None:
            with undisturbed(model, mode="eval"), torch.no_grad():
                screened = ScreenedTop1.of(model, evaluation.batches, memory)
        elif quick:
            screened = "a function of the model decides itself what it runs"
        if isinstance(screened, ScreenedTop1):
            with undisturbed(model, mode="eval"), torch.no_grad():
                yield MaskedEvaluation(model, evaluation, screened, None)
            return
        with PrefixCache(model, memory) as cache:
            yield MaskedEvaluation(model, evaluation, None, cache, screened)


class MaskedEvaluation:
    """What `repeated` yields: the value of the unmasked model, the order of evaluation, and values under masks."""

    def __init__(
        self,
        model: nn.Module,
        evaluation: Evaluation,
        screened: ScreenedTop1 | None,
        cache: PrefixCache | None,
        reason: str = "",
    ):
        self.model = model
        self.evaluation = evaluation
        self.screened = screened
        self.cache = cache
        self.reason = reason

    def dense(self) -> Value:
        """The value of the unmasked model; call it first."""
        if self.cache is not None:
            return self.cache.first(lambda: self.evaluation.plainly(self.model))
        return self.evaluation.plainly(self.model)

    def position(self, names: Sequence[str]) -> int:
        """When the model first uses one of these parameters: jobs in this order share what is kept."""
        if self.screened is not None:
            return self.screened.folded.position(names)
        assert self.cache is not None
        return self.cache.position(names)

    def values(self, jobs: Iterable[EvaluationJob]) -> Iterator[tuple[str, Value]]:
        """Yield the value under each mask as soon as it is computed."""
        for job in jobs:
            if not job.masks:
                continue
            if self.screened is not None:
                way = self.screened.before(job.names, job.rows)
            else:
                assert self.cache is not None
                way = self.cache.before(job.names)
            with way:
                for name, masks in job.masks:
                    yield name, self._masked(masks)

    def _masked(self, masks: Masks) -> Value:
        """The value under these masks; the weights are restored exactly, also after an error."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        saved = {name: parameters[name].detach().clone() for name in masks}
        try:
            masks.apply_(self.model)
            if self.screened is not None:
                count = self.screened.count()
                return self.evaluation.share(count / self.screened.total, self.screened.total)
            assert self.cache is not None
            return self.cache.run(lambda: self.evaluation.plainly(self.model))
        finally:
            _restore(parameters, saved)

    @property
    def peak(self) -> int:
        """The most bytes kept at one time."""
        return self.screened.folded.peak if self.screened is not None else self.cache.peak  # type: ignore[union-attr]

    @property
    def skipped(self) -> int:
        """Steps or module calls answered from memory."""
        return self.screened.folded.skipped if self.screened is not None else self.cache.skipped  # type: ignore

    @property
    def how(self) -> str:
        """How the values were computed, as a sentence."""
        if self.screened is not None:
            return self.screened.summary
        return f"as the model runs, what comes before the layer kept: {self.reason}"


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


def _first(batches: Iterable[Any], subset: int | None) -> list[Any]:
    """The batches in memory, or as many as hold the first `subset` examples."""
    if subset is None:
        return list(batches)
    if subset < 1:
        raise OptionError(f"subset: expected a number of examples of at least 1, got {subset}")
    taken: list[Any] = []
    left = subset
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise OptionError(
                "subset: expected batches (inputs, targets); for other batches take fewer beforehand"
            )
        inputs, targets = batch[0][:left], batch[1][:left]
        taken.append((inputs, targets))
        left -= len(targets)
        if left <= 0:
            return taken
    raise DataError(f"subset: the data holds {subset - left} examples, asked for {subset}")


def _half_width(share: float, count: int) -> float:
    """Half of Wilson's 95 % interval of a share of `count`; unlike the normal interval it is valid near 0 and 1."""
    z = 1.959963984540054
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


@uninterrupted
def _restore(parameters: dict[str, nn.Parameter], saved: dict[str, torch.Tensor]) -> None:
    """Put weights back."""
    for name, value in saved.items():
        parameters[name].copy_(value)
