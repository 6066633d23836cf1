"""`digits`: 1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn. No download.

>>> from secateur.data._kind import Request
>>> raw = Digits().read(Request(size=(16, 16)))
>>> raw.train.shape, len(raw.train.labels), len(raw.test.labels)
((1, 16, 16), 1437, 360)
"""

from __future__ import annotations

import torch

from secateur.data._decode import convert
from secateur.data._kind import Raw, Request
from secateur.data._splits import ImageMemory

__all__ = ["Digits"]


class Digits:
    """The embedded digits; every fifth image, in the order they come, is a test image."""

    def read(self, request: Request) -> Raw:
        """The two parts, enlarged and channel-repeated as asked."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # Pixels count 0..16 there.
        pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        images = convert(pixels, request.size, request.channels)
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        held_out = torch.arange(len(labels)) % 5 == 0
        return Raw(
            train=ImageMemory(images[~held_out], labels[~held_out]),
            validation=None,
            test=ImageMemory(images[held_out], labels[held_out]),
            classes=tuple(str(digit) for digit in range(10)),
            own=tuple(pixels.shape[1:]),
        )
