"""Histograms of many layers in one chart: as ridges, and stacked in depth.

A ridge is a layer's histogram on a baseline of its own; the height is the share of values in a bin, scaled so that the
highest bin of every ridge has the same height, so that their shapes can be compared.

>>> heights([1, 3, 0])
[0.333, 1.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import colour
from secateur.report.reading import variants_of
from secateur.report.variants import of_one_trial

__all__ = ["heights", "ridges"]

_LAYERS = 24
_VARIANTS = 7
_WIDE = 200


def heights(counts: Sequence[float]) -> list[float]:
    """Counts as shares of the highest."""
    top = max(counts, default=0) or 1
    return [round(count / top, 3) for count in counts]


def _chosen(measurements: Measurements, name: str) -> tuple[list[Measurement], list[str], list[str], int]:
    """The histograms to draw, their layers and variants, and how many layers there are in all."""
    found = of_one_trial([item for item in measurements if item.name == name], measurements)
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
    low, high = float(item.context["low"]), float(item.context["high"])
    levels = item.context.get("levels") or []
    if levels:
        return _bars(levels, (high - low) / 160)
    counts = [int(count) for count in item.context["counts"]]
    width = (high - low) / len(counts)
    middles = [_short(low + (k + 0.5) * width) for k in range(len(counts))]
    return {
        "x": [_short(low), *middles, _short(high)],
        "h": [0, *heights(counts), 0],
        "n": [0, *counts, 0],
    }


def _bars(levels: Sequence[tuple[float, int]], half: float) -> dict[str, list[float]]:
    """The outline of a bar at each of few distinct values, twice `half` wide and down to the baseline on both sides.

    >>> _bars([(0.5, 4)], 0.1)
    {'x': [0.4, 0.4, 0.6, 0.6], 'h': [0, 1.0, 1.0, 0], 'n': [0, 4, 4, 0]}
    """
    shares = heights([count for _, count in levels])
    x: list[float] = []
    h: list[float] = []
    n: list[float] = []
    for (value, count), share in zip(levels, shares):
        left, right = _short(value - half), _short(value + half)
        x += [left, left, right, right]
        h += [0, share, share, 0]
        n += [0, count, count, 0]
    return {"x": x, "h": h, "n": n}


@dataclass(frozen=True)
class _DrawnHistograms:
    """Histograms of one kind, chosen for drawing.

    Attributes:
        items: The histograms.
        layers: Their layers, in the order they run.
        variants: Their variants.
        known: All variants of the measurements, for their colours.
        what: What is counted: "weight" or "activation".
    """

    items: list[Measurement]
    layers: list[str]
    variants: list[str]
    known: list[str]
    what: str

    def depth(self, item: Measurement) -> int:
        """The place of a histogram's layer, 0 for the first."""
        return self.layers.index(str(item.context["layer"]))

    def rows(self, key: str, place: Callable[[Measurement], int]) -> list[dict[str, object]]:
        """One row a histogram, by falling `place`, which `key` holds."""
        return [
            {
                "l": str(item.context["layer"]),
                "v": str(item.context.get("variant", "model")),
                key: place(item),
                **_outline(item),
            }
            for item in sorted(self.items, key=lambda item: -place(item))
        ]


def ridges(measurements: Measurements, name: str, section: str, what: str) -> list[Figure]:
    """The two views of the histograms of one kind: as ridges, and stacked in depth.

    Args:
        measurements: Where the histograms are.
        name: The measure that holds them, such as "weight_histogram".
        section: The section of the page.
        what: What is counted: "weight" or "activation".
    """
    items, layers, variants, total = _chosen(measurements, name)
    if not items:
        return []
    drawn = _DrawnHistograms(items, layers, variants, variants_of(measurements) or variants, what)
    table = FigureTable(
        ("layer", "variant", f"{what}s not zero", "zeros", "lowest", "highest"),
        tuple(_table_row(item) for item in items),
    )
    note = "" if len(layers) == total else f" {len(layers)} of {total} layers are drawn, evenly spaced."
    definition = items[0].definition or f"{what}s that are not zero"
    says = f"{len(layers)} layers in {len(variants)} variants ({', '.join(variants)}), each as a histogram."
    stem = name.replace("_", "-") + "s"
    return [
        Figure(
            stem,
            section,
            f"{what.capitalize()}s of every layer, variant by variant",
            f"{definition}. Every ridge is scaled to its own highest bin; zeros are left out. Where a layer has few "
            f"distinct values, as after weight sharing, each is a bar.{note}",
            _ridge_chart(drawn),
            says,
            table,
            each=210,
        ),
        Figure(
            f"{stem}-stacked",
            section,
            f"The same {what}s, layer behind layer",
            f"{definition}. The first layer is in front, the last at the back, moved up to its name and to the right: "
            f"the horizontal axis is the front layer's. A frequency of 100% is that of each layer's highest bin.{note}",
            _stacked_chart(drawn),
            says,
            table,
            each=290,
        ),
    ]


