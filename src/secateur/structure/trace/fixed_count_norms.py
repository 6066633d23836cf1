"""Means and norms with a fixed count: they divide by the number of channels before the cut, not after.

A mean over channels of which some are masked divides by the number of all of them. Once the masked ones are removed,
the mean over the rest differs; divided by the old count it is the same. Layer norm, RMS norm and weight standardisation
are such means too. A layer norm with a fixed count cannot use torch's fused operator and is somewhat slower.

>>> x = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
>>> bool(torch.allclose(mean(torch.mean, (x[:, :2], -1), {}, 4, 2, -1), x.mean(-1)))
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from secateur.core.torch_calls import Arguments, Keywords

__all__ = [
    "COUNTED",
    "counting",
    "layer_norm",
    "mean",
    "named_alike",
    "rms_norm",
    "standardised",
    "uncounted",
]

_Function = Callable[..., torch.Tensor]

_UNCOUNTED: ContextVar[bool] = ContextVar("uncounted", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """Use torch's own functions in this block: a forward is recorded as it would be without fixed counts.

    >>> with uncounted():
    ...     counting()
    False
    """
    before = _UNCOUNTED.set(True)
    try:
        yield
    finally:
        _UNCOUNTED.reset(before)


def counting() -> bool:
    """True unless inside `uncounted()`.

    >>> counting()
    True
    """
    return not _UNCOUNTED.get()


def mean(
    func: _Function, args: Arguments, kwargs: Keywords, before: int, now: int, axis: int
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
    """Over the last axis, of which `before - now` positions were 0 and are removed."""
    middle = x.sum(-1, keepdim=True) / before
    apart = x - middle
    spread = (apart.square().sum(-1, keepdim=True) + (before - now) * middle.square()) / before
    return apart * torch.rsqrt(spread + eps)


def standardised(
    func: _Function, args: Arguments, kwargs: Keywords, before: int, now: int
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


def layer_norm(
    func: _Function, args: Arguments, kwargs: Keywords, before: int, now: int
) -> torch.Tensor | None:
    """A layer norm over a last axis that had `before` positions, of which `now` remain.

    >>> x, zeros = torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2)
    >>> whole = torch.nn.functional.layer_norm(torch.cat([x, zeros], 1), (4,))[:, :2]
    >>> bool(torch.allclose(layer_norm(torch.layer_norm, (x, (2,)), {}, 4, 2), whole))
    True
    """
    named = {**dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args)), **kwargs}
    x = named["input"]
    if tuple(named["normalized_shape"]) != (now,) or x.shape[-1] != now:
        return None
    wide = (x if x.dtype.itemsize > 2 else x.float()).contiguous()  # as torch's own
    found = _normed(wide, before, now, named.get("eps", 1e-5))
    found = found if named.get("weight") is None else found * named["weight"]
    found = found if named.get("bias") is None else found + named["bias"]
    return found.to(x.dtype)


def rms_norm(
    func: _Function, args: Arguments, kwargs: Keywords, before: int, now: int, axis: int = -1
) -> torch.Tensor | None:
    """A root-mean-square norm, likewise: torch's own, by a larger epsilon and a factor.

    >>> x, zeros = torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2)
    >>> whole = torch.rms_norm(torch.cat([x, zeros], 1), (4,), eps=0.5)[:, :2]
    >>> bool(torch.allclose(rms_norm(torch.rms_norm, (x, (2,)), {"eps": 0.5}, 4, 2), whole))
    True
    """
    named = {**dict(zip(("input", "normalized_shape", "weight", "eps"), args)), **kwargs}
    x = named["input"]
    if tuple(named["normalized_shape"]) != (now,) or x.shape[-1] != now:
        return None
    eps = named.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    named["eps"] = eps * before / now
    found: torch.Tensor = func(**named)
    return found * (before / now) ** 0.5


COUNTED: dict[str, Callable[..., torch.Tensor | None]] = {
    "mean": mean,
    "batch_norm": standardised,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
}
"""The function that makes a call with the old count, by the name of torch's own."""


def named_alike(function: str) -> tuple[str, ...]:
    """The calls an operator may have come from: torch takes a root-mean-square norm apart into a mean.

    >>> named_alike("mean"), named_alike("layer_norm")
    (('mean', 'rms_norm'), ('layer_norm',))
    """
    return ("mean", "rms_norm") if function == "mean" else (function,)
