"""Activation histograms of every layer, the variants side by side; zeros are left out.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([Measurement("activation_histogram", 3, context={
...     "variant": "dense", "layer": "fc", "low": 0.0, "high": 1.0, "counts": [1, 2]})])
>>> [figure.name for figure in activation_histograms(found)]
['activation-histograms']
"""

from __future__ import annotations

from secateur.core.measurement import Measurements
from secateur.report.charts._ridges import ridges
from secateur.report.figure import Figure

__all__ = ["activation_histograms"]


def activation_histograms(measurements: Measurements) -> list[Figure]:
    """Ridges only: they compare each layer's variants, which depth does not help."""
    return ridges(measurements, "activation_histogram", "activations", "activation")[:1]
