"""`unseen`: the layers that data never reaches, which criteria such as `obs` cannot score.

An embedding table is read by rows and is no layer with inputs; a head that only training uses is not called at all.

>>> model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
>>> unseen(model, [torch.tensor([0, 1])])
['0.weight']
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from secateur.compensation.batches import read_all
from secateur.compensation.fitting import Setting, layers_called
from secateur.core.targets import Pattern, select
from secateur.execution.undisturbed import undisturbed

__all__ = ["unseen"]


def unseen(model: nn.Module, data: Iterable[object], skip: Sequence[Pattern] = ()) -> list[str]:
    """The weights of layers that are never called as a linear layer or a convolution on this data.

    Args:
        model: The model.
        data: Batches of inputs.
        skip: Patterns of layers that are left out anyway.
    """
    targets = select(model, skip=list(skip) or None)
    with undisturbed(model, mode="eval"), torch.no_grad():
        batches = read_all("unseen", data, model)
        called = layers_called(Setting(model, model, batches, {}, frozenset(), torch.device("cpu")))
    return [target.name for target in targets if target.name not in called]
