"""The first screen of a report: one line, four figures, and one table of the variants side by side.

>>> found = Measurements([
...     Measurement("size", 1000, context={"variant": "dense"}),
...     Measurement("file_bytes", 100, context={"variant": "file"})])
>>> headline(found)
'10.0 times smaller on disk (1,000 → 100 bytes)'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import SeedMean, is_seed
from secateur.report.charts.pareto import front
from secateur.report.reading import (
    LOWER,
    QUALITIES,
    VariantRow,
    as_text,
    is_share,
    quality_of,
    result_of,
    rows_of,
)
from secateur.report.variants import (
    change_of,
    comparable,
    cost_of,
    is_paired,
    over_seeds,
    seeds_of,
    settled,
    smallest_near,
)

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


def number(value: float | int, name: str = "", unit: str = "") -> str:
    """A number as the page writes it: the same format for the same name, whatever its size.

    >>> number(0.99166, "accuracy"), number(2562368), number(1.8505, "speedup", "x"), number(float("nan"))
    ('99.17 %', '2,562,368', '1.85×', 'diverged')
    """
    if isinstance(value, float) and math.isnan(value):
        return "diverged"
    if is_share(name) and abs(value) <= 1:  # a user's own function may give per cent
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
    """One row of the table: what, its definition, and a cell for every variant: (text, value to sort by).

    `ends` holds the ends of the 95 % interval of each cell that is a mean over seeds; empty where none is.
    """

    name: str
    definition: str
    cells: tuple[tuple[str, float | None], ...]
    ends: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The table of variants; `of` says how many there are, and `shown` which these are when not all are shown."""

    head: tuple[str, ...]
    lines: tuple[Line, ...]
    of: int
    shown: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the large figures of the first screen: its name, its value, and its change from the dense model."""

    name: str
    value: str
    change: str


def tiles(measurements: Measurements) -> list[Tile]:
    """Accuracy, time, bytes and multiply-accumulates of one variant beside what it is compared with.

    The variant is the last judged one of a run (`result_of`), and of a sweep the smallest within one point; of several
    seeds it is their mean. A report on several runs has none: its table and its figures compare them.

    >>> one = Measurement("size", 1000, context={"variant": "dense"})
    >>> tiles(Measurements([one, Measurement("file_bytes", 100, context={"variant": "file"})]))
    [Tile(name='bytes on disk', value='100', change='10.0 times smaller, from 1,000')]
    """
    rows = over_seeds(rows_of(measurements))
    if len({row.run for row in rows}) != 1:
        return []
    last = result_of(rows) if len({row.trial for row in rows}) == 1 else smallest_near(rows)
    if last is None or last.reference is None:
        return []
    base = last.reference
    unknown = f"of {_called(base)} not measured"
    found = [_quality_tile(base, last, unknown), _time_tile(last)]
    macs = _macs(base, last)
    found.append(_ratio_tile("bytes on disk", base.bytes, last.bytes, ("smaller", "larger"), unknown))
    found.append(
        _ratio_tile(
            "multiply-accumulates", base.number(macs), last.number(macs), ("fewer", "as many"), unknown
        )
    )
    return [tile for tile in found if tile is not None]


def _called(row: VariantRow) -> str:
    """What a variant is called in a sentence."""
    return "the dense model" if row.variant == "dense" else row.variant


def _macs(base: VariantRow, last: VariantRow) -> str:
    """The count of multiply-accumulates that two variants differ in."""
    return "macs_nonzero" if base.number("macs") == last.number("macs") else "macs"


def _quality_tile(base: VariantRow, last: VariantRow, unknown: str) -> Tile | None:
    quality = quality_of([last])
    before, after = (row.number(quality) if quality else None for row in (base, last))
    if quality is None or after is None:
        return None
    name = quality if seeds_of(last) == 1 else f"{quality}, mean of {_seeds(last)} seeds"
    if before is None:
        return Tile(name, number(after, quality), unknown)
    change = _by(quality, before, after, change_of(last, quality))
    return Tile(name, number(after, quality), f"{change}, from {number(before, quality)}")


def _by(quality: str, before: float, after: float, over: SeedMean | None = None) -> str:
    """How much a quality changed; of several seeds the mean of the differences seed by seed, with its interval.

    >>> _by("accuracy", 0.9, 0.88), _by("loss", 0.5, 0.75)
    ('−2.00 points', '+0.25')
    >>> _by("accuracy", 0.9, 0.88, SeedMean(-0.02, 0.03, (-0.03, -0.01)))
    '−2.00 points [−5.00, +1.00]'
    """
    shares = is_share(quality) and max(abs(before), abs(after)) <= 1

    def signed(value: float) -> str:
        sign = "−" if value < 0 else "+"
        return sign + (f"{abs(value) * 100:.2f}" if shares else f"{abs(value):.4g}")

    text = signed(after - before if over is None else over.mean) + (" points" if shares else "")
    if over is not None and not math.isnan(over.half):
        text += f" [{signed(over.low)}, {signed(over.high)}]"
    return text


def _time_tile(last: VariantRow) -> Tile | None:
    speed = last.values.get("speedup")
    if speed is None:
        return None
    low, high = speed.spread.get("low", speed.value), speed.spread.get("high", speed.value)
    between = f"95 % between {low:.2f} and {high:.2f}" if low != high else "one reading"
    return Tile(f"times as fast{_as(last)}", number(speed.value, "speedup", "x"), between)


def _as(row: VariantRow) -> str:
    """ " as NAME" where a variant was timed in turns with another one than that it is compared with."""
    other = row.reference is None or row.timed_with != row.reference.variant
    return f" as {row.timed_with}" if row.timed_with and other else ""


def _ratio_tile(
    name: str, before: float | None, after: float | None, words: tuple[str, str], unknown: str
) -> Tile | None:
    if not after:
        return None
    if not before:
        return Tile(name, f"{after:,.0f}", unknown)
    ratio = before / after
    if round(ratio, 2) == 1:
        return Tile(name, f"{after:,.0f}", "as before")
    change = f"{ratio:.1f} times {words[0]}" if ratio >= 1 else f"{1 / ratio:.1f} times {words[1]}"
    return Tile(name, f"{after:,.0f}", f"{change}, from {before:,.0f}")


def shown_rows(measurements: Measurements) -> list[VariantRow]:
    """The variants side by side: all of one trial, else the dense ones and the Pareto front; of several seeds their
    means."""
    rows = over_seeds(rows_of(measurements))
    trials = {(row.run, row.trial) for row in rows}
    if len(rows) <= _COLUMNS and len(trials) <= max(2, len({row.run for row in rows})):
        return rows
    quality = quality_of(rows)
    dense = [row for row in rows if row.variant == "dense"][:1]
    if quality is None:
        return rows[:_COLUMNS]
    points = [
        (row, cost, good)
        for row in settled(rows)
        if (cost := cost_of(row)) and (good := row.number(quality)) is not None
    ]
    best = front([(cost, good) for _, cost, good in points], quality in LOWER)
    chosen = [points[i][0] for i in reversed(best) if points[i][0].variant != "dense"]
    room = _COLUMNS - len(dense) - 1
    if len(chosen) > room:
        chosen = [chosen[round(k * (len(chosen) - 1) / (room - 1))] for k in range(room)]
    return [*dense, *chosen] or rows[:_COLUMNS]


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
        title = NAMES.get(name, name.replace("_", " "))
        lines.append(Line(title, first.definition, cells, _ends(rows, found)))
    lines = [*_of_seeds(rows), *lines]
    if any("file_bytes" in row.values for row in rows):
        lines += _smaller(rows)
    every = over_seeds(rows_of(measurements))
    which = "variants that no other beats" if quality_of(every) else "the first variants"
    if any(row.variant == "dense" for row in rows):
        which = f"the dense model and {which}"
    return Comparison(tuple(row.label for row in rows), tuple(lines), len(every), which)


def _ends(
    rows: Sequence[VariantRow], found: Sequence[Measurement | None]
) -> tuple[tuple[float, float] | None, ...]:
    """The interval of every cell that is a mean over seeds."""
    ends = tuple(
        (item.spread["low"], item.spread["high"])
        if row.members and item is not None and "low" in item.spread
        else None
        for row, item in zip(rows, found)
    )
    return ends if any(ends) else ()


def _of_seeds(rows: Sequence[VariantRow]) -> list[Line]:
    """How many seeds each column is the mean of, and by how much its quality differs, seed by seed; nothing where no
    column is of several."""
    if all(seeds_of(row) == 1 for row in rows):
        return []
    count = tuple((_seeds(row), float(seeds_of(row))) for row in rows)
    found = [
        Line("seeds", "how many trials, which differ only by their seed, a column is the mean of", count)
    ]
    quality = quality_of(rows)
    changes = [change_of(row, quality) if quality and row.reference is not None else None for row in rows]
    if quality is None or not any(changes):
        return found
    cells: list[tuple[str, float | None]] = []
    for row, over in zip(rows, changes):
        base = None if row.reference is None else row.reference.number(quality)
        after = row.number(quality)
        if over is None or base is None or after is None:
            cells.append(("", None))
        else:
            cells.append((_by(quality, base, after, over), over.mean))
    ends = [None if one is None or math.isnan(one.half) else (one.low, one.high) for one in changes]
    text = _how_compared([row for row, over in zip(rows, changes) if over is not None])
    return [*found, Line(f"change of {quality}", text, tuple(cells), tuple(ends))]


def _how_compared(rows: Sequence[VariantRow]) -> str:
    """What the differences of some rows are: seed by seed where each was compared with one of its own seed."""

    def named(some: Sequence[VariantRow]) -> str:
        return " or ".join(dict.fromkeys(_called(row.reference) for row in some if row.reference is not None))

    same, other = [row for row in rows if is_paired(row)], [row for row in rows if not is_paired(row)]
    texts = []
    if same:
        texts.append(
            f"mean over the seeds of the difference from {named(same)} of the same seed, with the 95 % interval of "
            "Student's t"
        )
    if other:
        texts.append(
            f"difference of the mean from {named(other)}, which has no such seed, so that there is no interval"
            + (f": {', '.join(row.label for row in other)}" if same else "")
        )
    return "; ".join(texts)


def _smaller(rows: list[VariantRow]) -> list[Line]:
    """How many times smaller every variant is than what it is compared with; 1 for that itself."""
    bases = {id(row.reference): row.reference for row in rows if row.reference is not None}
    own = [bases.get(id(row)) or row.reference for row in rows]
    ratios = [
        base.bytes / row.bytes if base is not None and base.bytes and row.bytes else None
        for base, row in zip(own, rows)
    ]
    if not any(ratio is not None and base is not row for ratio, base, row in zip(ratios, own, rows)):
        return []
    names = " or ".join(dict.fromkeys(base.variant for base in bases.values()))
    cells = tuple(("", None) if ratio is None else (f"{ratio:.2f}×", ratio) for ratio in ratios)
    return [
        Line("times smaller on disk", f"bytes of the {names} file over bytes of this variant's file", cells)
    ]


def headline(measurements: Measurements) -> str:
    """The result in one line: dense against the best variant; of several seeds by their mean."""
    every = rows_of(measurements)
    rows = over_seeds(every)
    runs = list(dict.fromkeys(row.run for row in rows))
    if not rows:
        return "nothing was measured"
    if len(runs) > 1:
        ours = (
            headline(Measurements(m for m in measurements if str(m.context.get("run", "")) == run))
            for run in runs
        )
        return " — ".join(f"{run}: {text}" for run, text in zip(runs, ours))
    if len({row.trial for row in rows}) > 1:
        return _best_of(rows, _counted(every))
    last = result_of(rows)
    text = _alone(last) if last.reference is None else _difference(last.reference, last)
    return text if seeds_of(last) == 1 else f"means over {_seeds(last)} seeds: {text}"


def _seeds(row: VariantRow) -> str:
    """How many seeds a row is the mean of, as "2 of 3" where its run has others too: those failed, or are not done."""
    return str(seeds_of(row)) if row.of_seeds <= seeds_of(row) else f"{seeds_of(row)} of {row.of_seeds}"


def _counted(every: Sequence[VariantRow]) -> str:
    """How many trials there were, and of how many settings with how many seeds.

    Args:
        every: The rows of the trials.
    """
    trials: dict[int, tuple[str, dict[str, object]]] = {}
    for row in every:
        own = trials.setdefault(row.trial, (str(row.seed), {}))[1]
        own.update((key, as_text(value)) for key, value in row.settings.items() if not is_seed(key))
    seeds: dict[object, set[str]] = {}
    for seed, settings in trials.values():
        seeds.setdefault(tuple(sorted(settings.items())), set()).add(seed)
    text = _of(len(trials), "trial")
    counts = sorted(len(own) for own in seeds.values())
    if counts[-1] == 1:
        return text
    each = _of(counts[-1], "seed")
    if len(counts) > 1:
        each = (each if counts[0] == counts[-1] else f"{counts[0]} to {each}") + " each"
    return f"{text} ({_of(len(counts), 'setting')}, {each})"


def _of(count: int, what: str) -> str:
    """A count with its noun.

    >>> _of(1, "trial"), _of(1200, "trial")
    ('1 trial', '1,200 trials')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _alone(row: VariantRow) -> str:
    """What was measured of the only variant, and that it is the only one."""
    text = _listed(row)
    return text if row.variant == "model" else f"only {_called(row)} was measured: {text}"


