"""Shuffled: another criterion's count of units per layer, with the units drawn at random: a control for pruning early.

Frankle et al. 2021, "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?": a method that does no
better than its own shuffled masks has found good sparsities of the layers, not good weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.masks import Masks
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion, registry
from secateur.errors import MaskMismatchError, OptionError

__all__ = ["Shuffled"]


@dataclass(frozen=True)
class Shuffled(Criterion):
    """The scores of a criterion, or the bits of masks, in random order among the units of each list.

    With `sc.budget.Overall` each list loses as many units as by the criterion itself (or as the masks removed, at their
    sparsity), but which of them is drawn at random. A criterion is evaluated once, for a budget reached in one round;
    for the masks of a schedule give the masks themselves.

    Args:
        of: A criterion (a word, or a value), or masks.
        seed: Of the order.

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(3, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0, 2.0]]))
    >>> rule = Shuffled("magnitude", seed=1)
    >>> rule.reduce(rule.scores(model, select(model), Context())["weight"].T).sort().values
    tensor([1., 2., 3.])
    """

    among: ClassVar[bool] = True
    of: str | Criterion | Masks = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OptionError(f"seed: expected a whole number, got {self.seed!r}")
        inner = self._inner()
        if isinstance(inner, Shuffled):
            raise OptionError("shuffled: of is shuffled itself; name the criterion whose counts are wanted")
        for name in ("needs_data", "needs_loss", "needs_example", "of_outputs"):
            object.__setattr__(self, name, inner is not None and getattr(inner, name))

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The scores of the criterion, or 1 where the masks keep a weight and 0 elsewhere; `reduce` shuffles them."""
        inner = self._inner()
        if inner is not None:
            return inner.scores(model, targets, context)
        assert isinstance(self.of, Masks)
        self.of.check(model)
        missing = [target.name for target in targets if target.name not in self.of]
        if missing:
            raise MaskMismatchError(
                f"shuffled: the masks have no tensor {missing[0]!r}; prune the layers that they were made for "
                "(only, skip)"
            )
        return Scores({target.name: self.of[target.name].float() for target in targets})

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The units' scores in another order, drawn from the seed and the scores."""
        inner = self._inner()
        plain = super().reduce(units) if inner is None else inner.reduce(units)
        digest = hashlib.sha256(str(self.seed).encode())
        digest.update(plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest.digest()[:7], "big"))
        return plain[torch.randperm(len(plain), generator=generator).to(plain.device)]

    def _inner(self) -> Criterion | None:
        """The criterion; None for masks."""
        if isinstance(self.of, Masks):
            return None
        found: Any = registry.make(self.of)
        if not isinstance(found, Criterion):
            raise OptionError(f"shuffled: expected a criterion or masks, got {self.of!r}")
        return found
