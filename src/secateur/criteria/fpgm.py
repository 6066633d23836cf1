"""FPGM: the filters nearest to all others are the most redundant.

He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration". The score of
a unit is the sum of its Euclidean distances to every other unit of its list; the lowest are removed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights, working_dtype

__all__ = ["Fpgm"]

_BLOCK = 256
_STRIP = 4096
"""Rows and columns of the distance matrix that exist at a time: a few megabytes, however many units."""
_CLOSE = 1 / 16
"""Below this share of |a|^2 + |b|^2 a squared distance made by products has lost too many digits."""


@dataclass(frozen=True)
class Fpgm(Criterion):
    """The sum of Euclidean distances to all other units.

    `scores` returns the weights themselves, with signs; only `reduce` gives scores of units. Equal units get exactly
    the same score. A single weight is a point on a line.

    >>> Fpgm().reduce(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
    tensor([ 5., 10.,  5.])
    """

    among: ClassVar[bool] = True

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The weights themselves."""
        return Scores(weights(model, targets))

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The sum of distances to all other units, for each unit."""
        rows = units.detach().to(working_dtype(units.dtype))
        if rows.shape[0] < 2 or rows.shape[1] == 0:
            return rows.new_zeros(rows.shape[0])
        return _on_a_line(rows[:, 0]) if rows.shape[1] == 1 else _in_space(rows.contiguous())


def _on_a_line(points: torch.Tensor) -> torch.Tensor:
    """Sums of |x_i - x_j| over all j by sorting: n log n instead of n^2."""
    wide = points.to("cpu" if points.device.type == "mps" else points.device, torch.float64)
    values, places, counts = torch.unique(wide, return_inverse=True, return_counts=True)
    mass, below = counts.cumsum(0), (counts * values).cumsum(0)
    total, count = below[-1], mass[-1]
    # left of x: x * (how many) - their sum; right of x: their sum - x * (how many)
    sums = values * (2 * mass - count) - 2 * below + total
    sums = sums[places]
    return sums.to(points.device, torch.float32) if points.device.type == "mps" else sums


def _in_space(rows: torch.Tensor) -> torch.Tensor:
    """Sums of Euclidean distances between rows, block by block, each pair once."""
    squares = (rows * rows).sum(dim=1)
    # Distances need the same relative accuracy at every scale, so scale the rows into a range where squares are safe.
    peak = max(abs(float(edge)) for edge in torch.aminmax(rows))
    if peak == 0.0:
        return torch.zeros_like(squares)
    if not 1e-12 < peak < 1e12:
        return _in_space(rows / peak) * peak
    first, places = _distinct(rows, squares)
    counts = None
    if first is not None:
        rows, squares = rows[first], squares[first]
        counts = torch.bincount(places, minlength=len(first)).to(rows.dtype)
    # One row's sum has at most U terms; in float64 its rounding stays far below that of the distances
    # themselves.
    sums = torch.zeros(len(rows), dtype=torch.float32 if rows.device.type == "mps" else torch.float64)
    sums = sums.to(rows.device)
    for start in range(0, len(rows), _BLOCK):
        # A strip of the upper triangle at a time, so that each pair is computed once.
        for begin in range(start, len(rows), _STRIP):
            a = slice(start, min(start + _BLOCK, len(rows)))
            b = slice(begin, min(begin + _STRIP, len(rows)))
            distances = _distances(rows[a], rows[b], squares[a], squares[b], diagonal=begin == start)
            forward = distances if counts is None else distances * counts[b]
            sums[a] += forward.sum(dim=1, dtype=sums.dtype)
            mirrored = slice(max(b.start, a.stop), b.stop)  # the square on the diagonal is complete in itself
            if mirrored.start < mirrored.stop:
                beyond = distances[:, mirrored.start - b.start :]
                back = beyond if counts is None else beyond * counts[a, None]
                sums[mirrored] += back.sum(dim=0, dtype=sums.dtype)
    result = sums.to(rows.dtype)
    return result if first is None else result[places]


def _distances(
    a: torch.Tensor, b: torch.Tensor, aa: torch.Tensor, bb: torch.Tensor, diagonal: bool
) -> torch.Tensor:
    """Distances between two blocks of rows: by one matrix product, by subtraction where that is inexact.

    With `diagonal` the blocks begin at the same row, and a row's distance to itself is exactly 0.
    """
    scale = aa[:, None] + bb
    result = scale.add(a @ b.T, alpha=-2.0)
    own = result.diagonal()
    if diagonal:
        own.copy_(scale.diagonal())
    # One cheap test settles the usual case, in which no pair is close.
    if not bool(result.amin() > _CLOSE * (aa.max() + bb.max())):
        rows, columns = (result <= _CLOSE * scale).nonzero(as_tuple=True)
        if len(rows) > max(result.numel() // 8, _BLOCK):
            return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        result.sqrt_()
        step = max(1, 4_000_000 // a.shape[1])
        for start in range(0, len(rows), step):
            i, j = rows[start : start + step], columns[start : start + step]
            result[i, j] = torch.linalg.vector_norm(a[i] - b[j], dim=1)
    else:
        result.sqrt_()
    if diagonal:
        own.zero_()
    return result


def _distinct(rows: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(the first row of each set of equal rows, which set each row is in); (None, ...) when all rows differ.

    Equal rows have equal sums of squares, so only rows that share one are compared.
    """
    order = squares.argsort(stable=True)
    same = squares[order][1:] == squares[order][:-1]
    own = torch.arange(len(rows), device=rows.device)
    if not bool(same.any()):
        return None, own
    shared = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    shared[order[1:][same]] = True
    shared[order[:-1][same]] = True
    suspects = shared.nonzero()[:, 0]
    # Compared on the CPU: unique along an axis is missing or slow elsewhere.
    _, sets = torch.unique(rows[suspects].cpu() + 0.0, dim=0, return_inverse=True)
    leaders = torch.full((int(sets.max()) + 1,), len(rows), dtype=torch.int64)
    leaders.scatter_reduce_(0, sets, suspects.cpu(), "amin")
    leader = own.clone()
    leader[suspects] = leaders[sets].to(rows.device)
    first, places = torch.unique(leader, return_inverse=True)
    return (first, places) if len(first) < len(rows) else (None, own)
