"""`Context`: the input of criteria, granularities and budgets besides the model; a verb makes one per call.

>>> Context().example is None
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Context", "Loss"]

Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Context:
    """The data, the loss, an example input, and the seed of this call.

    Attributes:
        data: Batches of `(inputs, targets)`; iterable more than once where a criterion makes several passes.
        loss: `loss(outputs, targets)` returns a scalar, the mean over the batch.
        example: What the model is called with: a tensor, a tuple of arguments, or a dict of keywords.
        seed: The seed of every random choice.
    """

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    example: object = None
    seed: int = 0
