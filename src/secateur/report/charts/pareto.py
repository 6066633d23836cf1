"""Accuracy against bytes, multiply-accumulates and time; the points of the Pareto front are joined.

>>> front([(10.0, 0.9), (5.0, 0.8), (7.0, 0.7)])
[1, 0]
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.core.pareto import pareto_front
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import colour, legend_selection
from secateur.report.reading import LOWER, VariantRow, as_text, finite, quality_of, rows_of, variants_of
from secateur.report.variants import over_seeds, seeds_of, settled

__all__ = ["front", "pareto"]

_MOST = 600


def front(points: Sequence[tuple[float, float]], lower_is_better: bool = False) -> list[int]:
    """Indices of the Pareto front of (cost, quality), the cheapest first.

    >>> front([(1.0, 0.2), (1.0, 0.3)], lower_is_better=True)
    [0]
    """
    sign = -1 if lower_is_better else 1
    best = pareto_front([(-cost, sign * quality) for cost, quality in points])
    firsts: dict[tuple[float, float], int] = {}
    for at in best:
        firsts.setdefault(points[at], at)  # of equal points the first
    return [at for _, at in sorted(firsts.items())]


def _cost(row: VariantRow, names: Sequence[str]) -> float | None:
    return next((value for name in names if (value := row.number(name))), None)


def _published(
    measurements: Measurements, quality: str, names: Sequence[str]
) -> list[tuple[str, float, float]]:
    """(variant, cost, quality) of published figures that give both."""
    found: dict[tuple[str, str], dict[str, Measurement]] = {}
    for item in measurements:
        if "published" in item.context and "inconsistent" not in item.context:
            settings = {k: v for k, v in item.context.items() if k not in ("published", "run", "variant")}
            label = " · ".join(
                [str(item.context.get("variant", "")), *(as_text(value) for value in settings.values())]
            )
            found.setdefault((str(item.context["published"]), label), {})[item.name] = item
    points = []
    for (_, label), values in found.items():
        cost = next((finite(values[name].value) for name in names if name in values), None)
        good = finite(values[quality].value) if quality in values else None
        if cost and good is not None:
            points.append((f"published: {label}", cost, good))
    return points


def pareto(measurements: Measurements) -> list[Figure]:
    """One figure for every cost that at least two variants have."""
    rows = over_seeds(rows_of(measurements))
    quality = quality_of(rows)
    if quality is None:
        return []
    return [figure for axis in _COSTS for figure in _one(measurements, rows, quality, axis)]


Point = tuple[str, str, float, float]
"""A point of a chart: its label, its variant, its cost and its quality."""
Row: TypeAlias = tuple[Any, ...]
"""A point, whether it is beaten by none, and of a mean over seeds the ends of its interval and the number of seeds."""
_FEWER = "of fewer seeds"


@dataclass(frozen=True)
class _Axis:
    """A cost: its word in file names, its title, its meaning, and the measures that give it, in order of preference."""

    key: str
    title: str
    meaning: str
    names: tuple[str, ...]


_COSTS = (
    _Axis(
        "bytes",
        "bytes on disk",
        "the coded file where there is one, else the weights as torch.save writes them",
        ("file_bytes", "size"),
    ),
    _Axis("macs", "multiply-accumulates with a non-zero weight", "per example", ("macs_nonzero", "macs")),
    _Axis("time", "latency in milliseconds", "the median", ("latency",)),
)


def _one(measurements: Measurements, rows: list[VariantRow], quality: str, axis: _Axis) -> list[Figure]:
    """The figure of one cost; none where all variants cost the same."""
    drawn = [row for row in rows if _cost(row, axis.names) is not None and row.number(quality) is not None]
    points: list[Point] = [
        (row.label, row.variant, _cost(row, axis.names) or 0.0, row.number(quality) or 0.0) for row in drawn
    ]
    if len({cost for _, _, cost, _ in points}) < 2:
        return []
    lower = quality in LOWER
    judged = {id(row) for row in settled(drawn)}
    own = [i for i, row in enumerate(drawn) if id(row) in judged]
    best = {own[i] for i in front([points[i][2:] for i in own], lower)}  # of ours alone
    cheapest = min((points[i] for i in best), key=lambda point: point[2])
    points += [
        (label, "published", cost, good)
        for label, cost, good in _published(measurements, quality, axis.names)
    ]
    kept = _drawn(points, best)
    several = any(row.members for row in drawn)
    table: tuple[Row, ...] = tuple(
        (
            *points[i],
            "yes" if i in best else _FEWER if i < len(drawn) and i not in own else "no",
            *(_interval(drawn[i] if i < len(drawn) else None, quality) if several else ()),
        )
        for i in kept
    )
    domain = variants_of(measurements)
    if any(row[1] == "published" for row in table):
        domain = [*domain, "published"]
    thinned = (
        ""
        if len(kept) == len(points)
        else f" {len(kept):,} of {len(points):,} points are drawn, the front whole."
    )
    return [
        Figure(
            f"pareto-{axis.key}",
            "tradeoff",
            f"{quality.replace('_', ' ').capitalize()} against {axis.title}",
            f"Further left and further {'down' if lower else 'up'} is better. "
            f"{axis.title.capitalize()}: {axis.meaning}. The dashed line joins the variants that no "
            f"other beats on both.{_MEANS if several else ''}{thinned}",
            _chart(table, domain, quality, axis.title, len(points) > 6),
            f"{len(points)} variants by {axis.title} and {quality}; {len(best)} are beaten by no other, the cheapest "
            f"of them {cheapest[0]} at {cheapest[2]:,.4g} with {quality} {cheapest[3]:.4f}.",
            FigureTable(
                ("variant", "kind", axis.title, quality, "beaten by none", *(_SEEDS if several else ())),
                table,
            ),
        )
    ]


_SEEDS = ("95 % low", "95 % high", "seeds")
_MEANS = (
    " A point is the mean over the seeds; the line through one that no other beats is its 95 % interval by Student's "
    "t. One of at most half as many seeds as the others is drawn, and stays out of the comparison."
)


def _interval(row: VariantRow | None, quality: str) -> tuple[float | None, float | None, int | None]:
    """The ends of the interval of a mean over seeds, and the number of seeds."""
    if row is None:
        return None, None, None
    spread = row.values[quality].spread if row.members else {}
    return spread.get("low"), spread.get("high"), seeds_of(row)


def _drawn(points: Sequence[Point], best: set[int]) -> list[int]:
    """Which points are drawn: the front, the dense model and the published ones all, at most `_MOST` of the others."""
    kept = [i for i in range(len(points)) if i in best or points[i][1] in ("dense", "published")]
    others = [i for i in range(len(points)) if i not in set(kept)]
    step = max(1, -(-len(others) // _MOST))
    return sorted([*kept, *others[::step]])


def _chart(
    table: Sequence[Row],
    domain: list[str],
    quality: str,
    title: str,
    several: bool,
) -> alt.LayerChart | alt.FacetChart:
    """Points, labelled where they are few, and the dashed line through the front."""
    names = ("label", "variant", "cost", "quality", "front", "low", "high", "seeds")
    data = [dict(zip(names, row)) for row in table]
    used = [name for name in domain if any(row[1] == name for row in table)]
    form = "~g" if quality in LOWER else "%"
    choose = legend_selection("variant", "variant")
    x_axis = alt.Axis(format="~s", title=f"{title}, log scale", tickCount=5)
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("cost:Q", scale=alt.Scale(type="log", nice=False, padding=24), axis=x_axis),
        y=alt.Y(
            "quality:Q", scale=alt.Scale(zero=False, padding=16), axis=alt.Axis(format=form, title=quality)
        ),
    )
    line = base.transform_filter("datum.front == 'yes'").mark_line(
        interpolate="step-after", strokeWidth=1.2, strokeDash=[3, 3], opacity=0.7
    )
    dots = base.mark_point(size=60 if several else 140).encode(
        color=colour("variant", domain, used),
        shape=alt.Shape("variant:N", scale=alt.Scale(domain=domain, range=_shapes(domain)), legend=None),
        opacity=alt.condition(choose, alt.value(0.9), alt.value(0.08)),
        tooltip=[
            alt.Tooltip("label:N", title="variant"),
            alt.Tooltip("cost:Q", title=title, format=",.4~r"),
            alt.Tooltip("quality:Q", title=quality, format=".4~f"),
            alt.Tooltip("front:N", title="beaten by none"),
        ],
    )
    layers = [line, dots.add_params(choose)]
    if any("low" in row for row in data):
        sure = base.transform_filter("datum.front == 'yes' && isValid(datum.low)")
        y = alt.Y("low:Q", title=quality)
        layers.append(sure.mark_rule().encode(y=y, y2="high:Q", color=colour("variant", domain, used)))
    if not several:
        layers += [
            base.transform_filter(alt.FieldOneOfPredicate("label", [label.point for label in own]))
            .transform_calculate(name=_names(own))
            .mark_text(dy=dy, align=align)
            .encode(text="name:N")
            for (align, dy), own in _label_groups(table).items()
        ]
    return alt.layer(*layers).properties(width="container", height=320)


_Side: TypeAlias = Literal["left", "center", "right"]


@dataclass(frozen=True)
class _Label:
    """The text at a point: the point's label in the data, and what is written there."""

    point: str
    text: str


