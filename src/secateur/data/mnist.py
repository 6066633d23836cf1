"""`mnist`: 60,000 + 10,000 handwritten digits of 28x28 grey pixels, from a local folder of Parquet.

>>> Mnist().hub
'ylecun/mnist'
"""

from __future__ import annotations

from secateur.data._known import KnownFolder

__all__ = ["Mnist"]


class Mnist(KnownFolder):
    """MNIST in ./data/mnist, $SECATEUR_DATA/mnist or the path given."""

    def __init__(self) -> None:
        super().__init__("mnist", "ylecun/mnist", "20 MB")
