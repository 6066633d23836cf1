"""`latency`: the time of a forward pass, as a median with its spread; `compare`: two models read in turns.

>>> import torch
>>> from torch import nn
>>> small, large = nn.Linear(8, 8), nn.Linear(512, 512)
>>> table = latency(small, torch.zeros(1, 8), trials=5)
>>> len(table["latency"].trials), table["latency"].unit
(5, 'ms')
>>> pair = compare(large, small, torch.zeros(1, 512), torch.zeros(1, 8), trials=5, names=("large", "small"))
>>> pair.names(), [row.context for row in pair[:2]]
(['latency', 'speedup'], [{'variant': 'large'}, {'variant': 'small'}])

The speed of a machine varies over time. So the two models of `compare` are timed in turns, in alternating order, and
their ratio is taken within each turn.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError
from secateur.execution.calling import call, describe, evaluating
from secateur.execution.devices import device_of, sync
from secateur.execution.example import Example
from secateur.execution.verb import verb

__all__ = ["compare", "latency", "median_interval"]

DEFINITION = "median time of one forward pass in evaluation mode, without gradients"
_SHORTEST = 1e-3  # seconds a reading should last at least: several passes make one where a pass is quicker
_WARM = 30  # passes, at most
_WARM_SECONDS = 5.0
_OWN = 0.9  # share of a reading during which this process must have the processor
_RETAKES = 100  # readings of a model, at most, that are taken again


def latency(
    model: nn.Module,
    example: Example,
    *,
    trials: int = 25,
    warmup: int | None = None,
    threads: int | None = None,
) -> Measurements:
    """Milliseconds of a forward pass on `example`, the whole batch.

    The model is run until its time settles, then read, each reading synchronised with the device. On the CPU a reading
    during which another process had the processor is taken again, and a single thread stays on one core while it is
    read. `spread` holds the quartiles, the variance and the interval that contains the median with 95 % confidence
    whatever the distribution.

    Args:
        model: The model.
        example: What it is called with.
        trials: How many readings.
        warmup: How many passes before the first reading; None runs until the time settles.
        threads: Threads of torch during the measurement.
    """
    readings, notes = _readings([(model, example)], trials, warmup, threads)
    return Measurements([_row(readings[0], example, notes[0])])


@verb
def compare(
    a: nn.Module,
    b: nn.Module,
    example: Example,
    example_b: Example = None,
    *,
    trials: int = 25,
    warmup: int | None = None,
    threads: int | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> Measurements:
    """The latencies of two models read in turns, and `speedup`: the time of `a` over the time of `b`, turn by turn.

    Above 1, `b` is the faster one; where the interval contains 1, no difference was shown.

    Args:
        a: The first model.
        b: The second model.
        example: What both are called with.
        example_b: What `b` is called with, where it takes another input.
        trials: How many pairs of readings.
        warmup: How many passes before the first reading; None runs until the time settles.
        threads: Threads of torch during the measurement.
        names: The names of the two in the table.

    Returns:
        Three rows: both latencies and `speedup`.
    """
    second = example if example_b is None else example_b
    readings, notes = _readings([(a, example), (b, second)], trials, warmup, threads)
    rows = [_row(readings[i], (example, second)[i], notes[i], {"variant": names[i]}) for i in range(2)]
    ratios = [x / y for x, y in zip(*readings, strict=True)]
    meaning = f"time of {names[0]} / time of {names[1]}, median over {trials} interleaved pairs"
    spread, note = _spread(ratios)
    unsure = spread["low"] <= 1.0 <= spread["high"]
    verdict = ("the interval contains 1: no difference shown",) if unsure else ()
    value = statistics.median(ratios)
    rows.append(Measurement("speedup", value, "x", meaning, {}, tuple(ratios), note + verdict, spread=spread))
    return Measurements(rows)


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
    pairs: list[tuple[nn.Module, Example]], trials: int, warmup: int | None, threads: int | None
) -> tuple[list[list[float]], list[tuple[str, ...]]]:
    """Milliseconds per pass of each model, `trials` of each, read in turns whose order alternates."""
    if trials < 1:
        raise OptionError(f"latency: expected at least 1 trial, got {trials}")
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
        return _in_turns(pairs, trials, warmup)
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(before)


def _in_turns(
    pairs: list[tuple[nn.Module, Example]], trials: int, warmup: int | None
) -> tuple[list[list[float]], list[tuple[str, ...]]]:
    runs: list[Callable[[], float]] = []
    notes: list[tuple[str, ...]] = []
    readings: list[list[float]] = [[] for _ in pairs]
    for model, example in pairs:
        run, note = _prepared(model, example, warmup)
        runs.append(run)
        notes.append(note)
    for turn in range(trials):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for which in order:
            readings[which].append(runs[which]())
    return readings, notes


def _prepared(
    model: nn.Module, example: Example, warmup: int | None
) -> tuple[Callable[[], float], tuple[str, ...]]:
    """A function that makes one reading of a warmed-up model, and the notes on it."""
    device = device_of(model)

    alone = device.type == "cpu"
    pinned = alone and torch.get_num_threads() == 1 and _core() is not None

    def passes(count: int) -> tuple[float, float]:
        """(seconds a pass, share of them during which this process had the processor)."""
        with evaluating(model, example) as inputs, _on_one_core() if pinned else nullcontext():
            sync(device)
            start, used = time.perf_counter(), time.process_time()
            for _ in range(count):
                call(model, inputs)
            sync(device)
            spent, used = time.perf_counter() - start, time.process_time() - used
        return spent / count, used / max(spent, 1e-9)

    shares: list[float] = []

    def warming(count: int) -> float:
        seconds, own = passes(count)
        shares.append(own)
        return seconds

    warm, settled = _warm(warming, warmup)
    # a model that waits (for a GPU or a service) is not being interrupted
    least = _OWN if max(shares) >= 0.1 else 0.0
    count = max(1, math.ceil(_SHORTEST / max(min(warm), 1e-9)))
    retakes = iter(range(_RETAKES))

    def reading() -> float:
        while True:
            seconds, own = passes(count)
            if not alone or own >= least or next(retakes, None) is None:
                return seconds * 1e3

    number = torch.get_num_threads()
    threads = f", {number} thread{'' if number == 1 else 's'}" if device.type == "cpu" else ""
    notes = [
        f"on {_device_name(device)}{threads}, {len(warm)} passes to warm up, {count} passes a reading"
        + (", each on one core" if pinned else "")
    ]
    if not settled:
        notes.append(f"not settled after {len(warm)} passes: read the spread before the median")
    return reading, tuple(notes)


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
    readings: list[float], example: Example, notes: tuple[str, ...], context: dict[str, object] | None = None
) -> Measurement:
    tensors = [item for item in pytree.tree_leaves(example) if torch.is_tensor(item) and item.dim()]
    batch = tensors[0].shape[0] if tensors else 1
    spread, few = _spread(readings)
    return Measurement(
        "latency",
        statistics.median(readings),
        "ms",
        f"{DEFINITION}; example {describe(example)}, batch of {batch}, {len(readings)} trials",
        trials=tuple(readings),
        notes=notes + few,
        context=context or {},
        spread=spread,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