_PLOT, _HIGH, _TEXT, _LETTER = (
    560,
    280,
    16,
    6.5,
)
"""Pixels that a plot is at least wide and high, and that a text is."""


def _label_groups(
    table: Sequence[Row],
) -> dict[tuple[_Side, int], list[_Label]]:
    """The labels of points by how they are set: their side, and how far above or below the point.

    Points at one place have one label. A label at the left end starts at its point and one at the right ends there, so
    that none lies on the axis. One that would lie on another goes below its point; one that fits nowhere is left out.

    >>> rows = [("l1 · dense", "dense", 9.0, 0.9, ""), ("l2 · dense", "dense", 9.0, 0.9, ""), ("l1", "x", 1.0, 0.8, "")]
    >>> {place: [label.text for label in own] for place, own in _label_groups(rows).items()}
    {('right', -14): ['dense'], ('left', -14): ['l1']}
    """
    places: dict[tuple[float, float], list[tuple[str, str]]] = {}
    for label, variant, cost, quality, *_ in table:
        places.setdefault((cost, quality), []).append((label, variant))
    across = [math.log(cost) for cost, _ in places if cost > 0]
    up = [quality for _, quality in places]
    groups: dict[tuple[_Side, int], list[_Label]] = {}
    taken: list[tuple[float, float, float]] = []  # left end, right end and height of each text
    for (cost, quality), own in places.items():
        kinds = {variant for _, variant in own}
        text = (
            own[0][0]
            if len(own) == 1
            else kinds.pop()
            if len(kinds) == 1
            else " and ".join(k for k, _ in own)
        )
        x = _part(math.log(cost), across) * _PLOT if cost > 0 else 0.0
        wide = len(text) * _LETTER
        align: _Side = "left" if x < wide / 2 else "right" if x > _PLOT - wide / 2 else "center"
        left = x - {"left": 0.0, "right": wide, "center": wide / 2}[align]
        for dy in (-14, 18):
            y = (1 - _part(quality, up)) * _HIGH + dy
            if not any(left < b and a < left + wide and abs(y - h) < _TEXT for a, b, h in taken):
                taken.append((left, left + wide, y))
                groups.setdefault((align, dy), []).append(_Label(own[0][0], text))
                break
    return groups


def _part(value: float, values: Sequence[float]) -> float:
    """Where a value is between the lowest and the highest, from 0 to 1."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _names(own: Sequence[_Label]) -> str:
    """What is written at each point, as an expression of Vega."""
    changed = {label.point: label.text for label in own if label.point != label.text}
    return (
        f"{json.dumps(changed, ensure_ascii=False)}[datum.label] || datum.label" if changed else "datum.label"
    )


def _shapes(domain: list[str]) -> list[str]:
    special = {"dense": "diamond", "published": "cross"}
    return [special.get(name, "circle") for name in domain]
