"""Where a file's bytes go: by part, and by tensor and part.

>>> from secateur.core.measurement import Measurement
>>> parts = {"conv1.weight": {"indices": 70, "codebooks": 10}, "fc.weight": {"indices": 20}}
>>> item = Measurement("tensor_bytes_in_file", 100, "bytes", per_layer={"conv1.weight": 80, "fc.weight": 20},
...                    context={"variant": "file", "parts": parts})
>>> file_bytes(Measurements([item]))[0].table.rows[0]
('conv1.weight', 'indices', 70)
"""

from __future__ import annotations

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.figure import Figure, FigureTable
from secateur.report.legends import legend_selection

__all__ = ["file_bytes"]

_MOST = 40


Row = tuple[str, str, int]
"""A tensor, a part of how it is stored, and its bytes."""


def file_bytes(measurements: Measurements) -> list[Figure]:
    """One figure for every file whose bytes were recorded, the last of every run."""
    found = {}
    for item in measurements:
        if item.name == "tensor_bytes_in_file" and "published" not in item.context:
            found[str(item.context.get("run", ""))] = item
    several = len(found) > 1
    return [
        _figure(item, f"-{index}" if several else "", f": {run}" if several else "")
        for index, (run, item) in enumerate(found.items(), 1)
    ]


def _figure(item: Measurement, suffix: str, of: str) -> Figure:
    """The figure of one file; `suffix` tells its name from the others', `of` its title."""
    parts: dict[str, dict[str, int]] = dict(
        item.context.get("parts") or {k: {"all": int(v)} for k, v in item.per_layer.items()}
    )
    order, rows = _rows(parts)
    totals: dict[str, int] = {}
    for _, part, size in rows:
        totals[part] = totals.get(part, 0) + size
    domain = sorted(totals, key=lambda part: -totals[part])
    whole = sum(totals.values())
    largest = ", ".join(f"{part} {totals[part] / whole:.1%}" for part in domain[:4])
    return Figure(
        f"file-bytes{suffix}",
        "file",
        f"Where the file's bytes go{of}",
        f"{item.definition or 'bytes of the file by tensor and part'}. Together {whole:,} bytes: {largest}.",
        _chart(rows, order, domain),
        f"{len(parts)} tensors; the largest part is {domain[0]} with {totals[domain[0]]:,} of {whole:,} bytes.",
        FigureTable(("tensor", "part", "bytes"), tuple(rows)),
    )


def _rows(parts: dict[str, dict[str, int]]) -> tuple[list[str], list[Row]]:
    """The largest tensors in order and their rows; those beyond `_MOST` are added up as one."""
    order = sorted(parts, key=lambda name: -sum(parts[name].values()))
    kept, rest = order[:_MOST], order[_MOST:]
    rows = [(name, part, size) for name in kept for part, size in parts[name].items() if size]
    if rest:
        together: dict[str, int] = {}
        for name in rest:
            for part, size in parts[name].items():
                together[part] = together.get(part, 0) + size
        kept = [*kept, f"{len(rest)} more tensors"]
        rows += [(kept[-1], part, size) for part, size in together.items() if size]
    return kept, rows


def _chart(rows: list[Row], order: list[str], domain: list[str]) -> alt.Chart:
    """A bar for every tensor, a colour for every part."""
    data = [dict(zip(("tensor", "part", "bytes"), row)) for row in rows]
    choose = legend_selection("part", "part")
    return (
        alt.Chart(alt.Data(values=data))
        .mark_bar()
        .encode(
            x=alt.X("sum(bytes):Q", axis=alt.Axis(format="~s", title="bytes", orient="top", tickCount=6)),
            y=alt.Y("tensor:N", sort=order, axis=alt.Axis(title=None)),
            color=alt.Color("part:N", scale=alt.Scale(domain=domain)),
            order=alt.Order("sum(bytes):Q", sort="descending"),
            opacity=alt.condition(choose, alt.value(1.0), alt.value(0.1)),
            tooltip=["tensor:N", "part:N", alt.Tooltip("bytes:Q", format=",d")],
        )
        .add_params(choose)
        .properties(width="container", height=alt.Step(15))
    )
