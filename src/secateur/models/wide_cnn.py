"""`wide_cnn`: six wide convolutions on whitened patches; learns small images in about twelve epochs.

A teacher for distillation rather than a model to compress. Most of its work is in a few wide layers on small feature
maps, which processors run fast, and about twelve epochs from random weights are enough on CIFAR-10 (`docs/headline.md`
has its accuracy).

>>> sum(parameter.numel() for parameter in WideCnn().parameters())
1972792
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.errors import OptionError

__all__ = ["WideCnn"]


class _Block(nn.Module):
    """Two 3x3 convolutions with a max-pool between them, initialised to the identity."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(outputs, momentum=0.4)
        self.act1 = nn.GELU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=0.4)
        self.act2 = nn.GELU()
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight[: conv.weight.shape[1]])
        for norm in (self.bn1, self.bn2):
            norm.weight.requires_grad_(False)  # the next convolution scales, too; one of them is enough

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.pool(self.conv1(x))))
        out: torch.Tensor = self.act2(self.bn2(self.conv2(x)))
        return out


class WideCnn(nn.Module):
    """A 2x2 convolution that `whiten` fits to images and training does not change, three blocks, max-pool, linear.

    >>> model = WideCnn(num_classes=7, widths=(24, 32, 32))
    >>> model.whiten(torch.randn(20, 3, 32, 32))
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.white.weight.requires_grad
    (torch.Size([2, 7]), False)
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, widths: tuple[int, int, int] = (64, 256, 256)
    ) -> None:
        super().__init__()
        patches = 2 * 4 * in_channels
        if len(widths) != 3 or widths[0] < patches or list(widths) != sorted(widths):
            raise OptionError(
                f"widths of wide_cnn: expected three that do not fall, from {patches} on (twice the numbers in a "
                f"2x2 patch), got {tuple(widths)}"
            )
        self.input_shape = (in_channels, 32, 32)
        self.white = nn.Conv2d(in_channels, patches, 2)
        self.white.weight.requires_grad_(False)
        self.act = nn.GELU()
        self.block1 = _Block(patches, widths[0])
        self.block2 = _Block(widths[0], widths[1])
        self.block3 = _Block(widths[1], widths[2])
        self.pool = nn.MaxPool2d(3)
        self.linear = nn.Linear(widths[2], num_classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Fit the first convolution to images: their 2x2 patches, uncorrelated and of equal spread, each sign apart."""
        channels = self.white.in_channels
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5)
        patches = patches.reshape(-1, 4 * channels).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        white = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(-1, channels, 2, 2)
        self.white.weight.copy_(torch.cat([white, -white]))
        assert self.white.bias is not None
        self.white.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images: the last output divided by nine, so that the first gradients are small."""
        x = self.act(self.white(images))
        x = self.pool(self.block3(self.block2(self.block1(x))))
        logits: torch.Tensor = self.linear(x.flatten(1)) / 9
        return logits
