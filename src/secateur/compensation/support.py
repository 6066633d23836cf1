"""Which weights of a layer should stay, judged by its second moments: `removal_costs` and `alternating_support`.

Removing a weight costs its square over the diagonal of the inverse Hessian, halved, once the others of its row have
made up for it (Hassibi and Stork 1993, "Optimal Brain Surgeon"). `removal_costs` removes the weights of every output
one by one, the cheapest first, and notes what the error grew by (Frantar and Alistarh 2022, "Optimal Brain
Compression"). `alternating_support` looks for the best set of a given size by alternating direction (Meng et al. 2024,
"ALPS").

>>> hessian = torch.eye(2, dtype=torch.float64)
>>> removal_costs(hessian, torch.tensor([[3.0], [1.0]], dtype=torch.float64)).flatten().tolist()
[9.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["alternating_support", "inverse", "removal_costs", "single_costs"]

_STEPS = 1 << 24
"""Numbers of inverse Hessians held at once."""


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
    """What the error grows by when one weight alone is removed and its row makes up for it, [features, outputs]."""
    spread = inverse(hessian, damping).diagonal().clamp_min(1e-30)
    return weight.to(hessian.dtype).square() / spread[:, None]


def removal_costs(hessian: torch.Tensor, weight: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """What the error grows by at each weight's removal, row by row, the cheapest first and never less than before.

    Args:
        hessian: X^T X, [features, features].
        weight: [features, outputs].
        damping: added to the Hessian's diagonal, as a share of its mean.

    Returns:
        The cost of every weight, [features, outputs]: of the weights of one output, those of least cost go first.
    """
    features, outputs = weight.shape
    whole = inverse(hessian, damping)
    costs = torch.empty_like(weight, dtype=whole.dtype)
    slice_ = max(1, _STEPS // features**2)
    for start in range(0, outputs, slice_):
        part = weight[:, start : start + slice_].T.to(whole.dtype).clone()  # [rows, features]
        costs[:, start : start + slice_] = _one_by_one(whole, part).T
    return costs


def _one_by_one(whole: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The removal costs of some rows, [rows, features]; `weights` is used up."""
    rows, features = weights.shape
    spread = whole.repeat(rows, 1, 1)
    costs = torch.zeros_like(weights)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    highest = weights.new_zeros(rows)
    every = torch.arange(rows, device=weights.device)
    for _ in range(features):
        diagonal = spread.diagonal(dim1=1, dim2=2).clamp_min(1e-30)
        price = (weights.square() / diagonal).masked_fill(gone, torch.inf)
        least, which = price.min(1)
        highest = torch.maximum(highest, least)
        costs[every, which] = highest
        column = spread[every, which]  # [rows, features]
        pivot = column[every, which].clamp_min(1e-30)
        weights -= column * (weights[every, which] / pivot)[:, None]
        spread -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        gone[every, which] = True
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

    Args:
        hessian: X^T X, [features, features].
        cross: X^T Y, [features, outputs].
        start: the dense weights, [features, outputs].
        choose: from magnitudes to the mask of those that stay; it fixes how many.
        damping: added to the Hessian's diagonal, as a share of its mean.
        rounds: how often the two sides alternate, at most.

    Returns:
        The mask, [features, outputs].
    """
    scale = hessian.diagonal().clamp_min(1e-12 * float(hessian.diagonal().mean()) + 1e-30).rsqrt()
    scaled = hessian * scale[:, None] * scale[None]
    scaled.diagonal().add_(damping)
    values, vectors = torch.linalg.eigh(scaled)
    goal = cross * scale[:, None] + damping * start / scale[:, None]
    free = start / scale[:, None]
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
            penalty *= 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1
    return mask
