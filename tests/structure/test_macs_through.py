"""What leaves with a group, counted from its own operators alone, is the difference of the whole counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from secateur import models
from secateur.structure.groups.couplings import analyse


class Attention(nn.Module):
    """A block whose attention is one operator of three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x plus its attention."""
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


def test_it_is_the_difference_of_the_whole_counts() -> None:
    attention = nn.Sequential(nn.Linear(8, 16), Attention(), nn.Linear(16, 4)).eval(), torch.randn(2, 5, 8)
    resnet = models.build("resnet20").eval(), torch.randn(1, 3, 32, 32)
    for model, example in (attention, resnet):
        structure = analyse(model, example)
        assert structure.groups
        for group in structure.groups:
            alone = structure.alive({group.index: np.zeros(group.count, bool)})
            assert structure.macs_through(group.index) == structure.macs() - structure.macs(alone) > 0
