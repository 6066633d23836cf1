"""`vgg16-lottery`: VGG-16 as the lottery-ticket papers adapt it to 32x32 images; no batch norm, one Linear
layer.

>>> sum(parameter.numel() for parameter in Vgg16Lottery().parameters())
14719818
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Vgg16Lottery"]

_PLAN: tuple[int | None, ...] = (
    *(64, 64, None, 128, 128, None, 256, 256, 256, None),
    *(512, 512, 512, None, 512, 512, 512),
)


class Vgg16Lottery(nn.Module):
    """Thirteen 3x3 convolutions with bias, max-pool between blocks, average pool, Linear 512 → 10.

    14,719,818 parameters, 313,478,154 multiply-accumulates and bias additions on one 32x32 image. Weights
    start from He's normal (fan in for convolutions), biases from 0: without batch norm torch's own
    initialisation does not train.

    >>> Vgg16Lottery()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        self.features = nn.Sequential()
        before = in_channels
        for width in _PLAN:
            if width is None:
                self.features.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(before, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.features.append(conv)
            self.features.append(nn.ReLU(inplace=True))
            before = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="linear")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        return self.fc(self.pool(self.features(images)).flatten(1))
