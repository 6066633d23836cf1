"""`cifar10`: 50,000 + 10,000 colour photographs of 32x32 pixels in ten classes, from a local folder of
Parquet.

>>> Cifar10().hub
'uoft-cs/cifar10'
"""

from __future__ import annotations

from secateur.data._known import KnownFolder

__all__ = ["Cifar10"]


class Cifar10(KnownFolder):
    """CIFAR-10 in ./data/cifar10, $SECATEUR_DATA/cifar10 or the path given."""

    def __init__(self) -> None:
        super().__init__("cifar10", "uoft-cs/cifar10", "140 MB")
