"""The forms of Measurement that charts draw: under which name, and with what in its context.

Every Measurement may say in its context which `run`, `trial`, `variant` (dense, pruned, file ...) and `seed` it
belongs to; any other key is a setting of the trial (`criterion`, `sparsity`, `prune.budget` ...).

    name                  value                          more
    accuracy, loss        the quality of a variant
    macs, macs_nonzero    multiply-accumulates           per_layer
    sparsity              share of weights removed       per_layer
    params, nonzeros      numbers of parameters          per_layer: by tensor
    size, file_bytes      bytes on disk
    latency               milliseconds, median           trials: the readings; spread: low, high
    speedup               time of dense / of this        trials: the ratio of each interleaved pair
    epoch_*               one epoch's loss or accuracy   context: epoch
    scan_value            quality, one layer pruned      context: layer, sparsity; layer "" is the dense model
    weight_histogram      weights that are not zero      context: layer, low, high, counts; zeros
    activation_histogram  activations that are not zero  the same
    filter_sums           filters that are all zero      context: layer, sums (of |w|, one per filter)
    widths                units of all layers            per_layer: output channels or features of each
    architecture          layers with weights            context: text (print(model)), layers (see below)
    usage                 mean of a quantity             context: what, seconds and values (samples over time)
    tensor_bytes_in_file  bytes of a file                per_layer: by tensor; context: parts {tensor: {part: n}}

`layers` of an architecture is a list of {"name", "kind", "width", "inputs", "parameters", "group"}; `group` names the
coupled group its outputs belong to, "" where they are free or locked.

A published figure is a Measurement like ours with `published` (its source) in the context; the same name, variant and
settings pair it with ours. `inconsistent` in the context says why a published figure cannot be right.

>>> sorted(FORMS)[:2]
['activation_histogram', 'architecture']
>>> is_plain(Measurement("accuracy", 0.5)), is_plain(Measurement("epoch_loss", 0.5, context={"epoch": 1}))
(True, False)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from secateur.core.measurement import Measurement, Measurements

__all__ = ["FORMS", "is_plain", "scan_measurements"]

FORMS = frozenset(
    {
        "scan_value",
        "weight_histogram",
        "activation_histogram",
        "filter_sums",
        "widths",
        "architecture",
        "tensor_bytes_in_file",
        "usage",
    }
)
"""Names that have their own chart and are left out of tables of results."""


def is_plain(item: Measurement) -> bool:
    """Whether it is a result: not the data of a chart, not one epoch or layer, not a published figure."""
    return item.name not in FORMS and not {"epoch", "layer", "published"} & set(item.context)


class ScanTable(Protocol):
    """A scan: `secateur.sensitivity.scan_result.Scan`, which stands above this room."""

    @property
    def dense(self) -> float:
        """The value of the dense model."""

    @property
    def cells(self) -> Iterable[Any]:
        """The values of the pruned ones: `name`, `sparsity`, `value`."""


def scan_measurements(scanned: ScanTable, metric: str = "accuracy") -> Measurements:
    """A scan (`sc.scan`) in the form its chart draws.

    >>> from types import SimpleNamespace as Cell
    >>> scanned = Cell(dense=0.9, cells=[Cell(name="conv1.weight", sparsity=0.5, value=0.8, interval=0.02)])
    >>> [(m.context["layer"], m.context["sparsity"], m.value) for m in scan_measurements(scanned)]
    [('', 0.0, 0.9), ('conv1.weight', 0.5, 0.8)]
    """
    text = f"{metric} with this layer alone pruned to this sparsity, not retrained"

    def one(layer: str, sparsity: float, value: float, interval: float | None) -> Measurement:
        spread = {} if interval is None else {"low": value - interval, "high": value + interval}
        context = {"layer": layer, "sparsity": sparsity, "metric": metric}
        return Measurement("scan_value", value, "", text, context=context, spread=spread)

    rows = [
        one(cell.name, cell.sparsity, cell.value, getattr(cell, "interval", None)) for cell in scanned.cells
    ]
    return Measurements([one("", 0.0, scanned.dense, getattr(scanned, "dense_interval", None)), *rows])
