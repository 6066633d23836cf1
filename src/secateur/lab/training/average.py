"""The running average of the weights during training, often better than the last weights.

>>> model = torch.nn.Linear(1, 1, bias=False); _ = model.weight.data.fill_(0.0)
>>> average = WeightAverage(model, decay=0.9)
>>> for value in (1.0, 2.0):
...     _ = model.weight.data.fill_(value); average.take(model)
>>> with average.shown(model):  # (1 + n) / (10 + n) of the old average stays, until that exceeds the decay
...     round(model.weight.item(), 4), round(2.0 * 9 / 12 + 1.0 * 9 / 11 * 3 / 12, 4)
(1.7045, 1.7045)
>>> model.weight.item()
2.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from secateur.core.json_text import is_count

__all__ = ["WeightAverage"]


class WeightAverage:
    """Running averages of a model's parameters and buffers.

    Each step weighs `1 - decay`; the first ones weigh more, so that the initial weights are soon forgotten. Integer
    tensors are not averaged.

    Args:
        model: The averages start from its weights.
        decay: The share of the old average that remains after a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.restart(model)

    def restart(self, model: nn.Module) -> None:
        """Start again from the weights as they are now."""
        self.count = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in _floating(model)}

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Update the averages with the weights after an optimizer step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, tensor in _floating(model):
            self.tensors[name].lerp_(tensor, 1 - decay)

    def put(self, model: nn.Module) -> None:
        """Copy the averages into the model."""
        for name, tensor in _floating(model):
            tensor.data.copy_(self.tensors[name])

    @contextmanager
    def shown(self, model: nn.Module) -> Iterator[None]:
        """Put the averages into the model, and afterwards restore the weights it had."""
        before = {name: tensor.detach().clone() for name, tensor in _floating(model)}
        self.put(model)
        try:
            yield
        finally:
            for name, tensor in _floating(model):
                tensor.data.copy_(before[name])

    def load(self, tensors: Mapping[str, torch.Tensor], count: int) -> None:
        """Continue from stored averages."""
        if not is_count(count) or any(
            tensors[name].shape != held.shape for name, held in self.tensors.items()
        ):
            raise ValueError("its averages are not those of this model's weights")
        self.count = count
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def _floating(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor
