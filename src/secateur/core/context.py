"""`Context`: the input of criteria, granularities and budgets besides the model; a verb makes one per call.

>>> Context().example is None
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
        training: What it is called with in training: True for the example, False where it is never trained, or another
            example.
        seed: The seed of every random choice.
        memory: What was found out about a model in this call and is asked for again, such as its structure. The value
            ends with the call, in which no model changes its structure.
    """

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    example: object = None
    training: object = True
    seed: int = 0
    memory: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)