def _table_row(item: Measurement) -> tuple[str, str, int, object, float, float]:
    context = item.context
    variant = str(context.get("variant", "model"))
    zeros = context.get("zeros", "")
    return (
        str(context["layer"]),
        variant,
        int(item.value),
        zeros,
        float(context["low"]),
        float(context["high"]),
    )


def _ridge_chart(drawn: _DrawnHistograms) -> alt.FacetChart:
    """Every layer's histogram on a baseline of its own."""
    count = len(drawn.layers)
    reach = 0.86 if count < 4 else 1.7  # ridges overlap a little, so that their shapes can be seen
    labels = "[" + ",".join(_text(layer) for layer in reversed(drawn.layers)) + "][datum.value]"
    rows = drawn.rows("b", lambda item: count - 1 - drawn.depth(item))
    axis_y = alt.Axis(
        values=list(range(count)),
        labelExpr=labels,
        title=None,
        grid=True,
        labelOverlap=False,
        labelLimit=130,
    )
    scale_y = alt.Scale(domain=[0, count - 1 + reach], nice=False, zero=False)
    axis_x = alt.Axis(title=drawn.what, tickCount=4, format=".3~r")
    return (
        alt.Chart(alt.Data(values=rows))
        .transform_flatten(["x", "h", "n"])
        .transform_calculate(y=f"datum.b + {reach} * datum.h")
        .mark_area(fillOpacity=0.55, line={"strokeWidth": 1}, interpolate="linear")
        .encode(
            x=alt.X("x:Q", axis=axis_x, scale=alt.Scale(nice=False)),
            y=alt.Y("y:Q", axis=axis_y, scale=scale_y, stack=None),
            y2="b:Q",
            detail="l:N",
            color=colour("v", drawn.known, [], legend=False),
            tooltip=_tooltips(drawn.what, "x"),
        )
        .properties(width=210, height=max(120, 24 * count))
        .facet(alt.Facet("v:N", sort=drawn.variants), columns=3)
    )


def _stacked_chart(drawn: _DrawnHistograms) -> alt.FacetChart:
    """The same histograms one behind the other, drawn from the back: the first layer is in front.

    Three axes: the value below, the layers' names at their baselines on the left, the frequency of the front layer on
    the right.
    """
    count = len(drawn.layers)
    span = max(abs(float(item.context[key])) for item in drawn.items for key in ("low", "high")) or 1.0
    lean, lift = 1.1 * span / max(4, count), 0.34
    ramp = alt.Scale(scheme="viridis", domain=[0, max(1, count - 1)])
    top = round((count - 1) * lift + 1, 3)
    scale_y = alt.Scale(domain=[0, top], nice=False)
    names = "[" + ",".join(_text(layer) for layer in drawn.layers) + f"][round(datum.value / {lift})]"
    baselines = [round(place * lift, 3) for place in range(count)]
    layers_axis = alt.Axis(
        title="layer",
        orient="left",
        values=baselines,
        labelExpr=names,
        labelOverlap=False,
        labelLimit=110,
        grid=False,
    )
    base = alt.Chart()
    areas = base.mark_area(fillOpacity=0.82, line={"strokeWidth": 0.8, "color": "white"}).encode(
        x=alt.X(
            "s:Q", axis=alt.Axis(title=drawn.what, tickCount=4, format=".3~r"), scale=alt.Scale(nice=False)
        ),
        y=alt.Y("y:Q", axis=layers_axis, stack=None, scale=scale_y),
        y2="b:Q",
        detail="l:N",
        color=alt.Color("d:Q", scale=ramp, legend=None),
        tooltip=_tooltips(drawn.what, "w"),
    )
    return (
        alt.layer(areas, _frequency_axis(base, scale_y), data=alt.Data(values=drawn.rows("d", drawn.depth)))
        .transform_flatten(["x", "h", "n"])
        .transform_calculate(
            w="datum.x",
            s=f"datum.x + datum.d * {lean:.6g}",
            b=f"datum.d * {lift}",
            y=f"datum.d * {lift} + datum.h",
        )
        .resolve_axis(y="independent")
        .properties(width=_WIDE, height=max(260, 16 * count))
        .facet(alt.Facet("v:N", sort=drawn.variants), columns=2, spacing={"column": 64})
    )


def _frequency_axis(base: alt.Chart, scale: alt.Scale) -> alt.Chart:
    """The third axis as text at the right edge of every variant: a facet draws all its vertical axes on the left."""
    words = "datum.f === 1 ? ['frequency', '100%'] : format(datum.f, '.0%')"
    return (
        base.transform_aggregate(n="count()", groupby=["v"])
        .transform_calculate(f="[0, 0.5, 1]")
        .transform_flatten(["f"])
        .transform_calculate(words=words)
        .mark_text(align="left", dx=4, baseline="bottom", lineBreak="\n")
        .encode(x=alt.value(_WIDE), y=alt.Y("f:Q", axis=None, scale=scale), text="words:N")
    )


def _tooltips(what: str, value: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("l:N", title="layer"),
        alt.Tooltip("v:N", title="variant"),
        alt.Tooltip(f"{value}:Q", title=what, format=".3~g"),
        alt.Tooltip("n:Q", title="in this bin", format=",d"),
    ]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
