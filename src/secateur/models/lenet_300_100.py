"""`lenet-300-100`: LeCun's fully connected network, a standard benchmark of the pruning literature.

>>> sum(parameter.numel() for parameter in Lenet300100().parameters())
266610
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Lenet300100"]


class Lenet300100(nn.Module):
    """784 → 300 → 100 → 10, ReLU between. 266,610 parameters. torch's own initialisation.

    >>> Lenet300100()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.fc1 = nn.Linear(in_channels * 28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = torch.relu(self.fc1(images.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))
