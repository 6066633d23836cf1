"""secateur: prune, retrain, share, code and measure any PyTorch model, with the proof beside it.

The public names are imported when first used, so `import secateur` costs no torch.

>>> import secateur as sc
>>> sc.budget.Overall(0.9).sparsity
0.9
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.container.archive import load as load
    from secateur.container.archive import save as save
    from secateur.container.save_options import SaveOptions as SaveOptions
    from secateur.core.codebook import Codebook as Codebook
    from secateur.core.masks import Masks as Masks
    from secateur.core.measurement import Measurement as Measurement
    from secateur.core.measurement import Measurements as Measurements
    from secateur.core.schedule import Exponential as Exponential
    from secateur.core.schedule import Gradual as Gradual
    from secateur.core.schedule import Iterative as Iterative
    from secateur.core.schedule import OneShot as OneShot
    from secateur.core.scores import Scores as Scores

__version__ = "0.1.0"

# public name -> module that holds it
_NAMES = {
    "prune": "secateur.pruning.prune",
    "OneShot": "secateur.core.schedule",
    "Iterative": "secateur.core.schedule",
    "Gradual": "secateur.core.schedule",
    "Exponential": "secateur.core.schedule",
    "check_connected": "secateur.pruning.connectivity",
    "compensate": "secateur.compensation.compensate",
    "LeastSquares": "secateur.compensation.solver",
    "Tuning": "secateur.compensation.tuning",
    "hold": "secateur.pruning.hold",
    "shrink": "secateur.structure.shrink",
    "explain": "secateur.structure.shrink",
    "scan": "secateur.sensitivity.scan",
    "export": "secateur.adapters.export",
    "auto": "secateur.search.auto",
    "smallest": "secateur.search.smallest",
    "zero_dead_neurons": "secateur.pruning.dead_neurons",
    "share": "secateur.quantize.share",
    "save": "secateur.container.archive",
    "load": "secateur.container.archive",
    "SaveOptions": "secateur.container.save_options",
    "measure": "secateur.metrics",
    "Masks": "secateur.core.masks",
    "Scores": "secateur.core.scores",
    "Codebook": "secateur.core.codebook",
    "Measurement": "secateur.core.measurement",
    "Measurements": "secateur.core.measurement",
}
_PACKAGES = ("criteria", "granularity", "budget", "quantize", "models", "data", "errors")

__all__ = sorted([*_NAMES, *_PACKAGES])


# name of an earlier version -> what it is called now
_DEPRECATED = {"tidy": "zero_dead_neurons"}


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        now = _DEPRECATED[name]
        message = f"secateur.{name} is called secateur.{now} now; the old name will be removed in 1.0"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = now
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"secateur.{name}")
    raise AttributeError(f"module 'secateur' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
