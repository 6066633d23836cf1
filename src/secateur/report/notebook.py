"""Charts for notebooks: what `.plot()` of `Measurements`, `Shared` and search results returns.

>>> from secateur.core.measurement import Measurement
>>> measurements(Measurements([Measurement("accuracy", 0.9)]))
Traceback (most recent call last):
secateur.errors.NothingToDoError: no chart shows accuracy alone; ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import altair as alt
from torch import nn

from secateur.core.measurement import Measurements
from secateur.errors import NothingToDoError
from secateur.metrics.weight_histogram import weight_histogram
from secateur.report.charts import draw

__all__ = ["attempts", "measurements", "shared"]


def measurements(rows: Measurements) -> alt.TopLevelMixin:
    """The report's charts that these measurements allow, one below the other.

    Args:
        rows: The measurements.

    Raises:
        NothingToDoError: No chart shows what was measured.
    """
    charts = [figure.chart.properties(title=figure.title) for figure in draw(rows) if not figure.is_drawing]
    if not charts:
        names = ", ".join(rows.names()) or "nothing"
        raise NothingToDoError(
            f"no chart shows {names} alone; compare variants (sc.compare, or accuracy and params of several), or "
            "measure by layer (macs, weight_histogram)"
        )
    return charts[0] if len(charts) == 1 else alt.vconcat(*charts).resolve_scale(color="independent")


class SharedModel(Protocol):
    """The result of `share`, as far as a chart needs it."""

    @property
    def model(self) -> nn.Module:
        """The model whose weights are shared."""


def shared(value: SharedModel) -> alt.TopLevelMixin:
    """The values that the weights of each layer take, and how many weights take each.

    Args:
        value: The result of `share`.
    """
    return measurements(Measurements(weight_histogram(value.model)))


class AttemptLike(Protocol):
    """An attempt of a search."""

    @property
    def accuracy(self) -> float | None:
        """On the validation images; None where it failed."""

    @property
    def holds(self) -> bool:
        """Whether the accuracy is within the limit."""

    @property
    def why(self) -> str:
        """What was tried."""


class SearchLike(Protocol):
    """The result of a search."""

    @property
    def dense(self) -> float:
        """The dense model's accuracy."""

    @property
    def limit(self) -> float:
        """The least accuracy that holds."""

    @property
    def attempts(self) -> Sequence[AttemptLike]:
        """Every attempt, in order."""


def attempts(found: SearchLike) -> alt.TopLevelMixin:
    """The accuracy of every attempt, in order, with the dense model's and the limit as lines.

    Args:
        found: The result of `auto` or `smallest`.
    """
    points = [
        {"attempt": number, "accuracy": one.accuracy, "holds": one.holds, "what": one.why}
        for number, one in enumerate(found.attempts, 1)
        if one.accuracy is not None
    ]
    lines = [{"accuracy": found.dense, "line": "dense"}]
    if math.isfinite(found.limit):
        lines.append({"accuracy": found.limit, "line": "limit"})
    scale = alt.Scale(zero=False)
    marks = (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, size=60)
        .encode(
            x=alt.X("attempt:O", title="attempt"),
            y=alt.Y("accuracy:Q", title="accuracy on the validation images", scale=scale),
            color=alt.Color("holds:N", title="holds"),
            tooltip=[alt.Tooltip("what:N"), alt.Tooltip("accuracy:Q", format=".4f")],
        )
    )
    rules = (
        alt.Chart(alt.Data(values=lines))
        .mark_rule()
        .encode(y=alt.Y("accuracy:Q", scale=scale), strokeDash=alt.StrokeDash("line:N", title="line"))
    )
    drawn: alt.TopLevelMixin = alt.layer(rules, marks)
    return drawn
