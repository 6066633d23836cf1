"""Weight histograms of every layer, the variants side by side: a ridge for each layer, and all layers stacked in depth.

>>> from secateur.core.measurement import Measurement
>>> found = Measurements([Measurement("weight_histogram", 3, context={
...     "variant": variant, "layer": "fc", "low": -1.0, "high": 1.0, "counts": [1, 2]}) for variant in "ab"])
>>> [figure.name for figure in weight_histograms(found)]
['weight-histograms', 'weight-histograms-stacked']
"""

from __future__ import annotations

from secateur.core.measurement import Measurements
from secateur.report.charts._ridges import ridges
from secateur.report.figure import Figure

__all__ = ["weight_histograms"]


def weight_histograms(measurements: Measurements) -> list[Figure]:
    """Ridges and the stacked view."""
    return ridges(measurements, "weight_histogram", "weights", "weight")
