"""Histograms of many layers in one chart: as ridges, and stacked in depth.

A ridge is a layer's histogram on a baseline of its own; the height is the share of values in a bin, scaled so that
the highest bin of each ridge is as high as every other's: what is compared is their form.

>>> heights([1, 3, 0])
[0.333, 1.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.reading import colour, variants_of

__all__ = ["heights", "ridges"]

_LAYERS = 24
_VARIANTS = 7


def heights(counts: Sequence[float]) -> list[float]:
    """Counts as shares of the highest."""
    top = max(counts, default=0) or 1
    return [round(count / top, 3) for count in counts]


def _chosen(measurements: Measurements, name: str) -> tuple[list[Measurement], list[str], list[str], int]:
    """The histograms to draw, their layers and variants, and how many layers there are in all."""
    found = [item for item in measurements if item.name == name and item.context.get("trial", 0) == 0]
    runs = {str(item.context.get("run", "")) for item in found}
    found = [item for item in found if str(item.context.get("run", "")) == min(runs)] if runs else []
    layers = list(dict.fromkeys(str(item.context["layer"]) for item in found))
    step = -(-len(layers) // _LAYERS) if layers else 1
    kept = layers[::step]
    variants = list(dict.fromkeys(str(item.context.get("variant", "model")) for item in found))[:_VARIANTS]
    drawn = [
        i
        for i in found
        if str(i.context["layer"]) in set(kept) and str(i.context.get("variant", "model")) in variants
    ]
    return drawn, kept, variants, len(layers)


def _outline(item: Measurement) -> dict[str, list[float]]:
    """Middles of the bins (x), heights (h), counts (n), from end to end, with a foot on the baseline at both.

    One row a histogram, taken apart by the chart itself: a page that holds hundreds of them stays small.
    """
    counts = [int(count) for count in item.context["counts"]]
    low, high = float(item.context["low"]), float(item.context["high"])
    width = (high - low) / len(counts)
    middles = [_short(low + (k + 0.5) * width) for k in range(len(counts))]
    return {
        "x": [_short(low), *middles, _short(high)],
        "h": [0, *heights(counts), 0],
        "n": [0, *counts, 0],
    }


def ridges(measurements: Measurements, name: str, section: str, what: str) -> list[Figure]:
    """The two views of the histograms of one kind."""
    drawn, layers, variants, total = _chosen(measurements, name)
    if not drawn:
        return []
    table = tuple(
        (
            str(item.context["layer"]),
            str(item.context.get("variant", "model")),
            int(item.value),
            item.context.get("zeros", ""),
            float(item.context["low"]),
            float(item.context["high"]),
        )
        for item in drawn
    )
    head = ("layer", "variant", f"{what}s not zero", "zeros", "lowest", "highest")
    note = "" if len(layers) == total else f" {len(layers)} of {total} layers are drawn, evenly spaced."
    told = drawn[0].definition or f"{what}s that are not zero"
    says = f"{len(layers)} layers in {len(variants)} variants ({', '.join(variants)}), each as a histogram."
    rows = len(layers)
    reach = 0.86 if rows < 4 else 1.7  # ridges overlap a little, so that their forms can be seen
    labels = "[" + ",".join(_text(layer) for layer in reversed(layers)) + "][datum.value]"

    def place(item: Measurement) -> int:
        return rows - 1 - layers.index(str(item.context["layer"]))

    flat = [
        {
            "l": str(item.context["layer"]),
            "v": str(item.context.get("variant", "model")),
            "b": place(item),
            **_outline(item),
        }
        for item in sorted(drawn, key=lambda item: -place(item))
    ]
    axis_y = alt.Axis(
        values=list(range(rows)), labelExpr=labels, title=None, grid=True, labelOverlap=False, labelLimit=130
    )
    scale_y = alt.Scale(domain=[0, rows - 1 + reach], nice=False, zero=False)
    ridge = (
        alt.Chart(alt.Data(values=flat))
        .transform_flatten(["x", "h", "n"])
        .transform_calculate(y=f"datum.b + {reach} * datum.h")
        .mark_area(fillOpacity=0.55, line={"strokeWidth": 1}, interpolate="monotone")
        .encode(
            x=alt.X(
                "x:Q", axis=alt.Axis(title=what, tickCount=4, format=".3~r"), scale=alt.Scale(nice=False)
            ),
            y=alt.Y("y:Q", axis=axis_y, scale=scale_y, stack=None),
            y2="b:Q",
            detail="l:N",
            color=colour("v", variants_of(measurements), [], legend=False),
            tooltip=[
                alt.Tooltip("l:N", title="layer"),
                alt.Tooltip("v:N", title="variant"),
                alt.Tooltip("x:Q", title=what, format=".3~g"),
                alt.Tooltip("n:Q", title="in this bin", format=",d"),
            ],
        )
        .properties(width=210, height=max(120, 24 * rows))
        .facet(alt.Facet("v:N", sort=variants), columns=3)
    )
    figures = [
        Figure(
            name.replace("_", "-") + "s",
            section,
            f"{what.capitalize()}s of every layer, variant by variant",
            f"{told}. Every ridge is scaled to its own highest bin; zeros are left out.{note}",
            ridge,
            says,
            FigureTable(head, table),
            each=210,
        )
    ]
    if len(layers) >= 1:
        figures.append(
            _stacked(drawn, layers, variants, name, section, what, told, note, says, FigureTable(head, table))
        )
    return figures


def _stacked(
    drawn: list[Measurement],
    layers: list[str],
    variants: list[str],
    name: str,
    section: str,
    what: str,
    told: str,
    note: str,
    says: str,
    table: FigureTable,
) -> Figure:
    """The same histograms one behind the other, drawn from the back: the first layer is in front."""
    span = max(abs(float(item.context[key])) for item in drawn for key in ("low", "high")) or 1.0
    lean, lift = 1.1 * span / max(4, len(layers)), 0.34
    rows = [
        {
            "l": str(item.context["layer"]),
            "v": str(item.context.get("variant", "model")),
            "d": layers.index(str(item.context["layer"])),
            **_outline(item),
        }
        for item in sorted(drawn, key=lambda item: -layers.index(str(item.context["layer"])))
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .transform_flatten(["x", "h", "n"])
        .transform_calculate(
            w="datum.x",
            s=f"datum.x + datum.d * {lean:.6g}",
            b=f"datum.d * {lift}",
            y=f"datum.d * {lift} + datum.h",
        )
        .mark_area(fillOpacity=0.82, line={"strokeWidth": 0.8, "color": "white"})
        .encode(
            x=alt.X("s:Q", axis=None, scale=alt.Scale(nice=False)),
            y=alt.Y("y:Q", axis=None, stack=None, scale=alt.Scale(nice=False)),
            y2="b:Q",
            detail="l:N",
            color=alt.Color(
                "d:Q", scale=alt.Scale(scheme="viridis", domain=[0, max(1, len(layers) - 1)]), legend=None
            ),
            tooltip=[
                alt.Tooltip("l:N", title="layer"),
                alt.Tooltip("v:N", title="variant"),
                alt.Tooltip("w:Q", title=what, format=".3~g"),
                alt.Tooltip("n:Q", title="in this bin", format=",d"),
            ],
        )
        .properties(width=270, height=260)
        .facet(alt.Facet("v:N", sort=variants), columns=3)
    )
    return Figure(
        name.replace("_", "-") + "s-stacked",
        section,
        f"The same {what}s, layer behind layer",
        f"{told}. The first layer is in front, the last at the back, each moved up and to the right.{note}",
        chart,
        says,
        table,
        each=270,
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
