"""How far outputs may be apart where rounding is the only difference."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["FLOAT32", "rounding_allowed"]

FLOAT32 = 1e-4
"""Of the largest output, in float32: what different orders of summing and other kernels come to in deep networks."""
_HALF = (torch.float16, torch.bfloat16)
_STEPS = 8
"""In half precision: this many steps of the number format."""


def rounding_allowed(kinds: Iterable[torch.dtype]) -> float:
    """How far outputs may be apart, of the largest, by the number formats of parameters and outputs.

    Only half precision allows more than float32: the steps of 8-bit floats are so coarse that nothing would be refused.

    >>> rounding_allowed([torch.float32]), rounding_allowed([torch.float32, torch.bfloat16])
    (0.0001, 0.0625)
    >>> rounding_allowed([torch.float8_e4m3fn])
    0.0001
    """
    return max([FLOAT32, *(_STEPS * torch.finfo(kind).eps for kind in kinds if kind in _HALF)])
