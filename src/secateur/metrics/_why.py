"""`why`: where the time of two models goes, layer by layer, and why it fell less than the multiply-accumulates.

Every layer of both models is run alone on the input it gets inside its model; the two versions of a layer are timed in
turns. On the CPU what another process took of a reading is left out: the processor's own time decides.
A layer whose time fell less than its multiply-accumulates gets the reason that a measurement or a count
supports:

- no products: a norm, an activation or pooling; its time follows the bytes it moves.
- launch overhead: it takes hardly longer than the same layer on a tiny input (measured).
- odd width: the layer at the next multiple of 8 channels is no slower (measured).
- memory-bound: few multiply-accumulates per byte moved.
- lower rate: none of these; the smaller shapes reach fewer multiply-accumulates a second.

>>> import torch
>>> from torch import nn
>>> large = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 8))
>>> small = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))
>>> found = why(large, small, torch.zeros(16, 256), repetitions=3)
>>> [(row.name, row.macs) for row in found.rows]
[('0', (2097152, 262144)), ('1', (0, 0)), ('2', (65536, 8192))]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.core.measurement import Measurement, Measurements
from secateur.core.renamed import renamed
from secateur.errors import DataError
from secateur.execution.calling import call, evaluating
from secateur.execution.devices import device_of, sync
from secateur.execution.example import Example
from secateur.execution.verb import verb
from secateur.metrics.latency import compare, switches
from secateur.metrics.macs import macs

__all__ = ["LayerTime", "Why", "why"]

_SLOWER = 1.25  # a layer needs a reason if its time is above this many times that suggested by its multiply-accumulates
_FEW = 8.0  # multiply-accumulates per byte moved below which a layer waits for memory
_SHORTEST = 2e-4  # seconds a reading lasts at least
_TAKEN = 0.9  # a reading is interrupted if its own time is below this share of its time by the clock
_BUSY = 0.25  # share of interrupted readings from which the table says so


@dataclass(frozen=True)
class LayerTime:
    """One layer in both models, before and after.

    Attributes:
        name: The layer's name.
        kind: Its class.
        macs: Multiply-accumulates.
        ms: Milliseconds of all its runs in one forward pass.
        moved: Bytes of weights, inputs and outputs.
        reason: Why its time fell less than its multiply-accumulates; empty where it did not.
    """

    name: str
    kind: str
    macs: tuple[int, int]
    ms: tuple[float, float]
    moved: tuple[int, int]
    reason: str = ""


@dataclass(frozen=True)
class Why:
    """Where the time of two models goes. Prints as a table.

    Attributes:
        rows: The layers, in the order they run.
        macs: Multiply-accumulates of the models.
        ms: Milliseconds of a forward pass of the models.
        threads: Threads that were used.
        device: Where the models ran.
        speedup: How many times as fast the smaller model is, with its interval; None for the ratio of `ms`.
        unfused: Layers that run one by one in the smaller model only: in the larger one torch runs them in one call.
        interrupted: The share of the layers' readings during which another process had the processor.
    """

    rows: tuple[LayerTime, ...]
    macs: tuple[int, int]
    ms: tuple[float, float]
    threads: int
    device: str
    speedup: Measurement | None = None
    unfused: tuple[str, ...] = ()
    interrupted: float = 0.0

    @property
    def outside(self) -> tuple[float, float]:
        """Milliseconds of each model outside its layers: operators between them, and Python."""
        before, after = (whole - sum(row.ms[i] for row in self.rows) for i, whole in enumerate(self.ms))
        return before, after

    def summary(self) -> str:
        """A few sentences: what fell by how much, and which reasons explain most of the remaining time."""
        fewer = self.macs[0] / max(1, self.macs[1])
        faster = f"{self.ms[0] / self.ms[1]:.2f}x" if self.speedup is None else self.speedup.text()
        text = f"{fewer:.2f}x fewer multiply-accumulates, {faster} as fast on {self.device}."
        missing = self.ms[1] - self.ms[0] / fewer
        shown = [f"{kind} {ms:.3g} ms" for kind, ms in self._lost(fewer) if ms > 0]
        if missing > 0 and shown:
            text += f" Of the {missing:.3g} ms above what the count suggests: {', '.join(shown)}."
        if self.unfused:
            text += (
                f" {len(self.unfused)} layers, such as {self.unfused[0]}, run one by one in the smaller model only: in "
                "the larger one torch runs them in one call, which needs the widths that it was built with."
            )
        if self.interrupted >= _BUSY:
            text += (
                f" {self.interrupted:.0%} of the layers' readings were interrupted by other work: their times are the "
                "processor's own, and what is outside the layers is not reliable; measure again on an idle machine."
            )
        return text

    def _lost(self, fewer: float) -> list[tuple[str, float]]:
        """Milliseconds above what the count suggests, by the kind of reason, the most first."""
        held = {"outside the layers": self.outside[1] - self.outside[0] / fewer}
        for row in self.rows:
            if row.reason:
                lost = row.ms[1] - row.ms[0] * (row.macs[1] / row.macs[0] if row.macs[0] else 1.0 / fewer)
                kind = row.reason.split(":")[0]
                held[kind] = held.get(kind, 0.0) + max(0.0, lost)
        return sorted(held.items(), key=lambda item: -item[1])

    def to_json(self) -> str:
        """The table as JSON."""
        speedup = None if self.speedup is None else self.speedup.to_dict()
        plain = {**asdict(replace(self, speedup=None)), "speedup": speedup, "outside_ms": self.outside}
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        head = ("layer", "MACs", "ms", "fewer", "faster", "reason")
        lines = []
        for row in self.rows:
            fewer = f"{row.macs[0] / row.macs[1]:.2f}x" if row.macs[1] else ""
            lines.append(
                (
                    f"{row.name} ({row.kind})",
                    f"{row.macs[0]:,} -> {row.macs[1]:,}" if row.macs[0] else "",
                    f"{row.ms[0]:.3f} -> {row.ms[1]:.3f}",
                    fewer,
                    f"{row.ms[0] / row.ms[1]:.2f}x",
                    row.reason,
                )
            )
        lines.append(
            ("outside the layers", "", f"{self.outside[0]:.3f} -> {self.outside[1]:.3f}", "", "", "")
        )
        widths = [max(len(head[i]), *(len(line[i]) for line in lines)) for i in range(len(head))]
        table = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths)).rstrip() for line in (head, *lines)
        ]
        return "\n".join([*table, self.summary()])


@renamed(trials="repetitions")
@verb
def why(
    before: nn.Module,
    after: nn.Module,
    example: Example,
    *,
    repetitions: int = 9,
    threads: int | None = None,
    times: Measurements | None = None,
) -> Why:
    """Time every layer of two models that name their layers alike, and say why time fell less than the count. Neither
    model is changed.

    Args:
        before: The larger model.
        after: The smaller model, such as its shrunk copy.
        example: What both are called with.
        repetitions: Readings of each layer, taken in turns; medians are shown.
        threads: Threads of torch during the measurement.
        times: What `sc.compare(before, after, example)` gave, so that the whole models are not timed again; None
            times them.

    Returns:
        A row for each layer, and the totals.

    Raises:
        DataError: The models have no layer of the same name.
    """
    calls = [_calls(model, example) for model in (before, after)]
    names = [name for name in calls[0] if name in calls[1]]
    if not names:
        raise DataError(
            f"why: no layer of {type(before).__name__} is also one of {type(after).__name__}; give a model and its "
            "shrunk copy, which name their layers alike"
        )
    counts = [macs(model, example)["macs"] for model in (before, after)]
    device = device_of(before)
    with _threads(threads):
        rows, shares = [], list[float]()
        for name in names:
            one, two = calls[0][name], calls[1][name]
            ms = _turns([_run(one, device, shares), _run(two, device, shares)], repetitions)
            row = LayerTime(
                name,
                type(one.module).__name__,
                (counts[0].per_layer.get(name, 0), counts[1].per_layer.get(name, 0)),  # type: ignore[arg-type]
                (ms[0], ms[1]),
                (one.moved, two.moved),
            )
            rows.append(_explained(row, two, device, repetitions))
        used = torch.get_num_threads()
    whole = times
    if whole is None:
        whole = compare(before, after, example, repetitions=max(repetitions, 3), threads=threads)
    plural = "" if used == 1 else "s"
    where = f"{used} thread{plural} of the CPU" if device.type == "cpu" else device.type
    total = (int(counts[0].value), int(counts[1].value))
    both = (float(whole[0].value), float(whole[1].value))
    unfused = tuple(name for name in calls[1] if name not in calls[0])
    interrupted = sum(share < _TAKEN for share in shares) / max(1, len(shares))
    return Why(tuple(rows), total, both, used, where, whole["speedup"], unfused, interrupted)


@dataclass(frozen=True)
class _Call:
    """A layer, what it was called with, how often, and the bytes it moves."""

    module: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    times: int
    moved: int


def _calls(model: nn.Module, example: Example) -> dict[str, _Call]:
    """Every layer without submodules that runs, with the input of its first run."""
    found: dict[str, _Call] = {}
    names = {module: name for name, module in model.named_modules() if not any(module.children())}

    def seen(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        name = names[module]
        old = found.get(name)
        if old is not None:
            found[name] = _Call(old.module, old.args, old.kwargs, old.times + 1, old.moved)
            return
        tensors = [t for t in pytree.tree_leaves((args, kwargs, output)) if torch.is_tensor(t)]
        moved = sum(t.numel() * t.element_size() for t in (*tensors, *module.parameters()))
        # copies: a layer in place would change the input of the next reading
        kept, words = pytree.tree_map(lambda t: t.clone() if torch.is_tensor(t) else t, (args, kwargs))
        found[name] = _Call(module, kept, words, 1, moved)

    handles = [module.register_forward_hook(seen, with_kwargs=True) for module in names]
    try:
        with evaluating(model, example) as inputs:
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _run(one: _Call, device: torch.device, shares: list[float] | None = None) -> Callable[[], float]:
    """A function that makes one reading of a layer, in milliseconds of all its runs in one pass.

    On the CPU a reading lasts as long as it would have with the layer's usual share of the processor, at least one
    whole core, where the processor was taken away during it: threads that are idle by themselves cost time by the
    clock. `shares` gets the share of that in each reading, 1 where nothing was taken.
    """
    threads = float(torch.get_num_threads())
    worked = [1.0]  # cores that worked at a time, in each reading
    quiet = list[float]()  # the same, where nothing was taken

    def usual() -> float:
        """Several threads wait for each other more in some readings than in others: one switch says little then.
        Before there is a reading that nothing disturbed, the largest share so far is taken.
        """
        return max(1.0, statistics.median(quiet)) if quiet and threads > 1 else max(worked)

    def passes(count: int) -> tuple[float, float]:
        """Seconds of a pass: by the clock, and those that the processor worked for this process."""
        with torch.no_grad():
            sync(device)
            start, used = time.perf_counter(), time.process_time()
            for _ in range(count):
                one.module(*one.args, **one.kwargs)
            sync(device)
            spent, used = time.perf_counter() - start, time.process_time() - used
        return spent / count, used / count

    with evaluating(one.module):
        shortest = min(passes(1)[0] for _ in range(3))
    count = max(1, int(_SHORTEST / max(shortest, 1e-9)))

    def reading() -> float:
        with evaluating(one.module):
            _, before = switches()
            clock, own = passes(count)
            taken = switches()[1] > before
        if device.type == "cpu" and own > 0:
            cores = min(own / clock, threads)
            worked.append(cores)
            if not taken:
                quiet.append(cores)
            if shares is not None:
                shares.append(own / clock / usual() if taken else 1.0)
            if taken:
                clock = min(clock, own / usual())
        return clock * 1e3 * one.times

    return reading


def _turns(runs: list[Callable[[], float]], repetitions: int) -> list[float]:
    """The median reading of each, taken in turns."""
    readings: list[list[float]] = [[] for _ in runs]
    for turn in range(max(1, repetitions)):
        for which in range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs))):
            readings[which].append(runs[which]())
    return [statistics.median(values) for values in readings]


def _explained(row: LayerTime, after: _Call, device: torch.device, repetitions: int) -> LayerTime:
    """The row with its reason, where its time fell less than its products."""
    ratio = row.ms[1] / row.ms[0]
    expected = row.macs[1] / row.macs[0] if row.macs[0] else row.moved[1] / max(1, row.moved[0])
    if row.macs[0] == 0:
        reason = _moving(row, after, device, repetitions) if ratio > expected * _SLOWER or ratio > 0.8 else ""
    elif expected >= 1.0 or ratio <= expected * _SLOWER:
        reason = ""
    else:
        reason = _reason(row, after, device, repetitions)
    return LayerTime(row.name, row.kind, row.macs, row.ms, row.moved, reason)


def _moving(row: LayerTime, after: _Call, device: torch.device, repetitions: int) -> str:
    """Why a layer without products is no faster."""
    floor = _resized(after, tiny=True)
    if floor is not None:
        least, _ = _turns([_run(floor, device), _run(after, device)], min(5, repetitions))
        if least > 0.5 * row.ms[1]:
            return f"launch overhead: {least:.3f} ms on a tiny input"
    return f"no products: moves {_bytes(row.moved[0])} -> {_bytes(row.moved[1])}"


def _reason(row: LayerTime, after: _Call, device: torch.device, repetitions: int) -> str:
    floor = _resized(after, tiny=True)
    if floor is not None:
        least, _ = _turns([_run(floor, device), _run(after, device)], min(5, repetitions))
        if least > 0.5 * row.ms[1]:
            return f"launch overhead: {least:.3f} ms on a tiny input"
    wide = _resized(after, tiny=False)
    if wide is not None:
        rounded, odd = _turns([_run(wide, device), _run(after, device)], min(5, repetitions))
        if rounded <= odd:
            sizes = f"{_widths(after.module)} is no faster than {_widths(wide.module)}"
            return f"odd width: {sizes}; shrink with round_to=8"
    intensity = row.macs[1] / max(1, row.moved[1])
    if intensity < _FEW:
        return f"memory-bound: {intensity:.1f} multiply-accumulates per byte moved ({_bytes(row.moved[1])})"
    rates = [macs / ms / 1e6 for macs, ms in zip(row.macs, row.ms)]
    return f"lower rate: {rates[0]:.1f} -> {rates[1]:.1f} G multiply-accumulates a second"


def _resized(one: _Call, tiny: bool) -> _Call | None:
    """The same layer on a tiny input, or at the next multiples of 8 channels; None where that is not possible."""
    if one.kwargs or len(one.args) != 1:
        return None
    x = one.args[0]
    if not isinstance(x, torch.Tensor):
        return None
    if tiny:
        small = _tiny(one.module, x)
        return None if small is None else _Call(one.module, (small,), {}, one.times, 0)
    wide = _widened(one.module, x)
    return None if wide is None else _Call(wide[0], (wide[1],), {}, one.times, 0)


def _tiny(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """The smallest input the layer takes."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])[:1]
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, tuple):
        least = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size)]
        return x[:1, :, : least[0], : least[1]].contiguous()
    if x.dim() == 4 and isinstance(module, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU)):
        return x[:1, :, :1, :1].contiguous()
    return None


