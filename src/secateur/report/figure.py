"""`Figure`: a chart with its title, the definition of what it shows, a text alternative and its numbers.

>>> figure = Figure("pareto-size", "trade-off", "Accuracy against bytes", "share right", "<svg/>", "A curve.")
>>> figure.is_drawing
True
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Figure", "FigureTable", "Spec"]

Spec = dict[str, Any]
"""A Vega-Lite specification, as JSON."""


@dataclass(frozen=True)
class FigureTable:
    """Rows under a head; cells are numbers or texts. `units` says, per column, how a number is written."""

    head: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class Figure:
    """The result of one chart: `chart` is an Altair chart, or the text of an SVG that was drawn by hand.

    `name` is the stem of its files; `each` the width of one small chart where there are several beside each
    other, 0 for a chart as wide as the page; `table` the numbers it was drawn from; `narrow` a drawing's other form,
    as wide as a phone, for the first screen.
    """

    name: str
    section: str
    title: str
    definition: str
    chart: Any
    alt: str
    table: FigureTable = field(default_factory=FigureTable)
    each: int = 0
    narrow: str = ""

    @property
    def is_drawing(self) -> bool:
        """Whether the chart is an SVG already."""
        return isinstance(self.chart, str)

    @functools.cached_property
    def _plain(self) -> Spec:
        spec: dict[str, Any] = self.chart.to_dict()
        spec.pop("config", None)  # the page has one for each theme
        return spec

    def spec(self, width: int | None = None) -> Spec:
        """The chart as Vega-Lite; `width` in pixels for a file, None for as wide as the page gives it."""
        spec = copy.deepcopy(self._plain)
        if self.each:
            spec["columns"] = max(1, (width or 900) // (self.each + 70))
        elif width is not None:
            spec["width"] = width
        return spec
