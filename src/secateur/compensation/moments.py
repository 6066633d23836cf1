"""`Moments`: the second moments of a layer's inputs and of the outputs it should give, all that least squares needs.

>>> import torch
>>> moments = Moments(groups=1, features=2, outputs=1, device=torch.device("cpu"))
>>> moments.add(torch.tensor([[[1.0, 0.0], [1.0, 2.0]]]), torch.tensor([[[3.0], [7.0]]]))
>>> moments.hessian[0].tolist(), moments.cross[0, :, 0].tolist(), moments.rows
([[2.0, 2.0], [2.0, 4.0]], [10.0, 14.0], 2)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Moments", "Problem"]

_CHUNK = 8192
"""Rows that are multiplied in float32 before their sum is added in float64."""


class Moments:
    """Sums over rows of features x and targets y, per group: x xᵀ, x yᵀ, x, y, y².

    Products of at most 8,192 rows are made in float32 (float64 for float64 inputs) and added up in float64, or in
    float32 on a device that has no wider type.
    """

    def __init__(self, groups: int, features: int, outputs: int, device: torch.device):
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.hessian = torch.zeros(groups, features, features, dtype=wide, device=device)
        self.cross = torch.zeros(groups, features, outputs, dtype=wide, device=device)
        self.inputs = torch.zeros(groups, features, dtype=wide, device=device)
        self.targets = torch.zeros(groups, outputs, dtype=wide, device=device)
        self.energy = torch.zeros(groups, outputs, dtype=wide, device=device)
        self.rows = 0
        self.wide = wide

    def add(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Count rows in: x is [groups, rows, features], y [groups, rows, outputs] or None for inputs alone."""
        for start in range(0, x.shape[1], _CHUNK):
            part = x[:, start : start + _CHUNK]
            if part.dtype in (torch.float16, torch.bfloat16):
                part = part.float()
            self.hessian += part.mT @ part
            self.inputs += part.sum(1, dtype=self.wide)
            if y is not None:
                goal = y[:, start : start + _CHUNK].to(part.dtype)
                self.cross += part.mT @ goal
                self.targets += goal.sum(1, dtype=self.wide)
                self.energy += goal.to(self.wide).square().sum(1)
        self.rows += x.shape[1]

    def finite(self) -> bool:
        """Whether no NaN or infinity was counted in."""
        return bool(torch.isfinite(self.inputs).all() and torch.isfinite(self.targets).all())

    def problem(self, intercept: bool) -> Problem:
        """The normal equations; with an `intercept`, of the rows less their means."""
        count = max(1, self.rows)
        hessian, cross, energy = self.hessian, self.cross, self.energy
        if intercept:
            column = self.inputs[:, :, None]
            hessian = torch.baddbmm(hessian, column, self.inputs[:, None, :], alpha=-1 / count)
            cross = torch.baddbmm(cross, column, self.targets[:, None, :], alpha=-1 / count)
            energy = energy - self.targets.square() / count
        return Problem(hessian, cross, energy, self.inputs / count, self.targets / count, intercept)


@dataclass(frozen=True, eq=False)
class Problem:
    """min over W of |X W - Y|², by its normal equations, per group.

    `mean_in` and `mean_out` give the intercept once W is known: `mean_out - mean_in @ W`.
    """

    hessian: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor
    mean_in: torch.Tensor
    mean_out: torch.Tensor
    intercept: bool = field(default=False)

    def error(self, matrix: torch.Tensor) -> torch.Tensor:
        """The squared error of every output, [groups, outputs]."""
        wide = matrix.to(self.hessian.dtype)
        inner = (wide * (self.hessian @ wide - 2 * self.cross)).sum(1)
        return (inner + self.energy).clamp_min(0)

    def offset(self, matrix: torch.Tensor) -> torch.Tensor:
        """The intercept that belongs to W, [groups, outputs]."""
        return self.mean_out - (self.mean_in[:, None] @ matrix.to(self.mean_in.dtype))[:, 0]
