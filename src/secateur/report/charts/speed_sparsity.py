"""Times as fast against sparsity: a line for every method, the 95 % interval of the median ratio as a band.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("speedup", s, "x", context={"trial": t, "variant": "shrunk", "sparsity": 0.5 + t / 5},
...                 spread={"low": s - 0.1, "high": s + 0.1})
...     for t, s in enumerate([1.5, 2.5])])
>>> speed_sparsity(found)[0].table.rows[0]
('shrunk', 0.5, 1.5, 1.4, 1.6)
"""

from __future__ import annotations

from statistics import median

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import dashes, fitting_legend, legend_selection
from secateur.report.reading import VariantRow, rows_of, series_of

__all__ = ["speed_sparsity"]


def _beside(rows: list[VariantRow]) -> str:
    """What the models were timed in turns with, in words."""
    names = dict.fromkeys(row.timed_with for row in rows)
    return " or ".join("the dense model" if name in ("", "dense") else name for name in names)


def speed_sparsity(measurements: Measurements) -> list[Figure]:
    """The curves, where some method was timed in turns with another at two sparsities or more."""
    rows = [row for row in rows_of(measurements) if "speedup" in row.values and row.removed is not None]
    points: dict[tuple[str, float], list[Measurement]] = {}
    for row in rows:
        key = (series_of(row, rows), round(row.removed or 0.0, 6))
        points.setdefault(key, []).append(row.values["speedup"])
    names = [name for name, _ in points]
    if all(names.count(name) < 2 for name in set(names)):
        return []
    table = tuple(
        (
            name,
            sparsity,
            median(item.value for item in items),
            min(item.spread.get("low", item.value) for item in items),
            max(item.spread.get("high", item.value) for item in items),
        )
        for (name, sparsity), items in sorted(points.items(), key=lambda point: point[0])
    )
    data = [dict(zip(("series", "sparsity", "speedup", "low", "high"), row)) for row in table]
    domain = list(dict.fromkeys(row[0] for row in table))
    choose = legend_selection("faster", "series")
    shown = {"opacity": alt.condition(choose, alt.value(1.0), alt.value(0.1))}
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("sparsity:Q", axis=alt.Axis(format=".0%", title="sparsity (share removed)", tickCount=10)),
        color=alt.Color("series:N", scale=alt.Scale(domain=domain), legend=fitting_legend(domain)),
    )
    beside = _beside(rows)
    title = f"times as fast as {beside}"
    # An outlier must not flatten all curves.
    scale = alt.Scale(zero=False, domainMax=1.3 * max(row[2] for row in table), clamp=True)
    y = alt.Y("speedup:Q", axis=alt.Axis(title=title), scale=scale)
    tip = ["series:N", alt.Tooltip("sparsity:Q", format=".1%")]
    tip += [alt.Tooltip(f"{key}:Q", format=".3~f") for key in ("speedup", "low", "high")]
    band = base.mark_area(fillOpacity=0.16).encode(
        y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q", **shown
    )
    one = alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(strokeDash=[5, 4]).encode(y="ratio:Q")
    line, dots = (
        base.mark_line().encode(y=y, strokeDash=dashes(domain), **shown),
        base.mark_point().encode(y=y, tooltip=tip, **shown),
    )
    best = max(table, key=lambda row: row[2])
    what = next(iter(points.values()))[0].definition
    return [
        Figure(
            "speed-sparsity",
            "speed",
            "Times as fast as sparsity rises",
            f"{what}. Each point is one model, timed in turns with {beside}; the band holds the median ratio with "
            "95 % confidence. Where it reaches the dashed line at 1, no difference was shown.",
            alt.layer(one, band.add_params(choose), line, dots).properties(width="container", height=340),
            f"{len(domain)} curves of times as fast over sparsity; the fastest is {best[0]} at sparsity {best[1]:.2f} "
            f"with {best[2]:.2f}.",
            FigureTable(("series", "sparsity", "times as fast", "low", "high"), table),
        )
    ]
