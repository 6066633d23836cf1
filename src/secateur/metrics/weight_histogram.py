"""`weight_histogram`: how the weights of every layer are distributed; zeros are counted separately.

>>> import torch
>>> from torch import nn
>>> model = nn.Linear(5, 1, bias=False)
>>> model.weight.data = torch.tensor([[-1.0, 0.0, 0.25, 0.5, 1.0]])
>>> row = weight_histogram(model, bins=4)[0]
>>> row.value, row.context["counts"], row.context["zeros"], row.context["low"], row.context["high"]
(4, [1, 0, 1, 2], 1, -1.0, 1.0)
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select
from secateur.errors import OptionError

__all__ = ["histogram", "weight_histogram"]

BY_DEFAULT = False

_LEVELS = 64


def histogram(values: torch.Tensor, bins: int = 40) -> dict[str, object]:
    """Count the values that are not zero in bins of one width around zero; NaN and infinities are left out.

    A bin holds its lower end and not its upper, except the last, which holds both.

    Args:
        values: The numbers.
        bins: How many bins.

    Returns:
        `low` and `high` of the range, `counts` by bin, and the number of `zeros`. Where at most 64 distinct values
        occur, each at least twice on average, as after weight sharing, `levels` has every value with its count.

    >>> histogram(torch.tensor([0.0, 1.0, 2.0, 3.0]), bins=2)
    {'low': 0.0, 'high': 3.0, 'counts': [1, 2], 'zeros': 1}
    >>> histogram(torch.tensor([1.0, 1.0, 3.0, 1.0]), bins=2)["levels"]
    [[1.0, 3], [3.0, 1]]
    """
    if bins < 1:
        raise OptionError(f"a histogram needs at least 1 bin, got {bins}")
    flat = values.detach().to(device="cpu", dtype=torch.float64).reshape(-1)
    flat = flat[torch.isfinite(flat)]
    alive = flat[flat != 0]
    if alive.numel() == 0:
        return {"low": -1.0, "high": 1.0, "counts": [0] * bins, "zeros": flat.numel()}
    low, high = float(alive.min()), float(alive.max())
    # Zero is an end of the range or its middle, so that a gap around it, as pruning leaves, is visible.
    bound = max(abs(low), abs(high))
    low, high = (0.0, bound) if low > 0 else (-bound, 0.0) if high < 0 else (-bound, bound)
    counts = torch.histogram(alive, bins=bins, range=(low, high)).hist
    found: dict[str, object] = {
        "low": low,
        "high": high,
        "counts": [int(count) for count in counts],
        "zeros": int(flat.numel() - alive.numel()),
    }
    if torch.unique(alive[:4096]).numel() > _LEVELS:  # avoids sorting a whole large layer in vain
        return found
    values, several = torch.unique(alive, return_counts=True)
    if values.numel() <= _LEVELS and 2 * values.numel() <= alive.numel():
        found["levels"] = [[value, int(count)] for value, count in zip(values.tolist(), several)]
    return found


def weight_histogram(model: nn.Module, *, bins: int = 40) -> Measurements:
    """One row for every prunable weight.

    Args:
        model: The model.
        bins: How many bins of one width.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    text = "weights of the layer that are not zero, counted in bins of one width"
    rows = []
    for target in select(model):
        found = histogram(parameters[target.name], bins)
        total = parameters[target.name].numel() - int(found["zeros"])  # type: ignore[call-overload]
        rows.append(Measurement("weight_histogram", total, "", text, context={"layer": target.name, **found}))
    return Measurements(rows)
