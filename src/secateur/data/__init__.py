"""Images to train and to measure on: embedded, local or from the hub, as uint8 tensors that cost nothing to feed.

`load` takes `digits` (embedded: no download), `mnist`, `cifar10`, a folder of images, or any Hugging Face dataset by name or
by local path. The splits are deterministic; a validation split is held out of the training images where there is none.

>>> data = load("digits", size=16, channels=3, limit=200)
>>> data.shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
((3, 16, 16), 10, 180, 20, 200)
>>> images, labels = next(iter(data.train.batches(64, shuffle=True, seed=1)))
>>> images.dtype, tuple(images.shape), tuple(labels.shape)
(torch.float32, (64, 3, 16, 16), (64,))
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from secateur.data._splits import Augment, Data, Split
from secateur.registry import Registry

__all__ = ["Augment", "Data", "Split", "load", "load_for", "registry"]

registry = Registry(__name__, __path__, "dataset", aliases={"cifar": "cifar10", "cifar-10": "cifar10"})


def load(
    name_or_path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    normalise: str | tuple[tuple[float, ...], tuple[float, ...]] = "data",
) -> Data:
    """A dataset by name or path, as a `Data` with train, validation and test.

    `size` resizes (one number: square) and `channels` (1 or 3) converts; None keeps what the dataset has. `limit` keeps at
    most so many images of the training part (before validation is held out of it) and of the test part. `validation` is the share of the training images
    held out where the dataset has no validation split of its own; `seed` draws it. `path` is where `mnist` and
    `cifar10` lie; without it $SECATEUR_DATA/NAME and ./data/NAME are looked into. `normalise` is `data` (mean and deviation
    of the training images), `imagenet`, `none` (pixels in 0..1), or (means, deviations).
    """
    raise NotImplementedError


def load_for(model: nn.Module, name_or_path: str | os.PathLike[str], **options: Any) -> Data:
    """`load`, with size, channels and normalisation taken from what the model says it wants, where not given."""
    raise NotImplementedError
