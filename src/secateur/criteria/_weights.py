"""Helpers of criteria on weights: reading them with a check, and norms that neither under- nor overflow.

>>> import torch
>>> norms(torch.tensor([[3e-30, 4e-30], [1.0, 0.0]]))
tensor([5.0000e-30, 1.0000e+00])
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from secateur.core.scores import check_finite
from secateur.core.targets import Target

__all__ = ["line_norms", "norms", "weights", "working_dtype"]

_CACHED = 1 << 17


def weights(model: nn.Module, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """The detached weight of every target by name; NaN or infinity in one is an error that names it."""
    found = {}
    for target in targets:
        tensor = target.of(model).detach()
        check_finite(
            f"weight {target.name!r}",
            tensor,
            "a weight without a value cannot be ranked; load a sound checkpoint",
        )
        found[target.name] = tensor
    return found


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are computed in: float32 for anything narrower, else the type itself.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def norms(units: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each row of [units, elements]; exactly |w| for a row of one element."""
    dtype = working_dtype(units.dtype)
    if units.shape[1] == 1 or units.numel() == 0:
        return units.abs().to(dtype).sum(dim=1)
    result = torch.linalg.vector_norm(units, dim=1, dtype=dtype)
    # Squares leave the number range long before the weights do. Scaling by a power of two costs no digit.
    tiny, huge = (1e-140, 1e140) if dtype == torch.float64 else (1e-16, 1e16)
    low, high = float(result.min()), float(result.max())
    if low < tiny or high > huge:
        wide = units.to(dtype)
        peaks = wide.abs().amax(dim=1, keepdim=True)
        odd = ((result < tiny) | (result > huge)) & (peaks[:, 0] > 0)
        if bool(odd.any()):
            most = 1000 if dtype == torch.float64 else 120
            _, exponents = torch.frexp(peaks[odd].cpu())
            # numpy's: torch.ldexp takes its powers of two in float32.
            powers = np.ldexp(1.0, exponents.clamp(-most, most).numpy())
            scale = torch.from_numpy(powers).to(dtype).to(wide.device)
            result[odd] = torch.linalg.vector_norm(wide[odd] / scale, dim=1) * scale[:, 0]
    return result


def line_norms(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The norm of every slice along an axis, without laying the slices out one after the other.

    >>> line_norms(torch.tensor([[3.0, 1.0], [4.0, 0.0]]), 1)
    tensor([5., 1.])
    """
    size = weight.shape[axis]
    simple = weight.device.type == "cpu" and weight.is_contiguous() and weight.numel() > size
    if axis > 0 and simple and weight.dtype in (torch.float32, torch.float64):
        found = _sums_of_squares(weight.numpy(), axis)
        # Outside this range squares are inexact, see `norms`.
        if found.min() > 1e-30 and found.max() < 1e30:
            return torch.from_numpy(np.sqrt(found)).to(weight.dtype)
    return norms(weight.movedim(axis, 0).reshape(size, -1))


def _sums_of_squares(weight: np.ndarray, axis: int) -> np.ndarray:
    """The squares of every slice along an axis summed up: some rows at a time in the type given, then in float64."""
    size, before = weight.shape[axis], math.prod(weight.shape[:axis])
    table = weight.reshape(before, -1)
    total = np.zeros(table.shape[1])
    rows = max(8, min(256, _CACHED // table.shape[1]))
    for start in range(0, before, rows):
        part = table[start : start + rows]
        total += np.einsum("ij,ij->j", part, part)
    return total.reshape(size, -1).sum(axis=1)
