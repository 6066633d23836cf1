"""`latency`: the time of a forward pass, as a median with its spread; `compare`: two models read in turns.

>>> import torch
>>> from torch import nn
>>> small, large = nn.Linear(8, 8), nn.Linear(512, 512)
>>> table = latency(small, torch.zeros(1, 8), repetitions=5)
>>> len(table["latency"].trials), table["latency"].unit
(5, 'ms')
>>> pair = compare(large, small, torch.zeros(1, 512), torch.zeros(1, 8), repetitions=5, names=("large", "small"))
>>> pair.names(), [row.context for row in pair[:2]]
(['latency', 'speedup'], [{'variant': 'large'}, {'variant': 'small'}])

The speed of a machine varies over time. So the two models of `compare` are timed in turns, in alternating order, and
their ratio is taken within each turn.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.core.measurement import Measurement, Measurements
from secateur.core.renamed import renamed
from secateur.errors import OptionError
from secateur.execution.calling import call, describe, evaluating
from secateur.execution.devices import device_of, sync
from secateur.execution.example import Example
from secateur.execution.verb import verb

__all__ = ["by_own_time", "compare", "latency", "median_interval", "switches"]

_OWN_TIME = "processor time"
DEFINITION = "median time of one forward pass in evaluation mode, without gradients"
_SHORTEST = 1e-3  # seconds a reading should last at least: several passes make one where a pass is quicker
_WARM = 30  # passes, at most
_WARM_SECONDS = 5.0
_OWN, _OWN_SEVERAL = (
    0.9,
    0.75,
)
"""Of the processor that a process can have, what it must have in a reading; by threads."""
_BUSY = 0.25  # share of interrupted readings from which the processor's own time is told, and compared
_EXACT = sys.platform != "win32"  # there the processor's time advances in steps longer than a reading
_SHARED = "the processor was busy with other work"
_UNTOLD = itertools.count()
_RETAKES = 100  # readings of a model, at most, that are taken again


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of a model, for each pass: milliseconds by the clock, and those that the processor worked for it.

    `waited` is whether the model gave the processor up by itself.
    """

    ms: float
    own: float
    interrupted: bool
    waited: bool


@renamed(trials="repetitions")
def latency(
    model: nn.Module,
    example: Example,
    *,
    repetitions: int = 25,
    warmup: int | None = None,
    threads: int | None = None,
) -> Measurements:
    """Milliseconds of a forward pass on `example`, the whole batch.

    The model is run until its time settles, then read, each reading synchronised with the device. On the CPU a reading
    during which another process had the processor is taken again, and a single thread stays on one core while it is
    read. Where too many are interrupted all the same, the processor's own time is in the notes. `spread` holds the
    quartiles, the variance and the interval that contains the median with 95 % confidence
    whatever the distribution.

    Args:
        model: The model.
        example: What it is called with.
        repetitions: How many readings.
        warmup: How many passes before the first reading; None runs until the time settles.
        threads: Threads of torch during the measurement.
    """
    readings, notes = _readings([(model, example)], repetitions, warmup, threads)
    return Measurements([_row(readings[0], example, notes[0])])


