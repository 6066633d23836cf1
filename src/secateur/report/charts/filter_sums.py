"""Sums of |w| per filter: dark gaps from top to bottom of a strip are whole filters that are gone.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([Measurement("filter_sums", 1, context={
...     "variant": "pruned", "layer": "conv1", "sums": [0.0, 2.0, 1.0]})])
>>> filter_sums(found)[0].table.rows
(('conv1', 'pruned', 3, 1),)
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.variants import of_one_trial

__all__ = ["filter_sums"]

_CELLS = 64
_LAYERS = 40


def filter_sums(measurements: Measurements) -> list[Figure]:
    """A strip for every layer, a column for every variant."""
    found = [item for item in measurements if item.name == "filter_sums" and item.context.get("sums")]
    found = of_one_trial(found, measurements)
    if not found:
        return []
    layers = list(dict.fromkeys(str(item.context["layer"]) for item in found))
    variants = list(dict.fromkeys(str(item.context.get("variant", "model")) for item in found))
    table = tuple(
        (
            str(item.context["layer"]),
            str(item.context.get("variant", "model")),
            len(item.context["sums"]),
            sum(1 for value in item.context["sums"] if value == 0),
        )
        for item in found
    )
    gone, total = sum(row[3] for row in table), sum(row[2] for row in table)
    note = "" if len(layers) <= _LAYERS else f" The first {_LAYERS} of {len(layers)} layers are drawn."
    return [
        Figure(
            "filter-sums",
            "weights",
            "Is the pattern structured? Sums of |w|, filter by filter",
            f"{found[0].definition or 'sum of the absolute weights of each filter'}. Red is a filter whose weights "
            f"are all zero: structured pruning leaves red lines, unstructured pruning leaves none.{note}",
            _chart(found, layers, variants),
            f"{len(layers)} layers in {len(variants)} variants; {gone:,} of {total:,} filters are all zero.",
            FigureTable(("layer", "variant", "filters", "of them all zero"), table),
            each=230,
        )
    ]


def _chart(found: list[Measurement], layers: list[str], variants: list[str]) -> alt.FacetChart:
    """Strips of cells, the darker the larger the sum; red where all of a cell is zero."""
    drawn = set(layers[:_LAYERS])
    cells = [cell for item in found if str(item.context["layer"]) in drawn for cell in _cells(item)]
    legend = alt.Legend(title="share of the layer's largest sum", format=".0%", gradientLength=160)
    share = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1]), legend=legend)
    return (
        alt.Chart(alt.Data(values=cells))
        .mark_rect()
        .encode(
            x=alt.X(
                "from:Q",
                axis=alt.Axis(title="filter, first to last", format=".0%", tickCount=3),
                scale=alt.Scale(nice=False, domain=[0, 1]),
            ),
            x2="to:Q",
            y=alt.Y("layer:N", sort=layers, axis=alt.Axis(title=None)),
            color=alt.condition("datum.zero", alt.value("#b5432c"), share),
            tooltip=["layer:N", "variant:N", "filters:N", alt.Tooltip("sum:Q", format=".4~g")],
        )
        .properties(width=230, height=alt.Step(13))
        .facet(alt.Facet("variant:N", sort=variants), columns=3)
    )


def _cells(item: Measurement) -> list[dict[str, object]]:
    """The cells of one strip, at most `_CELLS`: neighbours share a cell, which is zero only if all of them are."""
    sums = [float(value) for value in item.context["sums"]]
    top = max(sums) or 1.0
    step = -(-len(sums) // _CELLS)
    cells: list[dict[str, object]] = []
    for start in range(0, len(sums), step):
        part = sums[start : start + step]
        name = str(start) if len(part) == 1 else f"{start}–{start + len(part) - 1}"
        cells.append(
            {
                "layer": str(item.context["layer"]),
                "variant": str(item.context.get("variant", "model")),
                "from": round(start / len(sums), 4),
                "to": round((start + len(part)) / len(sums), 4),
                "share": round(max(part) / top, 3),
                "sum": round(max(part), 4),
                "filters": name,
                "zero": max(part) == 0,
            }
        )
    return cells
