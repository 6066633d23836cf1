"""`fc`: six Linear layers, width 100, on 28x28 images; the small network of the pruning-at-initialisation
study.

>>> sum(parameter.numel() for parameter in Fc().parameters())
119910
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Fc"]


class Fc(nn.Module):
    """784 → 100 → 100 → 100 → 100 → 100 → 10, ReLU between. 119,910 parameters. torch's own initialisation of
    Linear.

    >>> Fc(num_classes=3)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 3])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 100) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.fc1 = nn.Linear(in_channels * 28 * 28, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, width)
        self.fc4 = nn.Linear(width, width)
        self.fc5 = nn.Linear(width, width)
        self.fc6 = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = images.flatten(1)
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4, self.fc5):
            x = torch.relu(layer(x))
        return self.fc6(x)
