"""`solve`: the least-squares solution on the remaining weights, with the outputs nearest to the targets.

Every output has its own support. Outputs of one support share a Cholesky factor; where supports differ, many small
systems are factored at once; where that would take too long, the systems of all outputs are improved together by
conjugate gradients, which need one product with the shared Hessian a round.

>>> import torch
>>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
>>> cross = torch.tensor([[5.0], [4.0]], dtype=torch.float64)
>>> keep = torch.tensor([[True], [False]])
>>> solve(hessian, cross, torch.tensor([[1.0], [0.0]]), keep, ridge=0.0).flatten()
tensor([2.5000, 0.0000], dtype=torch.float64)
"""

from __future__ import annotations

import torch

__all__ = ["conjugate_gradients", "cost_of_factoring", "solve"]

_AFFORDABLE = 8e8
"""Operations up to which systems are factored without asking what conjugate gradients would take."""
_ENOUGH = 1e-8
"""Conjugate gradients stop where every output's squared slope has fallen to this share of its start."""
_BATCH = 1 << 24


def cost_of_factoring(keep: torch.Tensor) -> float:
    """Operations that one Cholesky factor for every different support takes."""
    return float((torch.unique(keep, dim=1).sum(0).double() ** 3).sum() / 3)


def solve(
    hessian: torch.Tensor,
    cross: torch.Tensor,
    start: torch.Tensor,
    keep: torch.Tensor,
    ridge: float,
    rounds: int = 60,
) -> torch.Tensor:
    """Minimise |X W - Y|² + ridge |W - start|² over the W that are zero wherever `keep` is False.

    Args:
        hessian: X^T X, [features, features].
        cross: X^T Y, [features, outputs].
        start: the weights towards which the ridge pulls, [features, outputs].
        keep: True where a weight may differ from zero, [features, outputs].
        ridge: the weight of the distance to `start`, in the units of the Hessian's diagonal.
        rounds: rounds of conjugate gradients at most, where factoring would take too long.

    Returns:
        W in the Hessian's dtype.
    """
    wide = start.to(hessian.dtype) * keep
    goal = cross + ridge * start.to(hessian.dtype)
    supports, which = torch.unique(keep, dim=1, return_inverse=True)
    if _too_long(supports, keep, rounds):
        return conjugate_gradients(hessian, goal, wide, keep, ridge, rounds, _ENOUGH)
    found = torch.zeros_like(wide)
    if supports.shape[1] * 4 <= keep.shape[1] or supports.shape[1] == 1:
        for index in range(supports.shape[1]):
            places = supports[:, index].nonzero()[:, 0]
            outputs = (which == index).nonzero()[:, 0]
            if len(places):
                block = hessian[places][:, places]
                found[places[:, None], outputs] = _factored(block, goal[places][:, outputs], ridge)
        return found
    _many(hessian, goal, keep, ridge, found)
    return found


def _too_long(supports: torch.Tensor, keep: torch.Tensor, rounds: int) -> bool:
    """Whether conjugate gradients take over: where few supports are shared, only if that is less work too."""
    cost = cost_of_factoring(supports)
    many = supports.shape[1] * 4 > keep.shape[1] and supports.shape[1] > 1
    return cost > _AFFORDABLE and (many or cost > 2.0 * rounds * keep.shape[0] ** 2 * keep.shape[1])


def _factored(hessian: torch.Tensor, goal: torch.Tensor, ridge: float) -> torch.Tensor:
    """The solution of one system or of a batch of them; more ridge where rounding leaves it indefinite."""
    size = hessian.shape[-1]
    level = hessian.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-30)
    eye = torch.eye(size, dtype=hessian.dtype, device=hessian.device)
    for more in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):
        factor, failed = torch.linalg.cholesky_ex(hessian + (ridge + more * level) * eye)
        if not bool(failed.any()):
            return torch.cholesky_solve(goal, factor)
    return torch.linalg.lstsq(hessian + (ridge + 1e-4 * level) * eye, goal).solution


