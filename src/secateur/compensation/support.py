"""Which weights of a layer should remain, by its second moments: `costs` and `alternating_support`.

Removing a weight costs its square over the diagonal of the inverse Hessian, halved, once the others of its row
compensate for it (Hassibi and Stork 1993, "Optimal Brain Surgeon"). `removal_costs` removes the weights of every output
one by one, the cheapest first, and records how much the error grew (Frantar and Alistarh 2022, "Optimal Brain
Compression"). `alternating_support` looks for the best set of a given size by alternating direction (Meng et al. 2024,
"ALPS").

>>> hessian = torch.eye(2, dtype=torch.float64)
>>> removal_costs(hessian, torch.tensor([[3.0], [1.0]], dtype=torch.float64)).flatten().round(decimals=6).tolist()
[9.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["alternating_support", "costs", "inverse", "largest", "removal_costs", "single_costs"]

_STEPS = 1 << 24
"""Numbers of inverse Hessians held at once."""
_AFFORDABLE = 2e11
"""Multiplications up to which weights are removed one by one."""


def inverse(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The inverse of a Hessian, `damping` times its mean diagonal added; more where that is not enough."""
    level = hessian.diagonal().mean().clamp_min(1e-30)
    eye = torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    for more in (1, 10, 100, 1000):
        factor, failed = torch.linalg.cholesky_ex(hessian + max(damping, 1e-12) * more * level * eye)
        if not bool(failed):
            return torch.cholesky_inverse(factor)
    return eye / level


