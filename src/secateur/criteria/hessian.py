"""Hessian: the change of the loss to second order, with the Hessian's diagonal estimated on random vectors.

LeCun, Denker and Solla 1990, "Optimal Brain Damage" (the diagonal); Bekas et al. 2007, "An estimator for the diagonal
of a matrix" (Hutchinson's vectors of +1 and -1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights
from secateur.errors import OptionError
from secateur.execution.gradients import GradientPass, accumulator_dtype, double_backward, shares
from secateur.execution.undisturbed import check_mode, undisturbed

__all__ = ["Hessian"]


@dataclass(frozen=True)
class Hessian(Criterion):
    """|h| * w^2 / 2, h the mean of v * (H v) over vectors v of +1 and -1; a unit scores the sum.

    The mean is the Hessian's diagonal in expectation, and exactly where the Hessian is diagonal. Its absolute value is
    taken, because a weight of negative curvature matters as much as one of positive curvature.

    Args:
        samples: How many vectors; each reads the data once.
        mode: What the model runs in: "as_found" (the default), "train" or "eval".

    With L = (a^2 + 4 b^2) / 2 at a = 3, b = 1 the Hessian is diagonal, with 1 and 4:

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None)]
    >>> context = Context(data=data, loss=lambda outputs, _: outputs.square().sum() / 2)
    >>> Hessian(samples=1).scores(model, select(model), context)["weight"]
    tensor([[4.5000, 2.0000]])
    """

    needs_data: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    samples: int = 8
    mode: str = "as_found"

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise OptionError(f"samples: expected a whole number of at least 1, got {self.samples!r}")

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """|h| * w^2 / 2 per weight."""
        held = weights(model, targets)
        passes = GradientPass("hessian", model, targets, context)
        passes.check_passes(self.samples)
        found: dict[str, torch.Tensor] = {}
        with undisturbed(model, mode=self.mode), double_backward():
            for sample in range(self.samples):
                vector = {name: _signs(context.seed, sample, name, weight) for name, weight in held.items()}
                for name, product in passes.hessian_times(vector).items():
                    part = product.mul_(vector[name])
                    found[name] = found[name].add_(part) if name in found else part
        for name, total in found.items():
            wide = held[name].to(total.dtype)
            total.abs_().mul_(wide).mul_(wide).div_(2 * self.samples)
        return Scores(shares("hessian", found, model, normalize=False))


def _signs(seed: int, sample: int, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A vector of +1 and -1 of a weight's shape, drawn from the seed, the sample's number and the name."""
    digest = hashlib.sha256(f"{seed}:{sample}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = torch.randint(0, 2, tuple(weight.shape), generator=generator) * 2 - 1
    return drawn.to(weight.device, accumulator_dtype(weight.device))
