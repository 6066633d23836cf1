"""`Context`: what a criterion, a granularity or a budget may need beside the model; made once by the verb.

>>> Context().example is None
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Context", "Loss"]

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Context:
    """The data, the loss, an example input, and the seed of this call.

    `data` yields batches, `(inputs, targets)` or anything `forward` below understands; it must be iterable more than
    once where a criterion makes several passes. `loss(outputs, targets)` returns a scalar, a mean over the batch.
    `example` is what the model is called with (a tensor, a tuple of arguments, or a dict of keywords).
    """

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    example: Any = None
    seed: int = 0
