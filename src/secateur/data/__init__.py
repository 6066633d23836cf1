"""Datasets to train and to measure on: images that are embedded, local, or from the hub, and data of your own.

`load` takes `digits` (embedded: no download), `mnist`, `cifar10`, a folder of images, any Hugging Face dataset by
name or by local path, or a function of your own (`package.module:function`: tables, tokens, anything). It returns a
`Data`: train, validation and test, each a `Split` that yields batches. Splits are deterministic; where the dataset has
no validation split, part of the training images is held out.

The files in reading order: `_splits` (`Data`, `Split`, augmentation), `_kind` (what a kind of dataset returns),
`_decode` (images to tensors), `_own` (what a user's function returned), then one file per kind: `digits`, `mnist`,
`cifar10`, `folder`, `yolo`, `parquet`, `hub`.

>>> data = load("digits", size=16, channels=3, limit=200)
>>> data.shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
((3, 16, 16), 10, 180, 20, 200)
>>> images, labels = next(iter(data.train.batches(64, shuffle=True, seed=1)))
>>> images.dtype, tuple(images.shape), tuple(labels.shape)
(torch.float32, (64, 3, 16, 16), (64,))
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.missing_files import missing
from secateur.data._decode import convert, pair
from secateur.data._kind import Raw, Request
from secateur.data._own import (
    answer_of,
    check_labels,
    only_for_images,
    parts_of,
    runs_code,
    with_source,
)
from secateur.data._splits import Augment, Data, ImageMemory, Source, Split, Subset, TensorMemory
from secateur.errors import DataError, OptionError, UnknownNameError, near
from secateur.registry import Registry

__all__ = [
    "Augment", "Data", "ImageMemory", "Raw", "Request", "Split", "convert", "load", "load_for", "registry",
    "runs_code",
]  # fmt: skip

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
    options: Mapping[str, object] | None = None,
) -> Data:
    """A dataset by name or path, as a `Data` with train, validation and test.

    Args:
        name_or_path: digits, mnist, cifar10, yolo, a folder, a Parquet file, OWNER/NAME of the hub, or a function of
            your own, `package.module:function`.
        size: Resize to this; one number is a square. None keeps the sizes.
        channels: 1 or 3. None keeps the channels.
        limit: Keep at most this number of images of the training part (before validation is held out) and of the
            test part, drawn with `seed`.
        validation: The share of the training images that is held out, drawn with `seed`, where the dataset has no
            validation split. Where it has no test split, its validation split is the test part, else a fifth of the
            training images.
        seed: Draws the parts.
        cache_dir: Where decoded images are kept; else $SECATEUR_CACHE, else the user's cache.
        path: The folder of a dataset given by name; else $SECATEUR_DATA/NAME, else ./data/NAME.
        normalise: `data` (mean and deviation of the training images), `imagenet`, `none` (pixels in 0..1), or (means,
            deviations).
        options: What a function of your own is called with.

    Returns:
        The dataset.

    Raises:
        OptionError: A value out of range.
        UnknownNameError: There is no dataset of that name.
        DataError: It is not on this machine, or cannot be read.

    >>> load("digits", limit=100, normalise="none").train.normalise(torch.full((1, 1, 1, 1), 255)).item()
    1.0
    >>> load("digitz")
    Traceback (most recent call last):
    secateur.errors.UnknownNameError: unknown dataset 'digitz': did you mean 'digits'? ...
    """
    _check_options(channels, limit, validation)
    if runs_code(name := os.fspath(name_or_path)):
        only_for_images(name, {"size": size, "channels": channels, "path": path})
        answer = answer_of(name, options or {}, seed)
        if isinstance(answer, Data):
            only_for_images(name, {"limit": limit})  # it is parted already
            return with_source(answer, name)
        return _finished(name, parts_of(answer, name), limit, validation, seed, normalise)
    if options:
        raise OptionError(f"data {name!r} takes no options; they are for a function, package.module:function")
    word, where = _kind_of(name_or_path, path)
    raw = registry.get(word)().read(Request(where, pair(size), channels, cache_dir))
    return _finished(name, raw, limit, validation, seed, normalise)


def _check_options(channels: int | None, limit: int | None, validation: float) -> None:
    if not 0 <= validation < 1:
        raise OptionError(f"validation: expected a share 0 <= share < 1, got {validation}")
    if channels not in (None, 1, 3):
        raise OptionError(f"channels: expected 1, 3 or None (as they are), got {channels}")
    if limit is not None and limit < 2:
        raise OptionError(f"limit: expected at least 2 images, got {limit}")


def _finished(
    name: str,
    raw: Raw,
    limit: int | None,
    validation: float,
    seed: int,
    normalise: str | tuple[tuple[float, ...], tuple[float, ...]],
) -> Data:
    """The dataset of the parts that were read: validation held out, normalised, with its fingerprint."""
    train, held, test = _parts(raw, limit, validation, seed)
    mean, std = _normalisation(train, normalise)
    content = hashlib.sha256(repr((mean, std, raw.classes)).encode())
    for part in (train, held, test):
        content.update(part.digest().encode())
    return Data(
        name=name,
        train=Split(train, mean, std),
        validation=Split(held, mean, std),
        test=Split(test, mean, std),
        classes=raw.classes,
        shape=train.shape,
        mean=mean,
        std=std,
        fingerprint=content.hexdigest(),
        own=raw.own,
    )


def load_for(model: nn.Module, name_or_path: str | os.PathLike[str], **options: Any) -> Data:
    """`load` with the size, channels and normalisation that the model asks for, if they are not given.

    Args:
        model: Its attributes `input_shape` and `input_normalise` say what it asks for.
        name_or_path: As in `load`.
        options: Further arguments of `load`.

    Returns:
        The dataset.

    >>> from secateur import models
    >>> load_for(models.build("vae"), "digits", limit=100)
    Data('digits', 90 + 10 + 100 images of 1x28x28, 10 classes)
    """
    from secateur import models

    if runs_code(os.fspath(name_or_path)):
        own = load(name_or_path, **({"normalise": models.normalisation(model)} | options))
        check_labels(own, model)
        return own
    shape = models.input_shape(model)
    if shape is not None:
        options = {"size": shape[1:], "channels": shape[0]} | options
    return load(name_or_path, **({"normalise": models.normalisation(model)} | options))


def _kind_of(
    name_or_path: str | os.PathLike[str], path: str | os.PathLike[str] | None
) -> tuple[str, str | None]:
    """The kind of dataset that a name means, and its place."""
    name = os.fspath(name_or_path)
    given = None if path is None else os.fspath(path)
    word = registry.aliases.get(name.lower(), name.lower())
    if word in registry.names():
        if word in ("folder", "hub", "parquet") and given is None:
            raise OptionError(f"dataset {name!r} is a kind of dataset: give the place too, with path=")
        return word, given
    local = Path(name)
    if ":" in name and name.startswith(".") and not local.exists():
        raise UnknownNameError(
            f"data {name!r}: expected package.module:function for data of your own; did you mean "
            f"{name.removeprefix('./').replace('.py:', ':').replace('/', '.')}?"
        )
    if local.is_file() and local.suffix == ".parquet":
        return "parquet", name
    if local.is_dir():
        if any(local.glob("*.parquet")) or any(local.glob("*/*.parquet")):
            return "parquet", name
        described = any((local / file).exists() for file in ("dataset_dict.json", "state.json"))
        pictures = any(child.is_dir() for child in local.iterdir())
        return ("hub" if described or not pictures else "folder"), name
    if name.startswith((".", "/", "~")):
        raise DataError(
            f"dataset {missing(name, 'folder')}; expected Parquet in Hugging Face's layout, or a folder of "
            "images per class; or take 'digits', which is embedded and needs no download"
        ).as_usage()
    if "/" not in name:
        raise UnknownNameError(
            f"unknown dataset {name!r}: {near(name, registry.names())} (a dataset of Hugging Face's hub is written "
            "OWNER/NAME, a local one as a path, data of your own package.module:function)"
        )
    return "hub", name


def _parts(raw: Raw, limit: int | None, share: float, seed: int) -> tuple[Source, Source, Source]:
    """Train, validation and test, with missing parts held out of the training images."""
    train, held, test = raw.train, raw.validation, raw.test
    if test is None:
        test, held = held, None
    if test is None:
        # The test images must not depend on the seed, or runs with different seeds could not be compared.
        train, test = _hold_out(train, 0.2, seed=0)
    if limit is not None:
        train, test = _draw(train, limit, seed), _draw(test, limit, seed)
        held = None if held is None else _draw(held, limit, seed)
    if held is None:
        train, held = _hold_out(train, share, seed)
    return train, held, test


def _permutation(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """The larger part and the part held out, each in the source's own order."""
    count = round(len(source.labels) * share)
    order = _permutation(len(source.labels), seed)
    return _subset(source, order[count:].sort().values), _subset(source, order[:count].sort().values)


