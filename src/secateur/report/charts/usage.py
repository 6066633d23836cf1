"""Processors, memory and GPUs over time, while the trials of a run share them.

>>> context = {"what": "processors", "seconds": [0.0, 1.0], "values": [0.5, 1.0]}
>>> found = Measurements([Measurement("usage", 0.75, context=context)])
>>> [(figure.name, figure.table.rows) for figure in usage(found)]
[('usage-busy', (('processors', 0.0, 0.5), ('processors', 1.0, 1.0)))]
"""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import dashes, fitting_legend, legend_selection, whole_ticks
from secateur.report.reading import finite

__all__ = ["usage"]

_MOST = 4
_TRIALS = "trials"


@dataclass(frozen=True)
class _View:
    """One figure: its file, title, and the axis of its values."""

    stem: str
    title: str
    axis: str
    form: str
    most: float | None = None


_BUSY = _View("usage-busy", "How busy processors and GPUs were", "share busy", "%", 1.0)
_MEMORY = _View("usage-memory", "Memory in use", "GiB", ".3~g")
_AT_ONCE = _View("usage-trials", "Trials computed at once", "trials", "d")


def _view(what: str) -> _View:
    if what == _TRIALS:
        return _AT_ONCE
    return _MEMORY if "memory" in what else _BUSY


def usage(measurements: Measurements) -> list[Figure]:
    """A figure of what was busy, one of memory, and one of trials where several ran at once."""
    found = [item for item in measurements if item.name == "usage" and item.context.get("seconds")]
    parts: dict[str, list[Measurement]] = {}
    for item in found:
        parts.setdefault(str(item.context.get("part", item.context.get("run", ""))), []).append(item)
    longest = sorted(parts, key=lambda part: -max(item.context["seconds"][-1] for item in parts[part]))[
        :_MOST
    ]
    figures = []
    for view in (_BUSY, _MEMORY, _AT_ONCE):
        rows = [
            (" · ".join([part] * (len(longest) > 1) + [str(item.context["what"])]), float(at), float(value))
            for part in parts
            if part in longest
            for item in parts[part]
            if _view(str(item.context["what"])) is view
            for at, value in zip(item.context["seconds"], item.context["values"])
            if finite(at) is not None and finite(value) is not None
        ]
        if rows:
            figures.append(_figure(view, tuple(rows)))
    return figures


def _figure(view: _View, rows: tuple[tuple[str, float, float], ...]) -> Figure:
    domain = list(dict.fromkeys(row[0] for row in rows))
    choose = legend_selection("series", "series")
    top = alt.Scale(domainMin=0) if view.most is None else alt.Scale(domain=[0, view.most])
    axis = alt.Axis(title=view.axis, format=view.form, tickCount=5)
    if view is _AT_ONCE:
        axis = alt.Axis(
            title=view.axis, format=view.form, values=whole_ticks(0, int(max(r[2] for r in rows)), 6)
        )
    chart = (
        alt.Chart(alt.Data(values=[dict(zip(("series", "seconds", "value"), row)) for row in rows]))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("seconds:Q", axis=alt.Axis(title="seconds since the run began", grid=False)),
            y=alt.Y("value:Q", scale=top, axis=axis),
            color=alt.Color(
                "series:N", sort=None, scale=alt.Scale(domain=domain), legend=fitting_legend(domain)
            ),
            strokeDash=dashes(domain),
            opacity=alt.condition(choose, alt.value(1.0), alt.value(0.1)),
            tooltip=["series:N", "seconds:Q", alt.Tooltip("value:Q", format=".3~g")],
        )
        .add_params(choose)
        .properties(width="container", height=200)
    )
    means = {name: [row[2] for row in rows if row[0] == name] for name in domain}
    said = ", ".join(f"{name} {sum(values) / len(values):.3g}" for name, values in means.items())
    return Figure(
        view.stem,
        "machine",
        view.title,
        "Samples about once a second of the machine that the run was started on; none while one process alone measures "
        "a time. A line stays level until the next sample.",
        chart,
        f"Means over time: {said}.",
        FigureTable(("series", "seconds", view.axis), rows),
    )
