"""Who competes with whom, and how many go? One file per budget; the file name is the word used in recipes."""

from __future__ import annotations

from abc import ABC
from typing import Any

from secateur.registry import Registry

__all__ = ["Base", "registry"]


class Base(ABC):  # noqa: B024 - the methods are the budget part's to define
    """What every budget is: a frozen value that turns the worth of units into which of them stay."""


registry = Registry(__name__, __path__, "budget", number="per_tensor")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
