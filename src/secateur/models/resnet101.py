"""`resnet101`: the residual network of depth 101 (He et al. 2015) in torchvision's layout and under its
names.

>>> sum(parameter.numel() for parameter in Resnet101().parameters())
42520650
"""

from __future__ import annotations

from secateur.models._resnet import Bottleneck, ResNet

__all__ = ["Resnet101"]


class Resnet101(ResNet):
    """42,520,650 parameters with 10 classes; weights of torchvision's resnet101 (1000 classes) load into it
    as they are.

    `image_size` is the size that images are scaled to, 32 by default; the layers do not depend on it.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, image_size)
