"""Time: every reading of every variant, and the ratio within each pair of readings taken in turns.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("latency", 2.0, "ms", trials=(2.0, 2.1, 1.9), context={"variant": "dense"}),
...     Measurement("latency", 1.0, "ms", trials=(1.0, 1.1, 0.9), context={"variant": "small"}),
...     Measurement("speedup", 2.0, "x", trials=(2.0, 1.9, 2.1), spread={"low": 1.9, "high": 2.1},
...                 context={"variant": "small"})])
>>> [figure.name for figure in latency(found)], latency(found)[1].table.rows[0]
(['latency', 'latency-paired'], ('small', 2.0, 1.9, 2.1, 3, 'yes'))
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import colour
from secateur.report.reading import apart, variants_of

__all__ = ["latency"]

_MOST = 40


def _sessions(measurements: Measurements) -> list[list[Measurement]]:
    """Readings that were taken in turns, together: what precedes a speed-up belongs to it."""
    found: list[list[Measurement]] = []
    waiting: list[Measurement] = []
    for item in measurements:
        if "published" in item.context:
            continue
        if item.name == "latency" and item.trials:
            waiting.append(item)
        elif item.name == "speedup" and len(waiting) >= 2:
            pair = waiting[-2:]
            found += [*([one] for one in waiting[:-2]), pair]
            waiting = []
    return found + [[one] for one in waiting]


def _variant(item: Measurement) -> str:
    return str(item.context.get("variant", "model"))


def _labels(items: list[Measurement]) -> list[str]:
    """The label of each row: the settings that distinguish it, such as criterion and sparsity, and its variant."""
    said = [
        " · ".join(part for part in (text, _variant(item)) if part) for text, item in zip(apart(items), items)
    ]
    batches = [f" · batch {item.context['batch']}" if "batch" in item.context else "" for item in items]
    said = [text + (batch if len(set(batches)) > 1 else "") for text, batch in zip(said, batches)]
    return [
        text if said.count(text) == 1 else f"{text} ({said[: index + 1].count(text)})"
        for index, text in enumerate(said)
    ]


def latency(measurements: Measurements) -> list[Figure]:
    """The distributions, and the paired ratios where there are any."""
    sessions = _sessions(measurements)
    return [*_distributions(measurements, sessions), *_paired(measurements)]


def _distributions(measurements: Measurements, sessions: list[list[Measurement]]) -> list[Figure]:
    shown = sessions[:_MOST]
    rows = []
    for said, items in zip(_labels([items[-1] for items in shown]), shown):
        for item in items:
            label = said if item is items[-1] else f"{_variant(item)} beside {said}"
            rows += [(label, _variant(item), reading, float(item.value)) for reading in item.trials]
    if not rows:
        return []
    data = [dict(zip(("label", "variant", "ms", "median"), row)) for row in rows]
    labels = list(dict.fromkeys(row[0] for row in rows))
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("label:N", sort=labels, axis=alt.Axis(title=None, labelLimit=420)),
        color=colour("variant", variants_of(measurements), [], legend=False),
    )
    ticks = base.mark_tick(thickness=1.5, size=20, opacity=0.55).encode(
        x=alt.X(
            "ms:Q",
            scale=alt.Scale(zero=True),
            axis=alt.Axis(title="milliseconds of a forward pass", format=".3~r"),
        ),
        tooltip=["label:N", alt.Tooltip("ms:Q", format=".4~g")],
    )
    middle = base.mark_tick(thickness=4, size=28).encode(
        x="median:Q", tooltip=[alt.Tooltip("median:Q", format=".4~g")]
    )
    what = next(item.definition for items in shown for item in items)
    notes = dict.fromkeys(note for items in shown for item in items for note in item.notes)
    medians = {row[0]: row[3] for row in rows}
    return [
        Figure(
            "latency",
            "speed",
            "How long a forward pass takes, reading by reading",
            f"{what or 'one line a reading'}. Thin lines are readings, the thick one their median. Only variants "
            f"timed in turns can be compared: "
            f"another moment of the machine is another machine. {'; '.join(list(notes)[:3])}",
            alt.layer(ticks, middle).properties(
                width="container", height=alt.Step(40 if len(labels) < 12 else 22)
            ),
            "Medians: "
            + ", ".join(f"{label} {value:.4g} ms" for label, value in list(medians.items())[:8])
            + ".",
            FigureTable(("variant", "kind", "milliseconds", "median"), tuple(rows)),
        )
    ]


def _paired(measurements: Measurements) -> list[Figure]:
    found = [
        item
        for item in measurements
        if item.name == "speedup" and item.trials and "published" not in item.context
    ]
    found = found[:_MOST]
    if not found:
        return []
    labels = _labels(found)
    table = []
    for label, item in zip(labels, found):
        low, high = item.spread.get("low", item.value), item.spread.get("high", item.value)
        table.append((label, item.value, low, high, len(item.trials), "no" if low <= 1 <= high else "yes"))
    listed = ", ".join(f"{row[0]} {row[1]:.2f} times [{row[2]:.2f}, {row[3]:.2f}]" for row in table)
    return [
        Figure(
            "latency-paired",
            "speed",
            "The difference, pair by pair",
            f"{found[0].definition}. Every dot is one pair of readings, one right after the other; the bar holds the "
            "median with 95 % confidence. Where it reaches the dashed line at 1, no difference was shown.",
            _paired_chart(found, labels, colour("variant", variants_of(measurements), [], legend=False)),
            f"Times as fast, with the 95 % interval: {listed}.",
            FigureTable(
                ("variant", "times as fast", "low", "high", "pairs", "difference shown"), tuple(table)
            ),
        )
    ]


def _paired_chart(
    found: list[Measurement], labels: list[str], colours: alt.Color
) -> alt.LayerChart | alt.FacetChart:
    """The ratio of every pair, the interval of the median, and a dashed line at 1."""
    dots = [
        {"label": label, "variant": _variant(item), "ratio": ratio}
        for label, item in zip(labels, found)
        for ratio in item.trials
    ]
    middles = [
        {
            "label": label,
            "variant": _variant(item),
            "median": item.value,
            "low": item.spread.get("low", item.value),
            "high": item.spread.get("high", item.value),
        }
        for label, item in zip(labels, found)
    ]
    y = alt.Y("label:N", sort=labels, axis=alt.Axis(title=None, labelLimit=420))
    slowest = min(reading for item in found for reading in item.trials)
    axis = alt.X(
        "ratio:Q",
        scale=alt.Scale(zero=False, nice=True, domainMin=min(0.9, slowest)),
        axis=alt.Axis(title="times as fast as the variant it was timed against", format=".3~r", tickCount=8),
    )
    numbers = [alt.Tooltip(f"{key}:Q", format=".3~f") for key in ("median", "low", "high")]
    points = (
        alt.Chart(alt.Data(values=dots))
        .mark_point(size=42, opacity=0.4)
        .encode(x=axis, y=y, color=colours, tooltip=["label:N", alt.Tooltip("ratio:Q", format=".3~f")])
    )
    interval = (
        alt.Chart(alt.Data(values=middles))
        .mark_bar(height=5, opacity=0.9)
        .encode(x="low:Q", x2="high:Q", y=y, color=colours, tooltip=["label:N", *numbers])
    )
    median = (
        alt.Chart(alt.Data(values=middles))
        .mark_tick(thickness=4, size=26)
        .encode(x="median:Q", y=y, color=colours)
    )
    one = alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(strokeDash=[5, 4]).encode(x="ratio:Q")
    return alt.layer(one, points, interval, median).properties(
        width="container", height=alt.Step(44 if len(labels) < 12 else 22)
    )
