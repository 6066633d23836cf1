"""What a dataset kind gives to `load`: the request it gets, the raw parts it returns, and how labels become
classes.

>>> classes_of(["cat", "dog", "cat"])
(('cat', 'dog'), tensor([0, 1, 0]))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.data._splits import Source
from secateur.errors import DataError

__all__ = ["Raw", "Request", "classes_of", "local_folder", "named_classes"]


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    path: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    cache_dir: str | os.PathLike[str] | None = None


@dataclass(frozen=True, eq=False)
class Raw:
    """The parts as the dataset has them; what is missing is None."""

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]


def classes_of(values: Sequence[Any]) -> tuple[tuple[str, ...], torch.Tensor]:
    """Class names in sorted order, and every value's number among them."""
    names = sorted(set(values))
    number = {name: index for index, name in enumerate(names)}
    return tuple(str(name) for name in names), torch.tensor([number[v] for v in values], dtype=torch.int64)


def named_classes(labels: Sequence[torch.Tensor], names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names for integer labels, which must be 0, 1, 2, …; the numbers themselves where no names are
    given."""
    lowest = min(int(part.min()) for part in labels if len(part))
    highest = max(int(part.max()) for part in labels if len(part))
    if lowest < 0 or (names is not None and highest >= len(names)):
        allowed = f"0..{len(names) - 1}" if names is not None else "0 and up"
        raise DataError(f"{where}: expected labels {allowed}, got {lowest}..{highest}; leave out those")
    return tuple(names) if names is not None else tuple(str(number) for number in range(highest + 1))


def local_folder(name: str, given: str | None) -> Path | None:
    """Where a well-known dataset lies: as given, else in $SECATEUR_DATA/NAME, else in ./data/NAME.

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
