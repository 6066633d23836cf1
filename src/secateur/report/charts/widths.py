"""The width of every layer before and after.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("widths", 24, per_layer={"conv1": 16, "fc": 8}, context={"variant": "dense"}),
...     Measurement("widths", 14, per_layer={"conv1": 6, "fc": 8}, context={"variant": "shrunk"})])
>>> widths(found)[0].table.rows
(('conv1', 16, 6, 10), ('fc', 8, 8, 0))
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.reading import before_and_after, trial_of
from secateur.report.variants import result_trials

__all__ = ["widths"]


def widths(measurements: Measurements) -> list[Figure]:
    """The widths before and after in one trial; nothing where no width changed."""
    found = [item for item in measurements if item.name == "widths" and "published" not in item.context]
    pair = before_and_after(found, result_trials(measurements) if found else ())
    if pair is None or pair[0] is pair[1]:
        return []
    first, last = pair
    names = [str(item.context.get("variant", name)) for item, name in ((first, "before"), (last, "after"))]
    table = tuple(
        (layer, before, last.per_layer[layer], before - last.per_layer[layer])
        for layer, before in first.per_layer.items()
        if layer in last.per_layer
    )
    layers = [row[0] for row in table]
    data = [{"layer": layer, "before": before, "after": after} for layer, before, after, _ in table]
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("layer:N", sort=layers, axis=alt.Axis(title=None)),
        tooltip=["layer:N", alt.Tooltip("before:Q", title=names[0]), alt.Tooltip("after:Q", title=names[1])],
    )
    axis = alt.Axis(title="output channels or features", format="d", orient="top", tickCount=8)
    lines = base.mark_rule(strokeWidth=2, opacity=0.45).encode(x=alt.X("before:Q", axis=axis), x2="after:Q")
    dots = (
        base.transform_fold(["before", "after"], ["when", "width"])
        .transform_calculate(variant=f"datum.when == 'before' ? {_quoted(names[0])} : {_quoted(names[1])}")
        .mark_point(size=85, opacity=1)
        .encode(x=alt.X("width:Q", axis=axis), color=alt.Color("variant:N", scale=alt.Scale(domain=names)))
    )
    gone = sum(row[3] for row in table)
    return [
        Figure(
            "widths",
            "layers",
            f"Width of each layer, before and after{trial_of(measurements, last)}",
            f"{first.definition or 'output channels of convolutions, output features of linear layers'}; "
            f"{names[0]} against {names[1]}.",
            alt.layer(lines, dots).properties(width="container", height=alt.Step(16)),
            f"{len(layers)} layers; {gone:,} of {sum(row[1] for row in table):,} units were removed.",
            FigureTable(("layer", names[0], names[1], "removed"), table),
        )
    ]


def _quoted(text: str) -> str:
    """A text as a literal of Vega's expressions.

    >>> print(_quoted("it's"))
    'it\\'s'
    """
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