def _draw(source: Source, limit: int, seed: int) -> Source:
    """At most `limit` images, in the source's own order."""
    if len(source.labels) <= limit:
        return source
    return _subset(source, _permutation(len(source.labels), seed)[:limit].sort().values)


def _subset(source: Source, index: torch.Tensor) -> Source:
    """Some images of a source; copied where they are in memory, so that the others can be freed."""
    if isinstance(source, ImageMemory):
        return ImageMemory(source.images[index], source.labels[index])
    if isinstance(source, TensorMemory):
        return TensorMemory(source.inputs[index], source.labels[index])
    return Subset(source, index)


def _normalisation(
    train: Source, how: str | tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel, of pixels in 0..1; none of inputs that are no images."""
    if isinstance(train, TensorMemory):
        if how not in ("data", "none"):
            raise OptionError(f"normalise: expected images, got inputs of shape {train.shape}; leave it out")
        return (), ()
    channels = train.shape[0]
    if how == "none":
        return (0.0,) * channels, (1.0,) * channels
    if how == "data":
        return _moments(train)
    if how == "imagenet":
        how = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if isinstance(how, str):
        raise OptionError(f"normalise: expected data, imagenet, none or (means, deviations), got {how!r}")
    mean, std = (tuple(float(value) for value in part) for part in how)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise OptionError(
            f"normalise: expected {channels} means and {channels} deviations above 0, one for each channel, "
            f"got {how}"
        )
    return mean, std


def _moments(train: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, summed in integers and so exact in any order; of a streamed source, over 2,048 images."""
    total = len(train.labels)
    streamed = not isinstance(train, ImageMemory)
    index = torch.linspace(0, total - 1, min(total, 2048)).long() if streamed else torch.arange(total)
    sums = torch.zeros(train.shape[0], dtype=torch.int64)
    squares = torch.zeros_like(sums)
    for part in index.split(1024):
        pixels = train.fetch(part, torch.device("cpu")).to(torch.int32)
        sums += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square_().sum(dim=(0, 2, 3))
    count = len(index) * train.shape[1] * train.shape[2]
    mean = [value / count / 255 for value in sums.tolist()]
    spread = [max(square / count / 255**2 - m * m, 0.0) ** 0.5 for square, m in zip(squares.tolist(), mean)]
    # Six digits, so that the last bit of a square root cannot change a fingerprint; a channel of one value
    # stays as it is.
    return tuple(round(m, 6) for m in mean), tuple(round(s, 6) or 1.0 for s in spread)
