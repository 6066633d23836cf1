"""Accuracy against sparsity: a line for every method, the spread over seeds as a band.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("accuracy", a, context={"trial": t, "variant": "pruned", "sparsity": s, "seed": seed})
...     for t, (s, seed, a) in enumerate([(0.5, 0, 0.9), (0.5, 1, 0.7), (0.9, 0, 0.5), (0.9, 1, 0.4)])])
>>> accuracy_sparsity(found)[0].table.rows[0]
('pruned', 0.5, 0.8, 0.7, 0.9, 2)
"""

from __future__ import annotations

from statistics import fmean

import altair as alt

from secateur.core.measurement import Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import dashes, fitting_legend, legend_selection
from secateur.report.reading import LOWER, VariantRow, quality_of, rows_of, series_of

__all__ = ["accuracy_sparsity"]

_OTHER_SPLITS = ("train_accuracy", "validation_accuracy")


def accuracy_sparsity(measurements: Measurements) -> list[Figure]:
    """The curves, where some variant was measured at two sparsities or more; on other splits too, if it was."""
    rows = rows_of(measurements)
    quality = quality_of(rows)
    if quality is None:
        return []
    others = [name for name in _OTHER_SPLITS if name != quality]
    return [figure for name in (quality, *others) for figure in _curves(rows, name, name == quality)]


Point = tuple[str, float, float, float, float, int]
"""A series, a sparsity, the mean, lowest and highest value there, and how many trials gave it."""


def _points(rows: list[VariantRow], quality: str) -> tuple[Point, ...]:
    """Every series at every sparsity; none where no series was measured at two sparsities or more."""
    points: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        value = row.number(quality)
        if value is not None and row.removed is not None and row.variant != "dense":
            points.setdefault((series_of(row, rows), round(row.removed, 6)), []).append(value)
    names = [name for name, _ in points]
    if all(names.count(name) < 2 for name in set(names)):
        return ()
    return tuple(
        (name, sparsity, fmean(values), min(values), max(values), len(values))
        for (name, sparsity), values in sorted(points.items())
    )


def _chart(
    table: tuple[Point, ...], quality: str, form: str, baseline: list[float]
) -> alt.LayerChart | alt.FacetChart:
    """Lines with their bands; the dense model as a dashed line."""
    data = [dict(zip(("series", "sparsity", "mean", "low", "high", "seeds"), row)) for row in table]
    domain = list(dict.fromkeys(row[0] for row in table))
    choose = legend_selection("series", "series")
    shown = {"opacity": alt.condition(choose, alt.value(1.0), alt.value(0.1))}
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X(
            "sparsity:Q",
            axis=alt.Axis(format=".0%", title="sparsity (share removed)", tickCount=10),
            scale=alt.Scale(nice=True),
        ),
        color=alt.Color("series:N", scale=alt.Scale(domain=domain), legend=fitting_legend(domain)),
    )
    y = alt.Y("mean:Q", axis=alt.Axis(format=form, title=quality), scale=alt.Scale(zero=False))
    tip = [
        alt.Tooltip("series:N"),
        alt.Tooltip("sparsity:Q", format=".1%"),
        alt.Tooltip("mean:Q", format=".4~f"),
        alt.Tooltip("low:Q", format=".4~f"),
        alt.Tooltip("high:Q", format=".4~f"),
        alt.Tooltip("seeds:Q"),
    ]
    # The first layer holds the selection: of legends that are merged, the first one's counts.
    band = base.mark_area(fillOpacity=0.16).encode(y=alt.Y("low:Q", title=quality), y2="high:Q", **shown)
    band = band.add_params(choose)
    line = base.mark_line().encode(y=y, strokeDash=dashes(domain), **shown)
    dots = base.mark_point().encode(y=y, tooltip=tip, **shown)
    layers = [band, line, dots]
    if baseline:
        rule = alt.Chart(alt.Data(values=[{"dense": fmean(baseline)}]))
        layers.insert(
            0,
            rule.mark_rule(strokeDash=[5, 4]).encode(
                y="dense:Q", tooltip=[alt.Tooltip("dense:Q", title="dense", format=".4~f")]
            ),
        )
    return alt.layer(*layers).properties(width="container", height=340)


def _series(table: tuple[Point, ...]) -> dict[str, list[tuple[float, float]]]:
    """(sparsity, mean) of every series, by rising sparsity."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, sparsity, mean, *_ in table:
        found.setdefault(name, []).append((sparsity, mean))
    return {name: sorted(points) for name, points in found.items()}


def _title(table: tuple[Point, ...], quality: str) -> str:
    """What the curves do from their lowest to their highest sparsity; no verb where they disagree.

    >>> _title((("a", 0.2, 0.9, 0, 0, 1), ("a", 0.8, 0.7, 0, 0, 1)), "accuracy")
    'Accuracy falls as sparsity rises'
    >>> _title((("a", 0.2, 0.9, 0, 0, 1), ("a", 0.8, 0.7, 0, 0, 1), ("b", 0.2, 0.6, 0, 0, 1), ("b", 0.8, 0.7, 0, 0, 1)),
    ...        "accuracy")
    'Accuracy against sparsity'
    """
    what = quality.replace("_", " ").capitalize()
    changes = [points[-1][1] - points[0][1] for points in _series(table).values() if len(points) > 1]
    if all(change > 0 for change in changes):
        return f"{what} rises as sparsity rises"
    if all(change < 0 for change in changes):
        return f"{what} falls as sparsity rises"
    return f"{what} against sparsity"


def _covered(table: tuple[Point, ...]) -> str:
    """Which series lie on each other and so look like one line."""
    alike: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in _series(table).items():
        alike.setdefault(tuple((x, round(y, 4)) for x, y in points), []).append(name)
    texts = [" and ".join(names) for names in alike.values() if len(names) > 1]
    return f" On each other lie: {'; '.join(texts)}." if texts else ""


def _curves(rows: list[VariantRow], quality: str, main: bool) -> list[Figure]:
    """The figure of one quality."""
    table = _points(rows, quality)
    if not table:
        return []
    lower = quality in LOWER
    dense = [row.number(quality) for row in rows if row.variant == "dense"]
    baseline = [value for value in dense if value is not None]
    most = max(row[5] for row in table)
    best = max(table, key=lambda row: -row[2] if lower else row[2])
    curves = len({row[0] for row in table})
    return [
        Figure(
            "accuracy-sparsity" if main else f"{quality.replace('_', '-')}-sparsity",
            "tradeoff",
            _title(table, quality),
            f"Each point is the mean {quality} over "
            + (
                f"up to {most} trials that differ in nothing but the seed; the band is from the lowest to the highest"
                if most > 1
                else "one trial"
            )
            + f".{_covered(table)} Sparsity is the one asked for where a setting names it, else the share of the dense "
            "model's "
            "parameters that are gone or zero."
            + (" The dashed line is the dense model." if baseline else ""),
            _chart(table, quality, ".3~g" if lower else ".0%", baseline),
            f"{curves} curves of {quality} over sparsity; the best point is {best[0]} at sparsity "
            f"{best[1]:.2f} with {best[2]:.4f}.",
            FigureTable(("series", "sparsity", f"mean {quality}", "lowest", "highest", "seeds"), table),
        )
    ]
