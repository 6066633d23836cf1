"""The interface of every kind of dataset: the request from `load`, the raw parts it returns, and classes from labels.

>>> classes_of(["cat", "dog", "cat"])
(('cat', 'dog'), tensor([0, 1, 0]))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.data._splits import Source
from secateur.errors import DataError

__all__ = ["Raw", "Request", "classes_of", "local_folder", "named_classes"]


MOST_CLASSES = 65_536
"""Labels below this are allowed, and those below the number of images."""


@dataclass(frozen=True)
class Request:
    """The arguments of `load`."""

    path: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    cache_dir: str | os.PathLike[str] | None = None


@dataclass(frozen=True, eq=False)
class Raw:
    """The parts that the dataset has; one that it lacks is None."""

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]
    own: tuple[int, ...] | None = None
    """(channels, height, width) that the images have in their files, of the first one; None where not known."""


def classes_of(values: Sequence[str]) -> tuple[tuple[str, ...], torch.Tensor]:
    """Class names in sorted order, and every value's number among them."""
    names = sorted(set(values))
    number = {name: index for index, name in enumerate(names)}
    return tuple(str(name) for name in names), torch.tensor([number[v] for v in values], dtype=torch.int64)


def named_classes(labels: Sequence[torch.Tensor], names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names for integer labels 0, 1, 2, …

    Args:
        labels: The labels of each split.
        names: The names of the classes; None: the numbers are the names.
        where: The dataset, for messages.

    Returns:
        A name per class.

    Raises:
        DataError: A label is negative, has no name, or is so large that most classes would have no image.
    """
    if not any(len(part) for part in labels):
        return tuple(names or ())
    lowest = min(int(part.min()) for part in labels if len(part))
    highest = max(int(part.max()) for part in labels if len(part))
    if lowest < 0 or (names is not None and highest >= len(names)):
        allowed = f"0..{len(names) - 1}" if names is not None else "0 and up"
        raise DataError(f"{where}: expected labels {allowed}, got {lowest}..{highest}; leave out those")
    most = max(MOST_CLASSES, sum(len(part) for part in labels))
    if names is None and highest >= most:
        raise DataError(
            f"{where}: expected labels 0, 1, 2, … below {most:,}, got {highest:,}; number the classes from 0 on"
        )
    return tuple(names) if names is not None else tuple(str(number) for number in range(highest + 1))


def local_folder(name: str, given: str | None) -> Path | None:
    """The folder of a well-known dataset: as given, else $SECATEUR_DATA/NAME, else ./data/NAME.

    >>> local_folder("digits", "/nowhere/at/all") is None
    True
    """
    if given is not None:
        return Path(given) if Path(given).exists() else None
    roots = [Path(os.environ["SECATEUR_DATA"])] if os.environ.get("SECATEUR_DATA") else []
    for root in [*roots, Path("data")]:
        if (root / name).is_dir():
            return root / name
    return None