def _many(
    hessian: torch.Tensor, goal: torch.Tensor, keep: torch.Tensor, ridge: float, found: torch.Tensor
) -> None:
    """One system per output, in batches of outputs of like size, each filled up with the identity; into `found`."""
    sizes = keep.sum(0)
    order = torch.argsort(sizes)
    at = 0
    while at < len(order):
        size = max(1, int(sizes[order[at]]))
        count = max(1, _BATCH // size**2)
        group = order[at : at + count]
        width = int(sizes[group].max())
        at += len(group)
        if width == 0:
            continue
        # The places of each output's support, the missing ones at the end.
        places = torch.argsort((~keep[:, group]).T.to(torch.uint8), dim=1, stable=True)[:, :width]
        there = torch.arange(width, device=keep.device)[None] < sizes[group][:, None]
        block = hessian[places[:, :, None], places[:, None, :]]
        block = block * (there[:, :, None] & there[:, None, :])
        block = block + torch.diag_embed((~there).to(block.dtype))
        right = goal[places, group[:, None]] * there
        answer = _factored(block, right[:, :, None], ridge)[:, :, 0] * there
        found[places, group[:, None]] = torch.where(there, answer, found[places, group[:, None]])


def conjugate_gradients(
    hessian: torch.Tensor,
    goal: torch.Tensor,
    start: torch.Tensor,
    keep: torch.Tensor,
    ridge: float,
    rounds: int,
    enough: float = 0.0,
) -> torch.Tensor:
    """At most `rounds` of conjugate gradients for all outputs at once, from `start`, on the diagonal's scale.

    Every output's error falls in every round, so that it may be stopped at any: it stops where every output's squared
    slope has fallen to the share `enough` of its own start. Outputs are processed in slices, and in
    float32 where the Hessian has more than 4,096 rows.
    """
    dtype = torch.float32 if hessian.shape[0] > 4096 else hessian.dtype
    matrix = hessian.to(dtype)
    scale = 1.0 / (matrix.diagonal() + ridge).clamp_min(torch.finfo(dtype).tiny)[:, None]
    found = torch.empty_like(start)
    step = max(64, (1 << 24) // hessian.shape[0])
    for at in range(0, start.shape[1], step):
        part = slice(at, at + step)
        weights = start[:, part].to(dtype, copy=True)
        held = keep[:, part].to(dtype)
        rest = (goal[:, part].to(dtype) - matrix @ weights - ridge * weights).mul_(held)
        _descend(matrix, (weights, rest), (scale, held), ridge, rounds, enough)
        found[:, part] = weights.to(found.dtype)
    return found


def _descend(
    matrix: torch.Tensor,
    moving: tuple[torch.Tensor, torch.Tensor],
    fixed: tuple[torch.Tensor, torch.Tensor],
    ridge: float,
    rounds: int,
    enough: float,
) -> None:
    """The rounds for some outputs, in place: beside the products a round is a few passes over the memory.

    Args:
        matrix: the Hessian, [features, features].
        moving: the weights and what is left of the goal, [features, outputs]; both are changed.
        fixed: the diagonal's scale, [features, 1], and the mask as numbers, [features, outputs].
        ridge: as of `conjugate_gradients`.
        rounds: as of `conjugate_gradients`.
        enough: as of `conjugate_gradients`.
    """
    (weights, rest), (scale, held) = moving, fixed
    tiny = torch.finfo(matrix.dtype).tiny
    along = rest * scale
    pushed, spare = torch.empty_like(along), torch.empty_like(along)
    size = torch.mul(rest, along, out=spare).sum(0)
    least = enough * size
    for turn in range(rounds):
        torch.mm(matrix, along, out=pushed).add_(along, alpha=ridge).mul_(held)
        bend = torch.mul(along, pushed, out=spare).sum(0)
        length = torch.where(bend > 0, size / bend.clamp_min(tiny), 0.0)
        weights.addcmul_(along, length)
        if turn + 1 == rounds:
            return
        rest.addcmul_(pushed, length, value=-1)
        torch.mul(rest, scale, out=pushed)
        now = torch.mul(rest, pushed, out=spare).sum(0)
        along.mul_(torch.where(size > 0, now / size.clamp_min(tiny), 0.0)).add_(pushed)
        size = now
        if bool((size <= least).all()):
            return
