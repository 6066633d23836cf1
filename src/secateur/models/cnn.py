"""`cnn`: the simple convolutional network of the one-shot study, on 28x28 images.

>>> sum(parameter.numel() for parameter in Cnn().parameters())
300426
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Cnn"]


class Cnn(nn.Module):
    """Two 3x3 convolutions (16, 32), max-pool, dropout, 4608 → 64 → 10. 300,426 parameters. torch's own
    initialisation.

    >>> Cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.conv1 = nn.Conv2d(in_channels, 16, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(32 * 12 * 12, 64)
        self.relu3 = nn.ReLU()
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = self.relu1(self.conv1(images))
        x = self.dropout1(self.pool(self.relu2(self.conv2(x))))
        x = self.dropout2(self.relu3(self.fc1(x.flatten(1))))
        return self.fc2(x)
