"""Reports: Measurements in; one self-contained page, figures (SVG, PNG) and tables (CSV) out.

>>> from secateur.core.measurement import Measurement, Measurements
>>> from secateur.report import Report, Run
>>> found = Measurements([
...     Measurement("accuracy", 0.99, context={"variant": "dense"}),
...     Measurement("accuracy", 0.98, context={"variant": "file"})])
>>> page = Report([Run("demo", found)])
>>> page.headline
'accuracy 99.00 % → 98.00 % (−1.00 points)'

What a chart draws, and under which name a number must be measured for it, is listed in `secateur.report.forms`.
A chart is a file in `charts/`; nothing else has to be edited to add one.

In reading order: `reading` (Measurements sorted for charts), `variants` (their means over seeds), `repeats` (runs that
differ by the seed alone), `forms` (what every chart draws), `figure`, `legends` (colours, legends, axes) and `theme`,
`drawing` (a network), `tables`, `trials`, `published` and `printout` (tables and texts), `summary` (the first screen),
`run` and `page` (the report), `files`, `notebook` and `sinks/` (where it goes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.report.figure import Figure as Figure
    from secateur.report.figure import FigureTable as FigureTable
    from secateur.report.page import Report as Report
    from secateur.report.run import Run as Run

__all__ = ["Figure", "FigureTable", "Report", "Run"]

_HOMES = {"Figure": "figure", "FigureTable": "figure", "Report": "page", "Run": "run"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
