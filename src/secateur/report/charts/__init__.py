"""One chart a file: a function of that name, from Measurements to Figures; nothing when there is nothing to draw.

>>> "pareto" in names()
True
>>> from secateur.core.measurement import Measurements
>>> draw(Measurements())
[]
"""

from __future__ import annotations

import importlib

from secateur.core.measurement import Measurements
from secateur.errors import UnknownNameError, near
from secateur.registry import Registry
from secateur.report.figure import Figure

__all__ = ["SECTIONS", "chart", "draw", "names"]

_REGISTRY = Registry(__name__, __path__, "chart")

SECTIONS = {
    "tradeoff": "Accuracy against cost",
    "trials": "Every trial",
    "sensitivity": "Sensitivity of each layer",
    "network": "The network",
    "layers": "Layer by layer",
    "speed": "Latency",
    "file": "Bytes of the file",
    "weights": "Weights",
    "activations": "Activations",
    "training": "Training",
    "machine": "The machine while it ran",
}
"""The sections of the page that hold figures, in order."""


def names() -> list[str]:
    """The names of all charts."""
    return _REGISTRY.names()


def chart(name: str, measurements: Measurements) -> list[Figure]:
    """The figures of one chart."""
    if name not in names():
        raise UnknownNameError(f"unknown chart {name!r}: {near(name, names())}")
    function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    figures: list[Figure] = function(measurements)
    return figures


def draw(measurements: Measurements) -> list[Figure]:
    """All figures these Measurements allow, in the order of the page's sections."""
    figures = [figure for name in names() for figure in chart(name, measurements)]
    order = list(SECTIONS)
    return sorted(figures, key=lambda figure: order.index(figure.section))
