"""Counted: a mean over channels, or over the inputs of a weight, that still counts what left, as the zeros it was.

A mean over channels of which some are masked divides by how many there were. Where these leave, the mean over what is
left is another one; with the old count in it, it is the same.

>>> x = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
>>> bool(torch.allclose(mean(torch.mean, (x[:, :2], -1), {}, 4, 2, -1), x.mean(-1)))
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["COUNTED", "mean", "standardised"]


def mean(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], before: int, now: int, axis: int
) -> torch.Tensor | None:
    """A mean over an axis (counted from the last, -1) that had `before` positions and has `now`; None over others."""
    x = args[0] if args else kwargs["input"]
    axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
    axes = range(x.dim()) if axes is None else [axes] if isinstance(axes, int) else axes
    if x.dim() < -axis or x.shape[axis] != now or x.dim() + axis not in [each % x.dim() for each in axes]:
        return None
    found: torch.Tensor = func(*args, **kwargs)
    return found * (now / before)


def _normed(x: torch.Tensor, before: int, now: int, eps: float) -> torch.Tensor:
    """Over the last axis, of which `before - now` positions were 0 and left."""
    middle = x.sum(-1, keepdim=True) / before
    apart = x - middle
    spread = (apart.square().sum(-1, keepdim=True) + (before - now) * middle.square()) / before
    return apart * torch.rsqrt(spread + eps)


def standardised(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], before: int, now: int
) -> torch.Tensor | None:
    """`F.batch_norm` of weights laid out as (1, out, in x taps), with no statistics of its own."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    named = {**dict(zip(names, args)), **kwargs}
    x = named["input"]
    if x.shape[-1] != now or x.shape[0] != 1 or named.get("running_mean") is not None:
        return None
    found = _normed(x, before, now, named.get("eps", 1e-5))
    found = found if named.get("weight") is None else found * named["weight"][:, None]
    return found if named.get("bias") is None else found + named["bias"][:, None]


COUNTED: dict[str, Callable[..., torch.Tensor | None]] = {
    "mean": mean,
    "batch_norm": standardised,
}
"""By the function whose calls are made with the old count."""
