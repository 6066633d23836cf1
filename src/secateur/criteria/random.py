"""Random: the score of every unit is drawn at random, the control that any other criterion has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Criterion):
    """A uniform draw from [0, 1) per weight, made from `Context.seed` and the parameter's name.

    The same seed gives the same scores on every device and does not depend on random numbers drawn before; a
    tensor's scores do not depend on which other tensors are pruned with it.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(3, 2)
    >>> a, b, c = (Random().scores(model, select(model), Context(seed=seed))["weight"] for seed in (7, 7, 8))
    >>> torch.equal(a, b), torch.equal(a, c)
    (True, False)
    """

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """Independent uniform numbers, one per weight."""
        drawn = {}
        for name, weight in weights(model, targets).items():
            digest = hashlib.sha256(f"{context.seed}:{name}".encode()).digest()
            # A separate generator, always on the CPU: other devices draw other numbers from the same seed.
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
            drawn[name] = torch.rand(tuple(weight.shape), generator=generator).to(weight.device)
        return Scores(drawn)

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The first element's draw: a sum would grow with the unit, so that larger units would always remain."""
        return units[:, 0]
