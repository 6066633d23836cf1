"""What is cut as one piece? One file per granularity; the file name is the word used in recipes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units
from secateur.registry import Registry

__all__ = ["Base", "registry"]


class Base(ABC):
    """What every granularity is: a frozen value that cuts targets into units."""

    @abstractmethod
    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """The lists of competing pieces, in the model's order."""


registry = Registry(__name__, __path__, "granularity")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
