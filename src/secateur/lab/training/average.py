"""The running average of the weights of a training: it often does better than where the weights end.

>>> model = torch.nn.Linear(1, 1, bias=False); _ = model.weight.data.fill_(0.0)
>>> average = WeightAverage(model, decay=0.9)
>>> for value in (1.0, 2.0):
...     _ = model.weight.data.fill_(value); average.take(model)
>>> with average.shown(model):  # 2/11 and 3/12 of the old average stay, until that is more than the decay
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

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averages of a model's parameters and buffers, each step weighing `1 - decay`; the first ones more, so that
    the start is soon forgotten. Counters and other whole numbers are as they are in the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.restart(model)

    def restart(self, model: nn.Module) -> None:
        """From the weights as they are now."""
        self.count = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in _floating(model)}

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """The weights after a step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, tensor in _floating(model):
            self.tensors[name].lerp_(tensor, 1 - decay)

    def put(self, model: nn.Module) -> None:
        """Make the averages the model's weights."""
        for name, tensor in _floating(model):
            tensor.data.copy_(self.tensors[name])

    @contextmanager
    def shown(self, model: nn.Module) -> Iterator[None]:
        """The averages in the model, and afterwards what was in it before."""
        before = {name: tensor.detach().clone() for name, tensor in _floating(model)}
        self.put(model)
        try:
            yield
        finally:
            for name, tensor in _floating(model):
                tensor.data.copy_(before[name])

    def load(self, tensors: Mapping[str, torch.Tensor], count: int) -> None:
        """Go on from averages that were kept."""
        self.count = count
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def _floating(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor
