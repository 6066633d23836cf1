"""`check_connected`: does a mask leave a network that can still learn? Asked before any training is spent."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.core.masks import Masks
from secateur.errors import CollapseError

__all__ = ["check_connected"]


def check_connected(model: nn.Module, masks: Masks, example: Any = None) -> None:
    """Raise a `CollapseError` for a mask that leaves a layer with nothing."""
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    if empty:
        raise CollapseError(f"nothing is left of {', '.join(empty)}")
