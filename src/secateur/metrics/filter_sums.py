"""`filter_sums`: the sum of |w| of every filter, which shows whether whole filters were removed.

>>> import torch
>>> from torch import nn
>>> model = nn.Conv2d(1, 3, 1, bias=False)
>>> model.weight.data = torch.tensor([-2.0, 0.0, 0.5]).reshape(3, 1, 1, 1)
>>> row = filter_sums(model)[0]
>>> row.value, row.context["sums"]
(1, [2.0, 0.0, 0.5])
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select

__all__ = ["filter_sums"]

BY_DEFAULT = False

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def filter_sums(model: nn.Module) -> Measurements:
    """One row for every prunable weight; its value is the number of filters that are all zero.

    Args:
        model: The model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    text = "sum of |w| of every filter (an output channel or feature); the value is how many filters are all zero"
    rows = []
    for target in select(model):
        weight = parameters[target.name].detach().cpu().double().abs()
        owner = modules.get(target.name.rpartition(".")[0])
        if isinstance(owner, _TRANSPOSED):  # these store their outputs along the second axis, group by group
            groups = owner.groups
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        sums = weight.reshape(weight.shape[0], -1).sum(1)
        values = [float(f"{value:.6g}") for value in sums.tolist()]
        gone = sum(value == 0 for value in sums.tolist())
        rows.append(
            Measurement("filter_sums", gone, "", text, context={"layer": target.name, "sums": values})
        )
    return Measurements(rows)
