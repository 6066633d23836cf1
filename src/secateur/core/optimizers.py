"""`like`: an optimizer of the same class as another, for other parameters.

>>> from torch import nn
>>> given = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
>>> other = like(given, [nn.Parameter(torch.ones(2))], given.defaults)
>>> type(other).__name__, other.defaults["lr"]
('SGD', 0.5)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["like"]


def like(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Any], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of the same class.

    Args:
        optimizer: The optimizer whose class is taken.
        parameters: Parameters, or groups of them.
        options: Its options; those that the constructor does not take are left out, as optimizers keep some more.

    Returns:
        A new optimizer without state.
    """
    kind: Any = type(optimizer)
    known = inspect.signature(kind).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    return kind(
        parameters,
        **{k: value for k, value in options.items() if (takes_all or k in known) and k != "params"},
    )
