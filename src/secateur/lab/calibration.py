"""`CalibrationImages`: the first training images in batches, without labels, with new augmentation each time they are
read.

>>> import torch
>>> from secateur import data
>>> images = CalibrationImages(data.load("digits").train, count=100, batch_size=40)
>>> [len(batch) for batch in images]
[40, 40, 20]
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from secateur.data import Split
from secateur.lab.steps.train import Augmentation, augmentation

__all__ = ["CalibrationImages"]


class CalibrationImages:
    """Batches of images alone, in an order and with an augmentation of their own in each pass.

    Args:
        split: where the images come from.
        count: how many of its first images.
        batch_size: images in one batch.
        augment: as in training.
        seed: of order and augmentation.
        device: where the batches are put.
    """

    def __init__(
        self,
        split: Split,
        count: int,
        batch_size: int = 100,
        *,
        augment: Augmentation = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        self._split = split.leading(count)
        self._batch_size = batch_size
        self._augment = augmentation(augment)
        self._seed = seed
        self._device = device
        self._passes = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        epoch, self._passes = self._passes, self._passes + 1
        found = self._split.batches(
            self._batch_size,
            shuffle=True,
            seed=self._seed,
            epoch=epoch,
            augment=self._augment,
            device=self._device,
        )
        for images, _ in found:
            yield images