def _widened(module: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor] | None:
    """The layer at the next multiples of 8 channels and an input for it; None where it is there already."""
    if isinstance(module, nn.Linear):
        ins, outs = _up(module.in_features), _up(module.out_features)
        if (ins, outs) == (module.in_features, module.out_features):
            return None
        wide: nn.Module = nn.Linear(ins, outs, module.bias is not None, device=x.device, dtype=x.dtype)
        return wide, torch.randn(*x.shape[:-1], ins, device=x.device, dtype=x.dtype)
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, tuple) and module.groups == 1:
        ins, outs = _up(module.in_channels), _up(module.out_channels)
        if (ins, outs) == (module.in_channels, module.out_channels):
            return None
        wide = nn.Conv2d(
            ins,
            outs,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            bias=module.bias is not None,
            device=x.device,
            dtype=x.dtype,
        )
        return wide, torch.randn(x.shape[0], ins, *x.shape[2:], device=x.device, dtype=x.dtype)
    return None


def _up(width: int) -> int:
    # few channels, as the three of an image, are given by the data
    return width if width <= 4 else -(-width // 8) * 8


def _widths(module: nn.Module) -> str:
    keys = (
        ("in_channels", "out_channels") if hasattr(module, "in_channels") else ("in_features", "out_features")
    )
    return " to ".join(str(getattr(module, key)) for key in keys)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
