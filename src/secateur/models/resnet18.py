"""`resnet18`: the residual network of depth 18 (He et al. 2015) in torchvision's layout and under its names.

>>> sum(parameter.numel() for parameter in Resnet18().parameters())
11181642
"""

from __future__ import annotations

from secateur.models._resnet import Basic, ResNet

__all__ = ["Resnet18"]


class Resnet18(ResNet):
    """11,181,642 parameters with 10 classes; weights of torchvision's resnet18 (1000 classes) load into it as
    they are.

    `image_size` is the size that images are scaled to, 32 by default; the layers do not depend on it.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__(Basic, (2, 2, 2, 2), num_classes, in_channels, image_size)
