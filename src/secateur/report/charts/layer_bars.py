"""Layer by layer: sparsity, and multiply-accumulates of every variant.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([
...     Measurement("macs", 10, "MAC", per_layer={"fc1": 8, "fc2": 2}, context={"variant": "dense"}),
...     Measurement("macs", 4, "MAC", per_layer={"fc1": 3, "fc2": 1}, context={"variant": "small"})])
>>> layer_bars(found)[0].table.rows[0]
('fc1', 'dense', 8)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import colour, legend_selection
from secateur.report.reading import VariantRow, rows_of, series_of, variants_of

__all__ = ["layer_bars"]

_VARIANTS = 10


@dataclass(frozen=True)
class _View:
    """What a figure shows: the measures that give it (the first there is), its name, title, axis and number format."""

    names: tuple[str, ...]
    stem: str
    title: str
    axis: str
    form: str


_MACS = _View(
    ("macs_nonzero", "macs"),
    "layer-macs",
    "Where the multiply-accumulates are",
    "multiply-accumulates",
    "~s",
)
_SPARSITY = _View(("share_removed",), "layer-sparsity", "Sparsity of each layer", "share removed", ".0%")


def layer_bars(measurements: Measurements) -> list[Figure]:
    """A figure for the sparsity and one for the multiply-accumulates, of one trial for every method."""
    rows = rows_of(measurements)
    domain = variants_of(measurements)
    macs = [row for row in rows if any(name in row.values for name in _MACS.names)]
    return [
        *_bars(_of_each_method(macs), domain, _MACS),
        *_bars(_of_each_method(_with_sparsity(rows)), domain, _SPARSITY),
    ]


def _of_each_method(rows: list[VariantRow]) -> list[VariantRow]:
    """One row for every method and variant, all at one sparsity: the one that most methods were run at, the highest of
    equals.

    Methods are told apart by every setting but sparsity and seed. A method that was not run at that sparsity is shown
    at its nearest. Variants that nothing was removed from, as the dense one, come once.
    """
    methods: dict[str, list[VariantRow]] = {}
    for row in rows:
        methods.setdefault("dense" if row.variant == "dense" else series_of(row, rows), []).append(row)
    common: dict[float, int] = {}
    for series in methods.values():
        for sparsity in {round(row.removed, 6) for row in series if row.removed}:
            common[sparsity] = common.get(sparsity, 0) + 1
    if not common:
        return [series[0] for series in methods.values()]
    at = max(common, key=lambda sparsity: (common[sparsity], sparsity))
    return [min(series, key=lambda row: abs((row.removed or 0.0) - at)) for series in methods.values()]


def _with_sparsity(rows: list[VariantRow]) -> list[VariantRow]:
    """The share of each tensor's dense parameters that are gone or zero, computed where it was not measured."""
    found = []
    for row in rows:
        base = row.whole if row.whole is not None else Measurement("params", 0)
        alive = row.values.get("nonzeros")
        layers: dict[str, float] = {}
        if alive is not None and base.per_layer:
            layers = {
                name: 1 - alive.per_layer.get(name, 0) / count
                for name, count in base.per_layer.items()
                if count and name.endswith("weight") and name in alive.per_layer
            }
        elif row.cut:  # what is zero in the smaller model is not what was removed
            continue
        elif "sparsity" in row.values:
            layers = dict(row.values["sparsity"].per_layer)
        elif "mask_sparsity" in row.values:
            layers = dict(row.values["mask_sparsity"].per_layer)
        if any(layers.values()):
            text = "share of the dense tensor's weights that are gone or zero"
            item = Measurement("share_removed", 0.0, "", text, per_layer=layers)
            found.append(replace(row, values={"share_removed": item}))
    return found


Row = tuple[str, str, float]
"""A layer, a variant and the value there."""


def _bars(rows: list[VariantRow], domain: list[str], view: _View) -> list[Figure]:
    """The figure of one view; none where no variant has it for two layers or more."""
    measured = [
        (row.label, item)
        for row in rows
        for item in [next((row.values[name] for name in view.names if name in row.values), None)]
        if item is not None and len(item.per_layer) > 1
    ]
    measured = measured[:_VARIANTS]
    table: list[Row] = [
        (layer, label, value) for label, item in measured for layer, value in item.per_layer.items()
    ]
    if view is _SPARSITY:  # layers with a single number per channel carry no information here
        table = [row for row in table if not _is_norm(row[0])]
    if not table:
        return []
    layers = list(dict.fromkeys(row[0] for row in table))
    labels = list(dict.fromkeys(label for label, _ in measured))
    most = max(table, key=lambda row: row[2])
    return [
        Figure(
            view.stem,
            "layers",
            view.title,
            f"{measured[-1][1].definition or view.axis}, by layer, in the order the layers run.",
            _chart(table, domain if set(labels) <= set(domain) else labels, labels, view),
            f"{len(layers)} layers in {len(labels)} variants; the most has {most[0]} of {most[1]}: {most[2]:,.4g}.",
            FigureTable(("layer", "variant", view.axis), tuple(table)),
        )
    ]


def _chart(table: list[Row], domain: list[str], labels: list[str], view: _View) -> alt.Chart:
    """A group of bars for every layer, one for every variant."""
    data = [dict(zip(("layer", "variant", "value"), row)) for row in table]
    layers = list(dict.fromkeys(row[0] for row in table))
    choose = legend_selection("variant", "variant")
    number = ",d" if view.form == "~s" else ",.4~g"
    return (
        alt.Chart(alt.Data(values=data))
        .mark_bar()
        .encode(
            x=alt.X("value:Q", axis=alt.Axis(format=view.form, title=view.axis, orient="top", tickCount=5)),
            y=alt.Y("layer:N", sort=layers, axis=alt.Axis(title=None), scale=alt.Scale(paddingInner=0.3)),
            yOffset=alt.YOffset("variant:N", sort=labels),
            color=colour("variant", domain, labels),
            opacity=alt.condition(choose, alt.value(1.0), alt.value(0.1)),
            tooltip=["layer:N", "variant:N", alt.Tooltip("value:Q", title=view.axis, format=number)],
        )
        .add_params(choose)
        .properties(width="container", height=alt.Step(7 if len(labels) > 2 else 9))
    )


def _is_norm(layer: str) -> bool:
    """Whether a tensor belongs to a normalisation, by its name, which is all that is known here."""
    return any(part.startswith(("bn", "norm", "batch_norm", "ln")) for part in layer.lower().split("."))