def single_costs(hessian: torch.Tensor, weight: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """The growth of the error when one weight alone is removed and its row compensates for it, [features, outputs]."""
    spread = inverse(hessian, damping).diagonal().clamp_min(1e-30)
    return weight.to(hessian.dtype).square() / spread[:, None]


def costs(hessian: torch.Tensor, weight: torch.Tensor, damping: float) -> torch.Tensor:
    """`removal_costs`, or an estimate of them by a sampled curve where that would take too long.

    A large layer's weights are ordered by `single_costs`; how fast the error grows along that order is taken from some
    of its outputs, on which the weights are removed one by one.
    """
    features, outputs = weight.shape
    if outputs * float(features) ** 3 <= _AFFORDABLE:
        return removal_costs(hessian, weight, damping)
    single = single_costs(hessian, weight, damping)
    energy = (weight * (hessian @ weight.to(hessian.dtype))).sum(0).clamp_min(1e-30)
    ranks = single.argsort(0).argsort(0)
    count = min(outputs, max(1, int(_AFFORDABLE / float(features) ** 3)))
    if float(features) ** 3 > _AFFORDABLE:
        return single
    sampled = torch.linspace(0, outputs - 1, count, device=weight.device).long()
    grown = removal_costs(hessian, weight[:, sampled], damping).sort(0).values / energy[sampled]
    return grown.mean(1)[ranks] * energy


def largest(magnitudes: torch.Tensor, count: int) -> torch.Tensor:
    """The mask of the `count` largest, ties by position.

    >>> largest(torch.tensor([[1.0, 3.0], [3.0, 3.0]]), 2)
    tensor([[False,  True],
            [ True, False]])
    """
    flat = magnitudes.reshape(-1)
    if not 0 < count < flat.numel():
        return torch.full(magnitudes.shape, count > 0, dtype=torch.bool, device=magnitudes.device)
    threshold = flat.kthvalue(
        flat.numel() - count + 1
    ).values  # a selection: sorting all would take ten times as long
    chosen = flat > threshold
    ties = (flat == threshold).nonzero()[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(magnitudes.shape)


def removal_costs(
    hessian: torch.Tensor, weight: torch.Tensor, damping: float = 0.0, steps: int = 64
) -> torch.Tensor:
    """The growth of the error at each weight's removal, row by row, the cheapest first and never less than before.

    Args:
        hessian: X^T X, [features, features].
        weight: [features, outputs].
        damping: added to the Hessian's diagonal, as a share of its mean.
        steps: into how many removals an output's weights are divided: with more weights than steps several are removed
            at once.

    Returns:
        The cost of every weight, [features, outputs]: of the weights of one output, those of least cost are removed
        first.
    """
    features, outputs = weight.shape
    whole = inverse(hessian, damping)
    costs = torch.empty_like(weight, dtype=whole.dtype)
    at_once = max(1, -(-features // steps))
    width = max(1, _STEPS // features**2)
    for start in range(0, outputs, width):
        part = weight[:, start : start + width].T.to(whole.dtype).clone()  # [rows, features]
        costs[:, start : start + width] = _step_by_step(whole, part, at_once).T
    return costs


def _step_by_step(whole: torch.Tensor, weights: torch.Tensor, at_once: int) -> torch.Tensor:
    """The removal costs of some rows, [rows, features]; `weights` is used up."""
    rows, features = weights.shape
    spread = whole.repeat(rows, 1, 1)
    costs = torch.zeros_like(weights)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    highest = weights.new_zeros(rows, 1)
    every = torch.arange(rows, device=weights.device)[:, None]
    for start in range(0, features, at_once):
        count = min(at_once, features - start)
        diagonal = spread.diagonal(dim1=1, dim2=2).clamp_min(1e-30)
        price = (weights.square() / diagonal).masked_fill(gone, torch.inf)
        least, which = price.topk(count, dim=1, largest=False)
        costs[every, which] = highest = torch.maximum(highest, least)
        highest = highest.amax(1, keepdim=True)
        gone[every, which] = True
        if start + count == features:
            break
        columns = spread[every, which]  # [rows, count, features]
        pivots = columns.gather(2, which[:, None, :].expand(-1, count, -1))
        pivots = pivots + torch.diag_embed(1e-12 * pivots.diagonal(dim1=1, dim2=2).clamp_min(1e-30))
        pull = torch.linalg.solve_ex(pivots, torch.cat([columns, weights.gather(1, which)[:, :, None]], 2))[0]
        weights -= (columns.mT @ pull[:, :, -1:])[:, :, 0]
        spread.baddbmm_(columns.mT, pull[:, :, :-1], alpha=-1)
        weights[gone] = 0.0
    return costs


def alternating_support(
    hessian: torch.Tensor,
    cross: torch.Tensor,
    start: torch.Tensor,
    choose: Callable[[torch.Tensor], torch.Tensor],
    damping: float = 0.01,
    rounds: int = 100,
) -> torch.Tensor:
    """A support of least error, by alternating direction with a growing penalty.

    The rounds compute in float32: they choose which weights stay, and no weight that is kept comes from them.

    Args:
        hessian: X^T X, [features, features].
        cross: X^T Y, [features, outputs].
        start: the dense weights, [features, outputs].
        choose: from magnitudes to the mask of those that remain; it fixes how many.
        damping: added to the Hessian's diagonal, as a share of its mean.
        rounds: how often the two sides alternate, at most.

    Returns:
        The mask, [features, outputs].
    """
    scale = hessian.diagonal().clamp_min(1e-12 * float(hessian.diagonal().mean()) + 1e-30).rsqrt()
    scaled = hessian * scale[:, None] * scale[None]
    scaled.diagonal().add_(damping)
    values, vectors = (part.float() for part in torch.linalg.eigh(scaled))
    goal = (cross * scale[:, None] + damping * start / scale[:, None]).float()
    free = (start / scale[:, None]).float()
    penalty = 0.1
    held = torch.where(choose(free.abs()), free, 0.0)
    dual = torch.zeros_like(free)
    mask = choose(free.abs())
    for turn in range(rounds):
        right = goal + penalty * held - dual
        free = vectors @ ((vectors.T @ right) / (values + penalty)[:, None])
        wanted = free + dual / penalty
        new = choose(wanted.abs())
        held = torch.where(new, wanted, 0.0)
        dual = dual + penalty * (free - held)
        if turn % 3 == 2:
            moved = int((new ^ mask).sum())
            share = moved / max(1, int(new.sum()))
            mask = new
            if moved == 0 and turn > 10:
                break
            penalty *= 1.1 if share > 0.1 else 1.07 if share > 0.005 else 1.05
    return mask
