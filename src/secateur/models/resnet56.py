"""`resnet56`: the residual network of depth 56 for 32x32 images (He et al. 2015), with parameter-free
shortcuts.

>>> sum(parameter.numel() for parameter in Resnet56().parameters())
853018
"""

from __future__ import annotations

from secateur.models._cifar_resnet import CifarResNet

__all__ = ["Resnet56"]


class Resnet56(CifarResNet):
    """Three stages of 9 blocks. 853,018 parameters. Keys: conv1, bn1, layerS.B.{conv1,bn1,conv2,bn2}, linear.

    >>> import torch
    >>> Resnet56(in_channels=1)(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(9, num_classes, in_channels)
