"""`LeastSquares`: how `compensate` solves a layer, on the masks' support or on a better one of the same size.

>>> LeastSquares(damping=0.001).reselect
False
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from secateur.compensation.fitting import LayerProblem, Solution
from secateur.compensation.least_squares import solve
from secateur.compensation.support import alternating_support, largest
from secateur.errors import OptionError

__all__ = ["LeastSquares"]


@dataclass(frozen=True)
class LeastSquares:
    """Damped least squares on each output's own support.

    Args:
        damping: the strength of the penalty on changes of the weights, as a share of the mean square of a layer's
            inputs.
        reselect: choose again which of a layer's weights remain, as many as its mask keeps, by alternating direction on
            the inputs it now has, where that lowers the error. For masks of single weights: the patterns of kernels
            and blocks are not kept; n:m along the inputs is, where m divides them and is at most 64, and so is a mask
            of whole outputs or inputs.
        rounds: the most rounds of conjugate gradients, by which layers are solved that are too large to factor. The
            error falls in every round, most of it in the first ten.
        sums: solve a layer whose output is added to something, as in a residual connection, for the sum. Without it
            every layer reproduces its own output, as `error_shares` asks for, which puts each into the dense model
            alone.

    Raises:
        OptionError: for a damping below 0, or less than one round.
    """

    damping: float = 0.01
    reselect: bool = False
    rounds: int = 60
    sums: bool = True
    always: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.damping, bool) or not 0 <= self.damping < math.inf:
            raise OptionError(
                f"damping of LeastSquares: expected a number of at least 0, got {self.damping!r}"
            )

        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise OptionError(
                f"rounds of LeastSquares: expected a whole number of at least 1, got {self.rounds!r}"
            )

    def __call__(self, layer: LayerProblem) -> Solution:
        """The weights of least error; an output whose error would grow keeps its present ones."""
        keep, mask = layer.keep, None
        new = self._solved(layer, layer.matrix, keep)
        if self.reselect and not _of_lines(keep):
            other = self._chosen(layer, keep)
            better = self._solved(layer, layer.geometry.matrix(layer.dense) * other, other)
            if float(layer.problem.error(better).sum()) < float(layer.problem.error(new).sum()):
                new, keep = better, other
                mask = layer.geometry.weight(keep, layer.weight.shape)
        most = int(keep.sum(1).max())
        note = (
            "" if layer.rows > most else f"{layer.rows:,} rows for up to {most:,} weights an output: damped"
        )
        return Solution(layer.geometry.weight(new, layer.weight.shape), mask, note)

    def _solved(self, layer: LayerProblem, start: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The solution on a support, or `start` for the outputs that do not improve."""
        problem, parts = layer.problem, []
        for group in range(start.shape[0]):
            hessian = problem.hessian[group]
            ridge = self.damping * float(hessian.diagonal().mean())
            parts.append(solve(hessian, problem.cross[group], start[group], keep[group], ridge, self.rounds))
        new = torch.stack(parts).to(layer.weight.dtype)
        no_better = ~(problem.error(new) <= problem.error(start))
        return torch.where(no_better[:, None, :], start, new)

    def _chosen(self, layer: LayerProblem, keep: torch.Tensor) -> torch.Tensor:
        """A support of the same size in every group."""
        problem = layer.problem
        dense = layer.geometry.matrix(layer.dense).to(problem.hessian.dtype)
        taps = math.prod(getattr(layer.geometry, "size", ()))  # features of one input
        parts = [
            alternating_support(
                problem.hessian[group],
                problem.cross[group],
                dense[group],
                _choice(keep[group], taps),
                max(self.damping, 1e-4),
            )
            for group in range(keep.shape[0])
        ]
        return torch.stack(parts)


def _choice(keep: torch.Tensor, taps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """How as many weights as a mask keeps are chosen: the largest, or the n largest of every m inputs.

    >>> halves = torch.tensor([[True], [False], [False], [True]])
    >>> _choice(halves, 1)(torch.tensor([[1.0], [2.0], [4.0], [3.0]])).flatten()
    tensor([False,  True,  True, False])
    """
    inputs = keep.shape[0] // taps
    for m in range(2, min(inputs, 64) + 1):
        if inputs % m == 0:
            counts = keep.reshape(inputs // m, m, -1).sum(1)
            n = int(counts[0, 0])
            if 0 < n < m and bool((counts == n).all()):
                return partial(_n_of_m, n=n, m=m, inputs=inputs)
    return partial(largest, count=int(keep.sum()))


def _n_of_m(magnitudes: torch.Tensor, n: int, m: int, inputs: int) -> torch.Tensor:
    """The mask of the n largest of every m neighbouring inputs."""
    grouped = magnitudes.reshape(inputs // m, m, -1)
    chosen = torch.zeros_like(grouped, dtype=torch.bool)
    return chosen.scatter_(1, grouped.topk(n, 1).indices, True).reshape(magnitudes.shape)


def _of_lines(keep: torch.Tensor) -> bool:
    """Whether a mask removes whole outputs and whole inputs only, or nothing."""
    return bool((keep == (keep.any(1, keepdim=True) & keep.any(2, keepdim=True))).all())
