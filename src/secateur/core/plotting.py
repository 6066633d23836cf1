"""`plot`: the chart of a value, drawn by the room `report`.

Values such as `Measurements` stand below that room and must not depend on it, so it is looked up by name when a chart
is asked for: without a call of `.plot()`, no drawing library is imported.

>>> import sys
>>> "altair" in sys.modules and "secateur.report" not in sys.modules
False
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt

__all__ = ["plot"]


def plot(kind: str, value: object) -> alt.TopLevelMixin:
    """Draw a value.

    Args:
        kind: The name of a function of `secateur.report.notebook`.
        value: What it draws.

    Returns:
        A chart of Altair, which a notebook shows.
    """
    chart: alt.TopLevelMixin = getattr(importlib.import_module("secateur.report.notebook"), kind)(value)
    return chart
