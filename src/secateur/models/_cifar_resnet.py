"""He et al.'s residual networks for 32x32 images: shared by `resnet20` and `resnet56`.

Where the width changes, the shortcut takes every second pixel and pads the channels with zeros, half on each side,
so it has no parameters.

>>> sum(parameter.numel() for parameter in CifarResNet(blocks=3).parameters())
269722
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["CifarBlock", "CifarResNet"]


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them.

    >>> CifarBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.pad = (width - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.pad:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of `blocks` blocks (16, 32, 64 channels), average pool,
    `linear`.

    Depth is 6 * blocks + 2. Convolutions and `linear` start from He's normal (fan in), `linear`'s bias from
    torch's own.

    >>> CifarResNet(blocks=1)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.input_shape = (in_channels, 32, 32)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(before, width, stride)
        return nn.Sequential(first, *(CifarBlock(width, width) for _ in range(blocks - 1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))
