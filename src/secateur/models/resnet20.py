"""`resnet20`: the residual network of depth 20 for 32x32 images (He et al. 2015), with parameter-free
shortcuts.

>>> sum(parameter.numel() for parameter in Resnet20().parameters())
269722
"""

from __future__ import annotations

from secateur.models._cifar_resnet import CifarResNet

__all__ = ["Resnet20"]


class Resnet20(CifarResNet):
    """Three stages of 3 blocks. 269,722 parameters. Keys: conv1, bn1, layerS.B.{conv1,bn1,conv2,bn2}, linear.

    >>> import torch
    >>> Resnet20(in_channels=1)(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(3, num_classes, in_channels)