def _listed(row: VariantRow) -> str:
    names = [name for name in MEASURES if name in row.values]
    return ", ".join(f"{NAMES.get(name, name)} {quantity(row.values[name])}" for name in names[:3])


def _best_of(rows: list[VariantRow], trials: str) -> str:
    """The smallest variant of a sweep that is about as good as what it is compared with."""
    quality = quality_of(rows)
    if quality is None:
        sizes = [row.bytes for row in rows if row.bytes]
        spread = f", files of {min(sizes):,.0f} to {max(sizes):,.0f} bytes" if len(set(sizes)) > 1 else ""
        return f"{trials}{spread}; no accuracy was measured"
    if quality == "score":  # of the user's own making: nobody knows how much of it is little
        return f"{trials}, {quality} {_span(rows, quality)}"
    compared = comparable(rows, quality)
    if not compared:
        return f"{trials}{_not_compared(rows, quality)}"
    within = "per cent" if quality in LOWER else "point"
    references = [row.reference for row in compared if row.reference is not None]
    name = " or ".join(dict.fromkeys(_called(row) for row in references))
    mean = " by its mean over the seeds" if any(row.members for row in compared) else ""
    best = smallest_near(rows)
    if best is None or best.reference is None:
        return f"{trials}; none came within one {within} of {name}{mean} ({quality} {_span(references, quality)})"
    words = _difference(best.reference, best)
    return f"{trials}; the smallest within one {within} of {name}{mean} is {best.label}: {words}"


