"""Figures as SVG and PNG, tables as CSV; every file is written atomically.

>>> csv_text(["layer", "macs"], [["conv1", 4]])
'layer,macs\\nconv1,4\\n'
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secateur.core.atomic_files import atomic_write
from secateur.core.measurement import Measurements
from secateur.report.drawing import standalone
from secateur.report.figure import Figure
from secateur.report.forms import FORMS
from secateur.report.theme import THEMES, vega_config

__all__ = ["atomic_write", "csv_text", "figure_svg", "flat", "write_figures", "write_tables"]

_WIDTH = 760


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV: values as they are, not as a page rounds them; texts that are no formulas of a spreadsheet.

    Args:
        head: The names of the columns.
        rows: Their cells; None is an empty one.
    """
    lines = (",".join(map(_field, row)) for row in (head, *rows))
    return "".join(f"{line}\n" for line in lines)


def _field(cell: object) -> str:
    """A cell, quoted where it must be; Python's csv leaves a lone carriage return bare, which its reader refuses."""
    text = "" if cell is None else str(harmless(cell))
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n\r') else text


def harmless(cell: object) -> object:
    """A cell of a CSV file that no spreadsheet takes for a formula: such a text gets an apostrophe before it.

    Args:
        cell: The cell; numbers, also as text, stay as they are.

    Returns:
        The cell to write.

    >>> [harmless(cell) for cell in ("=1+2", "-0.5", "@SUM(A1)", "+conv1", -3, "a=b")]
    ["'=1+2", '-0.5', "'@SUM(A1)", "'+conv1", -3, 'a=b']
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def figure_svg(figure: Figure) -> str:
    """A figure as an SVG of its own, in the light theme, on white."""
    if figure.is_drawing:
        return standalone(figure.chart)
    import vl_convert

    config = {
        **vega_config("light"),
        "background": THEMES["light"]["page"],
        "padding": 12,
        "font": "DejaVu Sans, sans-serif",
    }
    svg: str = vl_convert.vegalite_to_svg(figure.spec(_WIDTH), config=config)
    return svg


def write_figures(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """NAME.svg and NAME.png of every figure."""
    import vl_convert

    written = []
    for figure in figures:
        svg = figure_svg(figure)
        written.append(atomic_write(folder / f"{figure.name}.svg", svg.encode("utf-8")))
        written.append(atomic_write(folder / f"{figure.name}.png", vl_convert.svg_to_png(svg, scale=2)))
    return written


def write_tables(
    tables: Mapping[str, tuple[Sequence[str], Iterable[Sequence[object]]]], folder: Path
) -> list[Path]:
    """NAME.csv of every table."""
    return [
        atomic_write(folder / f"{name}.csv", csv_text(head, rows).encode("utf-8"))
        for name, (head, rows) in tables.items()
    ]


def flat(measurements: Measurements) -> tuple[list[str], list[list[object]]]:
    """All Measurements as one table: a row for each, and one more for each layer; pictures' data left out.

    `trial` counts from 0, as the store does; `trial_number` from 1, as the page and the terminal do.
    """
    found = [item for item in measurements if item.name not in FORMS or item.per_layer]
    keys = list(
        dict.fromkeys(key for item in found for key in item.context if key not in ("parts", "text", "layers"))
    )
    named = [key for key in keys if key != "layer"]
    if "trial" in named and "trial_number" not in named:
        named.insert(named.index("trial") + 1, "trial_number")
    head = [
        "name",
        "layer",
        "value",
        "unit",
        *named,
        "low",
        "high",
        "definition",
    ]
    rows = []
    for item in found:
        trial = item.context.get("trial")
        number = {"trial_number": trial + 1} if isinstance(trial, int) else {}
        said = {**number, **item.context}
        context = [_plain(said.get(key, "")) for key in named]
        ends = [item.spread.get("low", ""), item.spread.get("high", "")]
        own = item.context.get("layer", "")
        rows.append([item.name, own, item.value, item.unit, *context, *ends, item.definition])
        rows += [
            [item.name, layer, value, item.unit, *context, "", "", item.definition]
            for layer, value in item.per_layer.items()
        ]
    return head, rows


def _plain(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else value
