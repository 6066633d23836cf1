"""Optimal brain surgeon, layer by layer: the change of the outputs when a weight is removed and its row compensates for
it.

Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; layer by layer and weight
by weight as in Frantar and Alistarh 2022, "Optimal Brain Compression". Prune by it, then compensate with
`sc.compensate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.compensation.fitting import Observed
from secateur.compensation.support import costs, single_costs
from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._moments import scored
from secateur.errors import OptionError

__all__ = ["Obs"]


@dataclass(frozen=True)
class Obs(Criterion):
    """The growth of a layer's squared error at a weight's removal, as a share of the variance of its outputs.

    The weights of each output are removed one by one, the cheapest first, and the others compensate for each; a
    weight's score is the growth of the error when it was removed. So scores of different layers are comparable, and a
    budget over the whole network (`sc.budget.Overall`) spends the error where it is least. Inputs need no labels.

    Args:
        damping: added to the diagonal of the inputs' second moments, as a share of its mean.
        one_by_one: whether a weight's cost takes into account those removed before it. False scores every weight as if
            it alone were removed: one inverse for a layer, instead of one for each of its outputs.

    Inputs that do not correlate leave the sums of w² x², here 4 * 2 and 1 * 8. The outputs are 0 and -4, 8 around their
    mean:

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(2, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> context = Context(data=[torch.tensor([[1.0, 2.0], [-1.0, 2.0]])])
    >>> Obs(damping=0.0).scores(model, select(model), context)["weight"]
    tensor([[1., 1.]])
    """

    needs_data: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    rescore: ClassVar[bool] = True
    of_layers: ClassVar[bool] = True

    damping: float = 1e-4
    one_by_one: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.one_by_one, bool):
            raise OptionError(f"one_by_one of obs: expected True or False, got {self.one_by_one!r}")
        if isinstance(self.damping, bool) or not 0 <= self.damping < math.inf:
            raise OptionError(f"damping of obs: expected a number of at least 0, got {self.damping!r}")

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The cost of each weight's removal."""
        return scored("obs", model, targets, context, self._score)

    def _score(self, layer: Observed, matrix: torch.Tensor) -> torch.Tensor:
        problem = layer.moments.problem(layer.intercept)
        energy = float(layer.moments.problem(intercept=True).energy.sum())
        judge = costs if self.one_by_one else single_costs
        parts = [
            judge(problem.hessian[group], matrix[group], self.damping) for group in range(matrix.shape[0])
        ]
        return torch.stack(parts) / max(energy, 1e-30)
