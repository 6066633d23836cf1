"""What charts share in how they are drawn: colours, legends, dashes and axes that count.

>>> whole_ticks(1, 3)
[1, 2, 3]
"""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt

__all__ = ["colour", "dashes", "fitting_legend", "legend_selection", "whole_ticks"]


def colour(field_name: str, known: list[str], used: Iterable[str], legend: bool = True) -> alt.Color:
    """The colour of a variant: the same in every chart, because all variants are in the scale; the legend has those
    used."""
    own = list(dict.fromkeys(used))
    domain = [*known, *(name for name in own if name not in known)]
    shown = fitting_legend(own) if legend else None
    return alt.Color(field_name, type="nominal", scale=alt.Scale(domain=domain), legend=shown)


_LEGEND_PIXELS, _LETTER, _SYMBOL = 840, 7, 32


def fitting_legend(labels: Iterable[str]) -> alt.Legend:
    """A legend of as many columns as fit a page, so that it is never wider than its chart.

    >>> fitting_legend(["l1", "l2"]).columns, fitting_legend(["unstructured · magnitude · retrained"] * 9).columns
    (2, 2)
    """
    own = list(labels)
    widest = min(260, _LETTER * max((len(label) for label in own), default=1)) + _SYMBOL
    return alt.Legend(title=None, values=own, columns=max(1, min(len(own), _LEGEND_PIXELS // widest)))


def dashes(domain: list[str]) -> alt.StrokeDash:
    """A different dash for each series, so that lines on top of each other are both seen.

    Args:
        domain: The series, in the order of their colours.
    """
    forms = [[1, 0], [7, 4], [2, 3], [10, 3, 2, 3], [14, 5], [5, 2, 1, 2]]
    scale = alt.Scale(domain=domain, range=[forms[index % len(forms)] for index in range(len(domain))])
    return alt.StrokeDash("series:N", scale=scale, legend=None)


def whole_ticks(first: int, last: int, most: int = 12) -> list[int]:
    """Whole numbers for an axis that counts. Vega's own repeat a number where counts are few.

    Args:
        first: The smallest count.
        last: The largest.
        most: At most so many ticks.

    >>> whole_ticks(1, 3), whole_ticks(1, 30), whole_ticks(0, 100)
    ([1, 2, 3], [5, 10, 15, 20, 25, 30], [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    """
    sizes = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(size for size in sizes if (last - first) // size < most)
    return list(range(-(-first // step) * step, last + 1, step))


def legend_selection(name: str, field_name: str) -> alt.Parameter:
    """A selection: clicking an entry of the legend (shift for several) highlights it."""
    return alt.selection_point(name=name, fields=[field_name], bind="legend")
