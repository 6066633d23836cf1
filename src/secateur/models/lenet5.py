"""`lenet5`: Caffe's LeNet-5, with ReLU after the first Linear layer only.

>>> sum(parameter.numel() for parameter in Lenet5().parameters())
431080
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Lenet5"]


class Lenet5(nn.Module):
    """conv 20 5x5, max-pool, conv 50 5x5, max-pool, 800 → 500 → 10. 431,080 parameters.

    Weights are initialised as in Caffe's example: Xavier's uniform, here with bound sqrt(3 / inputs); biases 0.

    >>> Lenet5()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))