@renamed(trials="repetitions")
@verb
def compare(
    a: nn.Module,
    b: nn.Module,
    example: Example,
    example_b: Example = None,
    *,
    repetitions: int = 25,
    warmup: int | None = None,
    threads: int | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> Measurements:
    """The latencies of two models read in turns, and `speedup`: the time of `a` over the time of `b`, turn by turn.

    Above 1, `b` is the faster one; where the interval contains 1, no difference was shown. On a processor that is busy
    with other work the longer pass is interrupted more often, so the processor's own times are compared there, and a
    note says so.

    Args:
        a: The first model.
        b: The second model.
        example: What both are called with.
        example_b: What `b` is called with, where it takes another input.
        repetitions: How many pairs of readings.
        warmup: How many passes before the first reading; None runs until the time settles.
        threads: Threads of torch during the measurement.
        names: The names of the two in the table.

    Returns:
        Three rows: both latencies and `speedup`.
    """
    second = example if example_b is None else example_b
    readings, notes = _readings([(a, example), (b, second)], repetitions, warmup, threads)
    rows = [_row(readings[i], (example, second)[i], notes[i], {"variant": names[i]}) for i in range(2)]
    ratios = [x.ms / y.ms for x, y in zip(*readings, strict=True)]
    what, note = "time", tuple[str, ...]()
    if any(_busy(one) for one in readings):
        if _own_tells(*readings):
            clock = statistics.median(ratios)
            ratios = [x.own / y.own for x, y in zip(*readings, strict=True)]
            what = _OWN_TIME
            note = (
                f"the processor was busy with other work, so its own times are compared; by the clock {clock:.4g} x",
            )
        else:
            note = (
                "the processor was busy with other work: do not rely on this ratio, measure again when it is not",
            )
    meaning = f"{what} of {names[0]} / {what} of {names[1]}, median over {repetitions} interleaved pairs"
    spread, few = _spread(ratios)
    unsure = spread["low"] <= 1.0 <= spread["high"]
    verdict = ("the interval contains 1: no difference shown",) if unsure else ()
    value = statistics.median(ratios)
    rows.append(
        Measurement("speedup", value, "x", meaning, {}, tuple(ratios), note + few + verdict, spread=spread)
    )
    return Measurements(rows)


def by_own_time(speedup: Measurement) -> bool:
    """Whether a `speedup` of `compare` is that of the processor's own times, as on a busy machine.

    Args:
        speedup: The row.
    """
    return speedup.definition.startswith(_OWN_TIME)


def median_interval(readings: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """An interval that contains the median, from the order of the readings alone.

    The number of readings below the true median follows a binomial law, whatever the law of the readings.

    Args:
        readings: The readings, in any order.
        confidence: The confidence wanted.

    Returns:
        (low, high, confidence reached).

    >>> median_interval(range(1, 26))[:2]  # the 8th and the 18th of 25
    (8, 18)
    """
    ordered = sorted(readings)
    count = len(ordered)
    chances = [math.comb(count, k) / 2**count for k in range(count + 1)]
    rank = 1
    while 2 * sum(chances[: rank + 1]) <= 1 - confidence:
        rank += 1
    return ordered[rank - 1], ordered[count - rank], 1 - 2 * sum(chances[:rank])


def _readings(
    pairs: list[tuple[nn.Module, Example]], repetitions: int, warmup: int | None, threads: int | None
) -> tuple[list[list[_Reading]], list[tuple[str, ...]]]:
    """Readings of each model: `repetitions` of each, read in turns whose order alternates."""
    if repetitions < 1:
        raise OptionError(f"latency: expected at least 1 (repetitions=), got {repetitions}")
    if threads is not None and threads < 1:
        raise OptionError(f"latency: expected at least 1 thread, got {threads}")
    if len(pairs) == 2 and pairs[0][0] is pairs[1][0] and pairs[0][1] is pairs[1][1]:
        raise OptionError("compare: both models are the same object; give the two to be compared")
    before = torch.get_num_threads()
    collecting = gc.isenabled()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        gc.disable()  # a garbage collection within a reading is not the model's time
        return _in_turns(pairs, repetitions, warmup)
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(before)


def _in_turns(
    pairs: list[tuple[nn.Module, Example]], repetitions: int, warmup: int | None
) -> tuple[list[list[_Reading]], list[tuple[str, ...]]]:
    runs: list[Callable[[], _Reading]] = []
    notes: list[tuple[str, ...]] = []
    readings: list[list[_Reading]] = [[] for _ in pairs]
    for model, example in pairs:
        run, note = _prepared(model, example, warmup)
        runs.append(run)
        notes.append(note)
    for turn in range(repetitions):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for which in order:
            readings[which].append(runs[which]())
    return readings, notes


def _prepared(
    model: nn.Module, example: Example, warmup: int | None
) -> tuple[Callable[[], _Reading], tuple[str, ...]]:
    """A function that makes one reading of a warmed-up model, and the notes on it."""
    device = device_of(model)

    alone = device.type == "cpu"
    pinned = alone and torch.get_num_threads() == 1 and _core() is not None

    def passes(count: int) -> tuple[float, float]:
        """Seconds of a pass: by the clock, and those that the processor worked for this process."""
        with evaluating(model, example) as inputs, _on_one_core() if pinned else nullcontext():
            sync(device)
            start, used = time.perf_counter(), time.process_time()
            for _ in range(count):
                call(model, inputs)
            sync(device)
            spent, used = time.perf_counter() - start, time.process_time() - used
        return spent / count, used / count

    shares: list[float] = []  # of the processor, in every pass: 1 for each thread that works all the time

    def warming(count: int) -> float:
        seconds, own = passes(count)
        shares.append(own / max(seconds, 1e-9))
        return seconds

    warm, settled = _warm(warming, warmup)
    count = max(1, math.ceil(_SHORTEST / max(min(warm), 1e-9)))
    retakes = iter(range(_RETAKES))

    def reading() -> _Reading:
        while True:
            before = switches()
            seconds, own = passes(count)
            waits, interruptions = (now - then for now, then in zip(switches(), before))
            shares.append(own / max(seconds, 1e-9))
            short = own < _expected(shares, len(warm)) * seconds
            interrupted = alone and _EXACT and interruptions > 0 and short
            if not interrupted or next(retakes, None) is None:
                waited = waits > 0 and max(shares[len(warm) :]) < _OWN
                return _Reading(seconds * 1e3, own * 1e3, interrupted, waited or not alone)

    number = torch.get_num_threads()
    threads = f", {number} thread{'' if number == 1 else 's'}" if device.type == "cpu" else ""
    notes = [
        f"on {_device_name(device)}{threads}, {len(warm)} passes to warm up, {count} passes a reading"
        + (", each on one core" if pinned else "")
    ]
    if not settled:
        notes.append(f"not settled after {len(warm)} passes: read the spread before the median")
    return reading, tuple(notes)


def _expected(shares: Sequence[float], warm: int) -> float:
    """The share of the processor that a reading is to have: nearly what the readings had at best.

    A model that waits (for a GPU or a service) is not being interrupted. The first shares, of single passes to warm up,
    are too short to tell how many threads work at a time.
    """
    if max(shares) < 0.1:
        return 0.0
    return max(_OWN, _OWN_SEVERAL * max(shares[warm:]))


def switches() -> tuple[int, int]:
    """How often this process has given the processor up, and how often it was taken away.

    Where the system does not tell, the second is always one more than before: the shares of the processor decide.
    """
    if resource is None:
        return 0, next(_UNTOLD)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_nvcsw, used.ru_nivcsw


def _own_tells(one: Sequence[_Reading], other: Sequence[_Reading]) -> bool:
    """Whether the processor's own times can stand for the times of two models: both worked, on as many threads."""
    if any(each.waited or each.own <= 0 for each in (*one, *other)):
        return False
    best = [max(each.own / max(each.ms, 1e-9) for each in readings) for readings in (one, other)]
    return max(best) <= 1.2 or max(best) <= 1.2 * min(best)


def _busy(readings: Sequence[_Reading]) -> bool:
    return sum(each.interrupted for each in readings) >= _BUSY * len(readings)


def _core() -> int | None:
    """The core this thread is running on; None where the system cannot keep a thread on a core."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        found = int(ctypes.CDLL(None).sched_getcpu())
    except (OSError, AttributeError):
        return None
    return found if found in os.sched_getaffinity(0) else None


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this thread on its core for one reading; for longer, another process may take that core."""
    core, allowed = _core(), os.sched_getaffinity(0)
    try:
        if core is not None:
            with suppress(OSError):
                os.sched_setaffinity(0, {core})
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)


def _warm(passes: Callable[[int], float], warmup: int | None) -> tuple[list[float], bool]:
    """Run until the last three passes take as long as the three before, within a tenth."""
    seen: list[float] = []
    if warmup is not None:
        seen = [passes(1) for _ in range(max(1, warmup))]
        return seen, True
    while (len(seen) < _WARM and sum(seen) < _WARM_SECONDS) or len(seen) < 2:
        seen.append(passes(1))
        if len(seen) >= 6:
            late, early = statistics.median(seen[-3:]), statistics.median(seen[-6:-3])
            if abs(late - early) <= 0.1 * early:
                return seen, True
    return seen, False


def _spread(readings: Sequence[float]) -> tuple[dict[str, float], tuple[str, ...]]:
    low, high, reached = median_interval(readings)
    several = [*readings, *readings][: max(2, len(readings))]
    quartiles = statistics.quantiles(several, n=4, method="inclusive")
    spread = {
        "low": float(low),
        "high": float(high),
        "q25": quartiles[0],
        "q75": quartiles[2],
        "variance": statistics.variance(several),
    }
    few = f"with {len(readings)} readings the interval holds the median with {reached:.0%} confidence only"
    return spread, () if reached >= 0.95 else (few,)


def _row(
    readings: list[_Reading],
    example: Example,
    notes: tuple[str, ...],
    context: dict[str, object] | None = None,
) -> Measurement:
    tensors = [item for item in pytree.tree_leaves(example) if torch.is_tensor(item) and item.dim()]
    batch = tensors[0].shape[0] if tensors else 1
    times = [each.ms for each in readings]
    spread, few = _spread(times)
    if _busy(readings):
        own, count = (
            statistics.median(each.own for each in readings),
            sum(each.interrupted for each in readings),
        )
        few = (
            f"{count} of {len(readings)} readings were interrupted by other work; processor time: {own:.4g} ms",
            *few,
        )
    return Measurement(
        "latency",
        statistics.median(times),
        "ms",
        f"{DEFINITION}; example {describe(example)}, batch of {batch}, {len(readings)} repetitions",
        trials=tuple(times),
        notes=notes + few,
        context=context or {},
        spread=spread,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
