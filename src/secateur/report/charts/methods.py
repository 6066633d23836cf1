"""Accuracy of pruning methods against multiply-accumulates, with intervals over seeds.

>>> found = Measurements(
...     Measurement(name, value, context={"method": method})
...     for method, good, cost in (("l2", 0.9, 100), ("random", 0.8, 100))
...     for name, value in (("accuracy", good), ("macs", cost))
... )
>>> [figure.title for figure in methods(found)]
['Accuracy of each method against multiply-accumulates']
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.reading import finite

__all__ = ["methods"]

Point = tuple[str, float, float, float, float, int]
"""Method, multiply-accumulates, mean accuracy, the ends of its interval, and the number of seeds."""


def methods(measurements: Measurements) -> list[Figure]:
    """The figure, where several methods have an accuracy over seeds and a count of multiply-accumulates."""
    means: dict[str, Measurement] = {}
    costs: dict[str, float] = {}
    nonzero: dict[str, float] = {}
    for item in measurements:
        method = item.context.get("method")
        value = finite(item.value)
        if method is None or value is None or "seed" in item.context:
            continue
        if item.name == "accuracy":
            means[str(method)] = item
        elif item.name == "macs":
            costs[str(method)] = value
        elif item.name == "macs_nonzero":
            nonzero[str(method)] = value
    what, column = "multiply-accumulates", "macs"
    if nonzero.keys() >= costs.keys() and any(nonzero[name] != cost for name, cost in costs.items()):
        # Zeros were left in place: what a method saved are the others.
        costs, what, column = nonzero, "multiply-accumulates with a non-zero weight", "macs_nonzero"
    table = tuple(_point(name, item, costs[name]) for name, item in means.items() if name in costs)
    if len(table) < 2:
        return []
    best = max(table, key=lambda point: point[2])
    return [
        Figure(
            "methods",
            "tradeoff",
            f"Accuracy of each method against {what}",
            "Each point is a method: the mean over the seeds, with the 95 % interval of Student's t as a line. Where "
            "intervals overlap widely, these seeds cannot tell the methods apart; the paired test says more: it "
            "compares them seed by seed.",
            _chart(table, what),
            f"{len(table)} methods; the highest mean accuracy is that of {best[0]}, {best[2]:.4f} at {best[1]:,.0f} "
            f"{what}.",
            FigureTable(("method", column, "accuracy", "low", "high", "seeds"), table),
        )
    ]


def _point(name: str, item: Measurement, cost: float) -> Point:
    mean = float(item.value)
    low, high = (float(item.spread.get(end, mean)) for end in ("low", "high"))
    return name, cost, mean, low, high, max(1, len(item.trials))


def _chart(table: tuple[Point, ...], what: str) -> alt.LayerChart | alt.FacetChart:
    """Points with the lines of their intervals."""
    data = [dict(zip(("method", "macs", "accuracy", "low", "high", "seeds"), row)) for row in table]
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X(
            "macs:Q",
            scale=alt.Scale(zero=False, padding=24),
            axis=alt.Axis(format="~s", title=what, tickCount=5),
        ),
        color=alt.Color("method:N", scale=alt.Scale(domain=[row[0] for row in table])),
    )
    rule = base.mark_rule().encode(
        y=alt.Y("low:Q", scale=alt.Scale(zero=False, padding=16), title="accuracy"), y2="high:Q"
    )
    dots = base.mark_point(filled=True, size=80).encode(
        y=alt.Y("accuracy:Q", axis=alt.Axis(format=".1%", title="accuracy")),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("macs:Q", format=",.0f"),
            alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("low:Q", format=".2%"),
            alt.Tooltip("high:Q", format=".2%"),
            alt.Tooltip("seeds:Q"),
        ],
    )
    return alt.layer(rule, dots).properties(width="container", height=340)
