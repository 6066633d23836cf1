"""The first screen of a report: one line, four figures, and one table of the variants side by side.

>>> found = Measurements([
...     Measurement("size", 1000, context={"variant": "dense"}),
...     Measurement("file_bytes", 100, context={"variant": "file"})])
>>> headline(found)
'10.0 times smaller on disk (1,000 → 100 bytes)'
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from secateur.core.measurement import Measurement, Measurements
from secateur.report.charts.pareto import front
from secateur.report.reading import LOWER, VariantRow, quality_of, rows_of

__all__ = [
    "MEASURES",
    "NAMES",
    "Comparison",
    "Line",
    "Tile",
    "comparison",
    "headline",
    "number",
    "quantity",
    "tiles",
]

_COLUMNS = 8
MEASURES = (
    "accuracy",
    "top1",
    "loss",
    "total_loss",
    "params",
    "nonzeros",
    "macs",
    "macs_nonzero",
    "latency",
    "speedup",
    "size",
    "file_bytes",
)
_SHARES = ("accuracy", "top1", "sparsity")
NAMES = {
    "params": "parameters",
    "nonzeros": "non-zero parameters",
    "macs": "multiply-accumulates",
    "macs_nonzero": "  with a non-zero weight",
    "latency": "latency, median",
    "speedup": "times as fast",
    "size": "bytes as torch.save writes it",
    "file_bytes": "bytes of the coded file",
    "tensor_bytes": "bytes of the file's tensors in memory",
    "original_bytes": "bytes of the dense tensors",
    "file_ratio": "times smaller than the dense tensors",
    "changed_tensors": "tensors that came back changed",
    "collapsed_layers": "layers found dead before training",
    "remaining": "parameters that remain",
    "testing_time": "time to test all images",
    "mask_sparsity": "share removed by the last mask",
    "proof_error": "largest difference, masked and shrunk",
    "huffman_bits": "Huffman bits per kept weight",
    "formula_ratio": "ratio by the papers' formula",
}


def is_share(name: str) -> bool:
    """Whether a measured number is a share, which is written in per cent.

    >>> is_share("accuracy"), is_share("mask_sparsity"), is_share("macs")
    (True, True, False)
    """
    return any(name == word or name.endswith(f"_{word}") for word in _SHARES)


def number(value: float | int, name: str = "", unit: str = "") -> str:
    """A number as the page writes it: the same format for the same name, whatever its size.

    >>> number(0.99166, "accuracy"), number(2562368), number(1.8505, "speedup", "x"), number(float("nan"))
    ('99.17 %', '2,562,368', '1.85×', 'diverged')
    """
    if isinstance(value, float) and math.isnan(value):
        return "diverged"
    if is_share(name):
        return f"{value * 100:.2f} %"
    if unit == "x":
        return f"{value:.2f}×"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def quantity(item: Measurement) -> str:
    """A Measurement as the page writes it, with its interval where it has one.

    >>> quantity(Measurement("latency", 4.709, "ms", spread={"low": 4.6, "high": 8.5}))
    '4.709 ms [4.6, 8.5]'
    """
    shown = "" if item.unit in ("x", "bytes", "MAC") or is_share(item.name) else item.unit
    text = f"{number(item.value, item.name, item.unit)} {shown}".rstrip()
    if "low" in item.spread and "high" in item.spread:
        ends = (number(item.spread[key], item.name, item.unit).removesuffix("×") for key in ("low", "high"))
        text += f" [{', '.join(ends)}]"
    return text


@dataclass(frozen=True)
class Line:
    """One row of the table: what, its definition, and a cell for every variant: (text, value to sort by)."""

    name: str
    definition: str
    cells: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Comparison:
    """The table of variants; `of` says how many there are when not all are shown."""

    head: tuple[str, ...]
    lines: tuple[Line, ...]
    of: int


@dataclass(frozen=True)
class Tile:
    """One of the large figures of the first screen: its name, its value, and its change from the dense model."""

    name: str
    value: str
    change: str


def tiles(measurements: Measurements) -> list[Tile]:
    """Accuracy, time, bytes and multiply-accumulates of one variant beside the dense one, as far as measured.

    The variant is the last of a run, and of a sweep the smallest within one point of the dense model. A report on
    several runs has none: its table and its figures compare them.

    >>> one = Measurement("size", 1000, context={"variant": "dense"})
    >>> tiles(Measurements([one, Measurement("file_bytes", 100, context={"variant": "file"})]))
    [Tile(name='bytes on disk', value='100', change='10.0 times smaller, from 1,000')]
    """
    rows = rows_of(measurements)
    if len({row.run for row in rows}) != 1:
        return []
    dense = next((row for row in rows if row.variant == "dense"), rows[0])
    last = rows[-1] if len({row.trial for row in rows}) == 1 else _smallest_near(rows, dense)
    if last is None or last is dense:
        return []
    found = [_quality_tile(dense, last), _time_tile(last)]
    macs = "macs_nonzero" if dense.number("macs") == last.number("macs") else "macs"
    found.append(_ratio_tile("bytes on disk", dense.bytes, last.bytes, "smaller", "larger"))
    found.append(
        _ratio_tile("multiply-accumulates", dense.number(macs), last.number(macs), "fewer", "as many")
    )
    return [tile for tile in found if tile is not None]


def _quality_tile(dense: VariantRow, last: VariantRow) -> Tile | None:
    quality = quality_of([dense, last])
    before, after = (row.number(quality) if quality else None for row in (dense, last))
    if quality is None or before is None or after is None:
        return None
    sign = "−" if after < before else "+"
    share = is_share(quality)
    by = f"{abs(after - before) * 100:.2f} points" if share else f"{abs(after - before):.4g}"
    return Tile(quality, number(after, quality), f"{sign}{by}, from {number(before, quality)}")


def _time_tile(last: VariantRow) -> Tile | None:
    speed = last.values.get("speedup")
    if speed is None:
        return None
    low, high = speed.spread.get("low", speed.value), speed.spread.get("high", speed.value)
    between = f"95 % between {low:.2f} and {high:.2f}" if low != high else "one reading"
    return Tile("times as fast", number(speed.value, "speedup", "x"), between)


def _ratio_tile(name: str, before: float | None, after: float | None, less: str, more: str) -> Tile | None:
    if not before or not after:
        return None
    ratio = before / after
    if round(ratio, 2) == 1:
        return Tile(name, f"{after:,.0f}", "as before")
    change = f"{ratio:.1f} times {less}" if ratio >= 1 else f"{1 / ratio:.1f} times {more}"
    return Tile(name, f"{after:,.0f}", f"{change}, from {before:,.0f}")


def shown_rows(measurements: Measurements) -> list[VariantRow]:
    """The variants side by side: all of one trial, else the dense ones and the Pareto front."""
    rows = rows_of(measurements)
    trials = {(row.run, row.trial) for row in rows}
    if len(rows) <= _COLUMNS and len(trials) <= max(2, len({row.run for row in rows})):
        return rows
    quality = quality_of(rows)
    dense = [row for row in rows if row.variant == "dense"][:1]
    if quality is None:
        return rows[:_COLUMNS]
    points = [
        (row, cost, good)
        for row in rows
        if (cost := _cost(row)) and (good := row.number(quality)) is not None
    ]
    best = front([(cost, good) for _, cost, good in points], quality in LOWER)
    chosen = [points[i][0] for i in reversed(best) if points[i][0].variant != "dense"]
    room = _COLUMNS - len(dense) - 1
    if len(chosen) > room:
        chosen = [chosen[round(k * (len(chosen) - 1) / (room - 1))] for k in range(room)]
    return [*dense, *chosen] or rows[:_COLUMNS]


def _cost(row: VariantRow) -> float | None:
    return (
        row.bytes
        if "file_bytes" in row.values
        else row.number("macs_nonzero") or row.number("nonzeros") or row.bytes
    )


def comparison(measurements: Measurements) -> Comparison:
    """The table of the first screen."""
    rows = shown_rows(measurements)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    order = [name for name in MEASURES if name in names] + [name for name in names if name not in MEASURES]
    lines = []
    for name in order:
        found = [row.values.get(name) for row in rows]
        first = next(item for item in found if item is not None)
        cells = tuple(
            (quantity(item), float(item.value)) if item is not None else ("", None) for item in found
        )
        lines.append(Line(NAMES.get(name, name.replace("_", " ")), first.definition, cells))
    if any("file_bytes" in row.values for row in rows):
        lines += _smaller(rows)
    return Comparison(tuple(row.label for row in rows), tuple(lines), len(rows_of(measurements)))


def _smaller(rows: list[VariantRow]) -> list[Line]:
    dense = next((row.bytes for row in rows if row.variant == "dense"), None)
    if dense is None:
        return []
    cells = tuple(
        (f"{dense / row.bytes:.2f}×", dense / row.bytes) if row.bytes else ("", None) for row in rows
    )
    return [Line("times smaller on disk", "bytes of the dense file over bytes of this variant's file", cells)]


def headline(measurements: Measurements) -> str:
    """The result in one line: dense against the best variant."""
    rows = rows_of(measurements)
    trials = {(row.run, row.trial) for row in rows}
    runs = list(dict.fromkeys(row.run for row in rows))
    if not rows:
        return "nothing was measured"
    if len(runs) > 1:
        ours = (
            headline(Measurements(m for m in measurements if str(m.context.get("run", "")) == run))
            for run in runs
        )
        return " — ".join(f"{run}: {text}" for run, text in zip(runs, ours))
    dense = next((row for row in rows if row.variant == "dense"), rows[0])
    if len(trials) > 1:
        return _best_of(rows, dense, len(trials))
    last = rows[-1]
    return _difference(dense, last) if last is not dense else _alone(dense)


def _alone(row: VariantRow) -> str:
    names = [name for name in MEASURES if name in row.values]
    return ", ".join(f"{NAMES.get(name, name)} {quantity(row.values[name])}" for name in names[:3])


def _best_of(rows: list[VariantRow], dense: VariantRow, trials: int) -> str:
    quality = quality_of(rows)
    base = None if quality is None else dense.number(quality)
    if quality is None:
        sizes = [row.bytes for row in rows if row.bytes]
        spread = f", files of {min(sizes):,.0f} to {max(sizes):,.0f} bytes" if len(set(sizes)) > 1 else ""
        return f"{trials:,} trials{spread}; no accuracy was measured"
    if base is None or not _comparable(rows, quality):
        return f"{trials:,} trials"
    within = "per cent" if quality in LOWER else "point"
    best = _smallest_near(rows, dense)
    if best is None:
        text = f"none came within one {within} of the dense model"
        return f"{trials:,} trials; {text} ({quality} {number(base, quality)})"
    words = _difference(dense, best)
    return f"{trials:,} trials; the smallest within one {within} of the dense model is {best.label}: {words}"


def _comparable(rows: list[VariantRow], quality: str) -> list[VariantRow]:
    """The variants beside the dense ones of which both quality and cost are known."""
    return [row for row in rows if row.variant != "dense" and row.number(quality) is not None and _cost(row)]


def _smallest_near(rows: list[VariantRow], dense: VariantRow) -> VariantRow | None:
    """The cheapest variant at most one point of accuracy, or one per cent of loss, worse than the dense model."""
    quality = quality_of(rows)
    base = None if quality is None else dense.number(quality)
    if quality is None or base is None:
        return None
    slack = 0.01 if quality not in LOWER else 0.01 * abs(base)
    sign = -1 if quality in LOWER else 1
    near = [
        row
        for row in _comparable(rows, quality)
        if (value := row.number(quality)) is not None and (value - base) * sign >= -slack
    ]
    return min(near, key=lambda row: _cost(row) or math.inf, default=None)


def _difference(dense: VariantRow, small: VariantRow) -> str:
    parts: list[str] = []

    def ratio(
        name: str, words: Callable[[float], str], before: float | None, after: float | None, unit: str
    ) -> None:
        if before and after and round(before / after, 2) != 1:
            parts.append(f"{words(before / after)} ({before:,.0f} → {after:,.0f}{unit})")

    ratio(
        "bytes",
        lambda r: f"{r:.1f} times smaller on disk" if r > 1 else f"{1 / r:.1f} times larger on disk",
        dense.bytes,
        small.bytes,
        " bytes",
    )
    macs = "macs_nonzero" if dense.number("macs") == small.number("macs") else "macs"
    ratio(
        "macs",
        lambda r: f"{r:.1f} times fewer multiply-accumulates",
        dense.number(macs),
        small.number(macs),
        "",
    )
    speed = small.values.get("speedup")
    if speed is not None:
        low, high = speed.spread.get("low", speed.value), speed.spread.get("high", speed.value)
        if low <= 1 <= high:
            parts.append(f"no difference in time shown ({speed.value:.2f}× [{low:.2f}, {high:.2f}])")
        else:
            parts.append(f"{speed.value:.2f} times as fast [{low:.2f}, {high:.2f}]")
    quality = next(
        (name for name in ("accuracy", "top1", "loss", "total_loss") if name in small.values), None
    )
    before, after = (row.number(quality) for row in (dense, small)) if quality else (None, None)
    if quality and before is not None and after is not None:
        change = after - before
        sign = "−" if change < 0 else "+"
        by = f"{sign}{abs(change) * 100:.2f} points" if is_share(quality) else f"{sign}{abs(change):.4g}"
        parts.append(f"{quality} {number(before, quality)} → {number(after, quality)} ({by})")
    return ", ".join(parts) or _alone(small)
