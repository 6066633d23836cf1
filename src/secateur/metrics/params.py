"""`params`: how many parameters a model has, and how many of them are not zero.

>>> from torch import nn
>>> model = nn.Linear(3, 2)
>>> model.weight.data[0, 0] = 0.0
>>> table = params(model)
>>> table["params"].value, table["nonzeros"].value
(8, 7)
>>> table["params"].per_layer
{'weight': 6, 'bias': 2}
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements

__all__ = ["params"]

MORE_ROWS = ("nonzeros",)

DEFINITION = "elements of all parameters, a shared one counted once; buffers not counted"
NONZEROS = "of these, the ones that are neither 0.0 nor removed by the masks"


@torch.no_grad()
def params(model: nn.Module, *, masks: Masks | None = None) -> Measurements:
    """Parameters and non-zeros, per tensor and in total.

    Args:
        model: The model.
        masks: Counted as if applied.
    """
    if masks is not None:
        masks.check(model)
    count, alive = {}, {}
    for name, parameter in model.named_parameters():
        count[name] = parameter.numel()
        alive[name] = kept_nonzeros(name, parameter, masks)
    buffers = sum(buffer.numel() for buffer in model.buffers())
    notes = (f"{buffers:,} elements of buffers beside them",) if buffers else ()
    return Measurements(
        [
            Measurement("params", sum(count.values()), definition=DEFINITION, per_layer=count, notes=notes),
            Measurement("nonzeros", sum(alive.values()), definition=NONZEROS, per_layer=alive),
        ]
    )


def kept_nonzeros(name: str, tensor: torch.Tensor, masks: Masks | None) -> int:
    """How many elements of a tensor are non-zero once the masks are applied. NaN is not zero.

    Args:
        name: The parameter's name in the masks.
        tensor: The parameter.
        masks: The masks; a parameter they do not name is counted as it is.

    >>> kept_nonzeros("w", torch.tensor([0.0, 1.0, 2.0]), Masks({"w": torch.tensor([True, True, False])}))
    1
    """
    if masks is None or name not in masks:
        return int(torch.count_nonzero(tensor))
    return int(((tensor != 0) & masks[name].to(tensor.device)).sum())
