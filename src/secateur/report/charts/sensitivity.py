"""Every layer pruned alone, at every sparsity: all curves in one figure, and each by itself.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("scan_value", value, context={"layer": layer, "sparsity": sparsity})
...     for layer, sparsity, value in [("", 0.0, 0.9), ("a", 0.5, 0.8), ("a", 0.9, 0.3), ("b", 0.5, 0.9)]])
>>> [figure.name for figure in sensitivity(found)]
['sensitivity', 'sensitivity-each']
"""

from __future__ import annotations

import re

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import legend_selection
from secateur.report.reading import as_text, finite

__all__ = ["sensitivity"]

_OWN = {"layer", "sparsity", "metric", "step", "seed", "trial", "variant"}
"""Keys of a scanned value's context that are no settings of its scan."""


def sensitivity(measurements: Measurements) -> list[Figure]:
    """The curves, from the form `scan_value`; two figures for every scan."""
    scans: dict[tuple[str, ...], list[Measurement]] = {}
    for item in measurements:
        if item.name == "scan_value" and finite(item.value) is not None:
            key = tuple(str(item.context.get(part, "")) for part in ("run", "trial", "variant"))
            scans.setdefault(key, []).append(item)
    scans = {
        _values(scan): scan for scan in reversed(scans.values())
    }  # trials that share a scan show it once
    scans = dict(reversed(scans.items()))
    names = _names(list(scans.values()))
    return [figure for name, scanned in zip(names, scans.values()) for figure in _curves(scanned, name)]


def _values(scan: list[Measurement]) -> tuple[str, ...]:
    return tuple(
        f"{item.context.get('layer')}@{item.context.get('sparsity')}={item.value!r}" for item in scan
    )


def _names(scans: list[list[Measurement]]) -> list[str]:
    """A name for every scan: the settings that differ between scans, else its number."""
    if len(scans) < 2:
        return [""]
    settings_of = [
        {key: as_text(value) for key, value in scan[0].context.items() if key not in _OWN} for scan in scans
    ]
    keys = dict.fromkeys(key for one in settings_of for key in one)
    differing = [key for key in keys if len({one.get(key, "") for one in settings_of}) > 1]
    names = [", ".join(one[key] for key in differing if key in one) for one in settings_of]
    return names if len(set(names)) == len(names) else [str(index) for index in range(1, len(scans) + 1)]


def _curves(scanned: list[Measurement], name: str) -> list[Figure]:
    cells = [item for item in scanned if item.context.get("layer")]
    if not cells:
        return []
    metric = str(cells[0].context.get("metric", "accuracy"))
    dense = next((item.value for item in scanned if not item.context.get("layer")), None)
    table = tuple(
        (str(item.context["layer"]), float(item.context["sparsity"]), float(item.value)) for item in cells
    )
    layers = list(dict.fromkeys(row[0] for row in table))
    if dense is not None:  # every curve starts from the model as it was
        table = (*((layer, 0.0, float(dense)) for layer in layers), *(row for row in table if row[1] > 0))
    stem = "sensitivity" + (f"-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}" if name else "")
    of = f" · {name}" if name else ""
    most = min(table, key=lambda row: row[2])
    what = cells[0].definition or f"{metric} with one layer pruned, not retrained"
    all_in_one, each = _charts(table, layers, metric)
    return [
        Figure(
            stem,
            "sensitivity",
            f"How {metric} falls when one layer alone is pruned{of}",
            f"{what}. Colours run from the first layer (dark) to the last (light).",
            all_in_one,
            f"{len(layers)} curves; the lowest is {most[0]} at sparsity {most[1]:.2f} with {metric} {most[2]:.4f}.",
            FigureTable(("layer", "sparsity", metric), table),
        ),
        Figure(
            f"{stem}-each",
            "sensitivity",
            f"The same curves, each layer by itself{of}",
            f"{what}: {metric} over the sparsity of that layer, all on the same scale.",
            each,
            f"{len(layers)} small charts, one a layer, of {metric} over the sparsity of that layer alone.",
            FigureTable(("layer", "sparsity", metric), table),
            each=150,
        ),
    ]


def _charts(
    table: tuple[tuple[str, float, float], ...], layers: list[str], metric: str
) -> tuple[alt.Chart, alt.FacetChart]:
    """All curves in one chart, and a small chart for every layer."""
    data = [{"layer": layer, "sparsity": sparsity, "value": value} for layer, sparsity, value in table]
    choose = legend_selection("layer", "layer")
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("sparsity:Q", axis=alt.Axis(format=".0%", title="sparsity of this layer alone", tickCount=5)),
        y=alt.Y("value:Q", axis=alt.Axis(format="%", title=metric, tickCount=5)),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("sparsity:Q", format=".0%"),
            alt.Tooltip("value:Q", title=metric, format=".4~f"),
        ],
    )
    # From the first layer to the last the colour runs along one ramp: depth is what it means.
    ramp = alt.Color(
        "layer:N",
        scale=alt.Scale(domain=layers, scheme="viridis"),
        sort=None,
        legend=alt.Legend(columns=4, symbolLimit=0),  # many layers: rows, not one line wider than the page
    )
    all_in_one = (
        base.mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(color=ramp, opacity=alt.condition(choose, alt.value(1.0), alt.value(0.08)))
        .add_params(choose)
        .properties(width="container", height=360)
    )
    each = (
        base.mark_line(point=alt.OverlayMarkDef(size=24))
        .encode(
            x=alt.X("sparsity:Q", axis=alt.Axis(format=".0%", title=None, values=[0, 0.5, 1])),
            y=alt.Y("value:Q", axis=alt.Axis(format="%", title=None, tickCount=3)),
        )
        .properties(width=150, height=96)
        .facet(alt.Facet("layer:N", sort=layers, header=alt.Header(labelFontSize=11)), columns=4)
    )
    return all_in_one, each