def _not_compared(rows: list[VariantRow], quality: str) -> str:
    """The qualities of a sweep in which nothing was measured that they can be compared with."""
    judged = [row for row in rows if row.number(quality) is not None and row.variant != "dense"]
    alone = [row for row in judged if row.reference is None or row.reference.number(quality) is None]
    if not alone:
        return ""
    missing = f"the {quality} of the dense model was not measured, so none is compared with it"
    return f", {quality} {_span(alone, quality)}; {missing}: add a measure step labelled dense after training"


def _span(rows: list[VariantRow], quality: str) -> str:
    """A quality from the lowest to the highest."""
    values = [value for row in rows if (value := row.number(quality)) is not None]
    low, high = number(min(values), quality), number(max(values), quality)
    return low if low == high else f"{low} to {high}"


def _difference(base: VariantRow, small: VariantRow) -> str:
    """What a variant gained and lost beside what it is compared with; what of the two was not measured is said."""
    parts: list[str] = []

    def ratio(words: Callable[[float], str], before: float | None, after: float | None, unit: str) -> None:
        if before and after and round(before / after, 2) != 1:
            parts.append(f"{words(before / after)} ({before:,.0f} → {after:,.0f}{unit})")

    ratio(
        lambda r: f"{r:.1f} times smaller on disk" if r > 1 else f"{1 / r:.1f} times larger on disk",
        base.bytes,
        small.bytes,
        " bytes",
    )
    macs = _macs(base, small)
    ratio(lambda r: f"{r:.1f} times fewer multiply-accumulates", base.number(macs), small.number(macs), "")
    speed = small.values.get("speedup")
    if speed is not None:
        low, high = speed.spread.get("low", speed.value), speed.spread.get("high", speed.value)
        if low <= 1 <= high:
            to = f" to {small.timed_with}" if _as(small) else ""
            parts.append(f"no difference in time{to} shown ({speed.value:.2f}× [{low:.2f}, {high:.2f}])")
        else:
            parts.append(f"{speed.value:.2f} times as fast{_as(small)} [{low:.2f}, {high:.2f}]")
    said, missing = _judged(base, small)
    return ", ".join([*parts, *said]) + missing if parts or said else _listed(small) + missing


def _judged(base: VariantRow, small: VariantRow) -> tuple[list[str], str]:
    """The quality beside that of the reference, and a sentence where that of one was not measured."""
    quality = next((name for name in QUALITIES if name in small.values), None)
    if quality is None:
        lost = next((name for name in QUALITIES if name in base.values), None)
        return [], "" if lost is None else f"; the {lost} of {_called(small)} was not measured"
    before, after = (row.number(quality) for row in (base, small))
    if after is None:
        return [f"{quality} {number(small.values[quality].value, quality)}"], ""
    if before is None:
        missing = f"; the {quality} of {_called(base)} was not measured: add a measure step after it"
        return [f"{quality} of {_called(small)} {number(after, quality)}"], missing
    by = _by(quality, before, after, change_of(small, quality))
    by += f", {_seeds(small)} seeds" if seeds_of(small) > 1 else ""
    return [f"{quality} {number(before, quality)} → {number(after, quality)} ({by})"], ""
