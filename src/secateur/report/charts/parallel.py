"""A sweep as parallel coordinates: one axis for every setting and result, one line for every trial.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements(
...     Measurement("accuracy", 0.9 - budget / 10, context={"trial": trial, "variant": "pruned", "budget": budget})
...     for trial, budget in enumerate((0.2, 0.4, 0.8)))
>>> figure = parallel(found)[0]
>>> figure.table.head, figure.table.rows[0]
(('trial', 'budget', 'accuracy'), (1, 0.2, 0.88))
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from secateur.core.measurement import Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.reading import (
    LOWER,
    VariantRow,
    as_text,
    finite,
    quality_of,
    result_of,
    rows_of,
    settings_of,
)

__all__ = ["parallel"]

_MOST = 200  # lines that can still be told apart
_COSTS = {
    "file_bytes": "bytes",
    "macs_nonzero": "non-zero MACs",
    "macs": "MACs",
    "latency": "latency",
}

Value = str | float | None


def parallel(measurements: Measurements) -> list[Figure]:
    """The figure, where three trials or more differ in a setting."""
    trials: dict[tuple[str, int], list[VariantRow]] = {}
    for row in rows_of(measurements):
        if row.variant != "dense":
            trials.setdefault((row.run, row.trial), []).append(row)
    rows = [result_of(trial) for trial in trials.values()]
    quality = quality_of(rows)
    settings = settings_of(rows)
    if quality is None or len(rows) < 3 or not settings:
        return []
    rows = rows[:: max(1, -(-len(rows) // _MOST))]
    costs = {
        name: title for name, title in _COSTS.items() if len({row.number(name) for row in rows} - {None}) > 1
    }
    if "macs_nonzero" in costs:
        costs.pop("macs", None)
    head = ("trial", *settings.values(), *costs.values(), quality.replace("_", " "))
    table = tuple((row.trial + 1, *_values(row, [*settings], [*costs, quality])) for row in rows)
    better = "less" if quality in LOWER else "more"
    return [
        Figure(
            "parallel",
            "trials",
            "Settings and results of every trial",
            "Parallel coordinates: each line is the last variant of a trial, each axis a setting or a result, from its "
            f"lowest value at the bottom to its highest at the top. The colour is the {head[-1]}; {better} is better. "
            "A click on a line brings it out, shift for several.",
            _chart(head, table),
            f"{len(table)} trials over {', '.join(head[1:])}.",
            FigureTable(head, table),
        )
    ]


def _values(row: VariantRow, settings: Sequence[str], measures: Sequence[str]) -> list[Value]:
    """A trial's place on every axis."""
    found: list[Value] = []
    for key in settings:
        value = row.settings.get(key)
        number = finite(value)
        found.append(number if number is not None else None if value is None else as_text(value))
    return [*found, *(row.number(name) for name in measures)]


def _places(values: Sequence[Value]) -> tuple[dict[Value, float], list[tuple[float, str]]]:
    """Where each value of an axis is, from 0 to 1, and the axis' labels.

    >>> _places([2.0, 4.0, 3.0])
    ({2.0: 0.0, 4.0: 1.0, 3.0: 0.5}, [(0.0, '2'), (1.0, '4')])
    >>> _places(["l1", "l2", "fpgm"])
    ({'l1': 0.0, 'l2': 0.5, 'fpgm': 1.0}, [(0.0, 'l1'), (0.5, 'l2'), (1.0, 'fpgm')])
    """
    own = list(dict.fromkeys(value for value in values if value is not None))
    numbers = [value for value in own if isinstance(value, int | float)]
    if len(numbers) == len(own):
        low, high = min(numbers), max(numbers)
        places: dict[Value, float] = {v: (v - low) / (high - low) if high > low else 0.5 for v in numbers}
        ends = [(0.0, low), (1.0, high)] if high > low else [(0.5, low)]
        return places, [(place, _short(value)) for place, value in ends]
    places = {value: index / (len(own) - 1) if len(own) > 1 else 0.5 for index, value in enumerate(own)}
    return places, [(places[value], str(value)) for value in own]


def _short(value: float) -> str:
    """A number as an axis has it.

    >>> [_short(value) for value in (0.93125, 269722, 3.0)]
    ['0.931', '270k', '3']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _chart(head: Sequence[str], table: Sequence[Sequence[Value]]) -> alt.LayerChart | alt.FacetChart:
    """Lines over the axes, with the axes' ends as text."""
    columns = [[row[index] for row in table] for index in range(1, len(head))]
    scaled = [_places(column) for column in columns]
    quality, last = head[-1], len(columns) - 1
    lines = [
        {
            "trial": row[0],
            "axis": head[index + 1],
            "at": scaled[index][0][row[index + 1]],
            "value": str(row[index + 1]),
            "quality": row[last + 1],
        }
        for row in table
        for index in range(len(columns))
        if row[index + 1] is not None
    ]
    labels = [
        {"axis": head[index + 1], "at": at, "text": text}
        for index, (_, marks) in enumerate(scaled)
        for at, text in marks
    ]
    across = alt.X(
        "axis:N",
        sort=list(head[1:]),
        scale=alt.Scale(type="point", padding=0.35),
        axis=alt.Axis(title=None, orient="top", labelAngle=0, labelLimit=110, domain=False, grid=True),
    )
    up = alt.Y("at:Q", scale=alt.Scale(domain=[-0.06, 1.06]), axis=None)
    chosen = alt.selection_point(name="trial", fields=["trial"])
    drawn = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(strokeWidth=1.6)
        .encode(
            x=across,
            y=up,
            detail="trial:N",
            color=alt.Color(
                "quality:Q",
                scale=alt.Scale(range="ramp"),
                legend=alt.Legend(title=quality, type="gradient", tickCount=3),
            ),
            opacity=alt.condition(chosen, alt.value(0.85), alt.value(0.06)),
            tooltip=[alt.Tooltip("trial:Q"), alt.Tooltip("quality:Q", title=quality, format=".4~f")],
        )
        .add_params(chosen)
    )
    text = alt.Chart(alt.Data(values=labels)).encode(x=across, y=up, text="text:N")
    # the page's colour, over the lines
    halo = text.mark_text(align="left", dx=6, fontWeight=600, style="halo")
    letters = text.mark_text(align="left", dx=6, fontWeight=600)
    return alt.layer(drawn, halo, letters).properties(width="container", height=320)
