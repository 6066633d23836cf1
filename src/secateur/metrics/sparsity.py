"""`sparsity`: the share of weights removed, per tensor and in total.

>>> import torch
>>> from torch import nn
>>> model = nn.Linear(2, 2)
>>> model.weight.data = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
>>> print(sparsity(model))
sparsity  0.25  share of zeros among the weights of convolution, linear and embedding layers (4 weights)
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select
from secateur.errors import NothingToDoError
from secateur.metrics.params import kept_nonzeros

__all__ = ["sparsity"]


@torch.no_grad()
def sparsity(model: nn.Module, *, masks: Masks | None = None) -> Measurements:
    """The share removed: of the masked tensors if masks are given, else the zeros among prunable weights.

    Args:
        model: The model.
        masks: Counted as if applied.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if masks is not None:
        masks.check(model)
        names = list(masks)
        gone = {
            name: parameters[name].numel() - kept_nonzeros(name, parameters[name], masks) for name in names
        }
        meaning = "share of weights removed or zero among the masked tensors"
    else:
        meaning = "share of zeros among the weights of convolution, linear and embedding layers"
        try:
            names = [target.name for target in select(model)]
        except NothingToDoError:
            names, meaning = (
                list(parameters),
                "share of zeros among all parameters, as none is prunable by default",
            )
        gone = {name: int((parameters[name] == 0).sum()) for name in names}
    total = sum(parameters[name].numel() for name in names)
    return Measurements(
        [
            Measurement(
                "sparsity",
                sum(gone.values()) / total if total else 0.0,
                definition=f"{meaning} ({total:,} weights)",
                per_layer={
                    n: gone[n] / parameters[n].numel() if parameters[n].numel() else 0.0 for n in names
                },
            )
        ]
    )
