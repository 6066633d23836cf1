"""`plot`: the chart of a value, drawn by the functions that `draw_with` was told of.

Values such as `Measurements` know that they can be drawn, not by what: the room that draws stands above them. The
package `secateur` puts both together when it is imported, with a function that imports the charts at the first call,
so without a call of `.plot()` no drawing library is imported.

>>> import sys
>>> "altair" in sys.modules and "secateur.report" not in sys.modules
False
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt

__all__ = ["draw_with", "plot"]

_find: list[Callable[[str], Callable[[object], alt.TopLevelMixin]]] = []


def draw_with(find: Callable[[str], Callable[[object], alt.TopLevelMixin]]) -> None:
    """Set what charts are drawn with.

    Args:
        find: Gives the function that draws values of a kind; called when a chart is asked for.
    """
    _find[:] = [find]


def plot(kind: str, value: object) -> alt.TopLevelMixin:
    """Draw a value.

    Args:
        kind: What the value is: "measurements", "shared", "attempts".
        value: What is drawn.

    Returns:
        A chart of Altair, which a notebook shows.
    """
    return _find[0](kind)(value)
