"""`vgg12`: twelve 3x3 convolutions with batch norm in four blocks, of the sensitivity study, on 32x32 images.

>>> sum(parameter.numel() for parameter in Vgg12().parameters())
8391882
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Vgg12"]


class Vgg12(nn.Module):
    """Blocks of three convolutions (64, 128, 256, 512), max-pool after each; 2048 → 256 → 128 → 64 → 10.

    8,391,882 parameters; `width` is that of the first block.
    Convolutions are `features.conv0` … `features.conv11`. Convolutions start from He's
    normal (fan out), their biases from 0; Linear layers from torch's own initialisation.

    >>> Vgg12()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        self.features = nn.Sequential()
        before, index = in_channels, 0
        for block in range(4):
            channels = width * 2**block
            for _ in range(3):
                conv = nn.Conv2d(before, channels, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
                self.features.add_module(f"conv{index}", conv)
                self.features.add_module(f"bn{index}", nn.BatchNorm2d(channels))
                self.features.add_module(f"relu{index}", nn.ReLU(inplace=True))
                before, index = channels, index + 1
            self.features.add_module(f"pool{block}", nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Linear(before * 2 * 2, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        return self.classifier(self.features(images).flatten(1))
