"""Growing regularisation: increasing weight decay on units that are to be removed, until they are nearly 0.

Wang et al. 2021, "Neural Pruning via Growing Regularization": GReg-1 chooses the units before, GReg-2 shrinks all alike
and lets the loss decide which stay large. Torch-Pruning's `GrowingRegPruner` lets the decay of small units grow faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from secateur.budget import Budget
from secateur.core.masks import Masks
from secateur.criteria import Criterion
from secateur.errors import OptionError
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.pruning.prune import PruneOptions, prune
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero, check_whole
from secateur.sparsify._units import Patterns, UnitList, lists_of, squares

__all__ = ["Growing"]

_WHICH = ("chosen", "all", "ranked")


@dataclass(frozen=True)
class Growing(Sparsifier):
    """r / 2 * sum of w**2 over the units, biases left out; r grows by `delta` every `every` steps, up to `most`.

    Args:
        delta: What is added to r.
        every: Optimizer steps between two additions.
        most: The largest r.
        which: "chosen": the units that criterion and budget remove at the start; they are removed at the end (GReg-1).
            "all": every unit (GReg-2). "ranked": every unit, each with its own r that grows by delta *
            (largest - q) / (largest - smallest) with q the squared norms of its group (Torch-Pruning).
        criterion: With "chosen": how units are scored.
        granularity: What is one unit.
        budget: With "chosen": how much is removed: a share, or a value.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    Of rows of norm 5 and 1 the second is chosen: r is 0.5 and then 1, so the penalty is 0.25 and then 0.5.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> active = Growing(delta=0.5, every=1, granularity="filter").start(model)
    >>> first = active.penalty().item(); active.after_step(); first, active.penalty().item()
    (0.25, 0.5)
    """

    delta: float = 1e-4
    every: int = 10
    most: float = 1.0
    which: str = "chosen"
    criterion: str | Criterion = "l1"
    granularity: str | Granularity = "channel"
    budget: float | str | Budget = 0.5
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_above_zero("delta", self.delta)
        check_above_zero("most", self.most)
        check_whole("every", self.every)
        if self.which not in _WHICH:
            raise OptionError(f"which: expected one of {', '.join(_WHICH)}, got {self.which!r}")

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Find the units, and choose those to be removed."""
        if self.which != "chosen":
            lists = lists_of(model, self.granularity, example, self.only, self.skip)
            kind = _All if self.which == "all" else _Ranked
            return kind(model, lists, self, masks)
        options = PruneOptions(only=self.only, masks=masks, seed=seed)
        chosen = prune(
            model,
            self.criterion,
            self.granularity,
            self.budget,
            skip=self.skip,
            example=example,
            options=options,
        )
        return _Chosen(model, chosen, self)

    def reached(self, step: int) -> float:
        """r at an optimizer step.

        Args:
            step: Counted from 0.

        >>> Growing(delta=0.25, every=10, most=0.6).reached(9), Growing(delta=0.25, every=10, most=0.6).reached(30)
        (0.25, 0.6)
        """
        return min(self.most, self.delta * (1 + step // self.every))


class _Chosen(Sparsifying):
    """Decay of the weights that masks remove."""

    def __init__(self, model: nn.Module, chosen: Masks, options: Growing) -> None:
        super().__init__(model)
        self._options = options
        self._take(chosen)

    def _take(self, chosen: Masks) -> None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self._chosen = chosen
        self._parts = [
            (parameters[name], ~mask.to(parameters[name].device))
            for name, mask in chosen.items()
            if not name.endswith("bias")
        ]

    def penalty(self) -> torch.Tensor:
        """r / 2 * sum of w**2 over the chosen weights."""
        total = super().penalty()
        for parameter, removed in self._parts:
            total = total + (parameter.float().square() * removed).sum()
        return self._options.reached(self.step) / 2 * total

    def tensors(self) -> dict[str, torch.Tensor]:
        """The choice."""
        return dict(self._chosen)

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with this choice."""
        super().load(tensors, step)
        self._take(Masks(tensors))

    def finish(self) -> Masks:
        """Remove the chosen units."""
        self.masks = self._chosen
        self.masks.apply_(self.model)
        return self.masks


class _All(Sparsifying):
    """Decay of all units alike."""

    def __init__(
        self, model: nn.Module, lists: tuple[UnitList, ...], options: Growing, masks: Masks | None
    ) -> None:
        super().__init__(model, masks)
        self._lists, self._options = lists, options

    def penalty(self) -> torch.Tensor:
        """r / 2 * sum of squared norms."""
        total = super().penalty()
        for units in self._lists:
            total = total + squares(units).sum()
        return self._options.reached(self.step) / 2 * total


class _Ranked(_All):
    """Decay of each unit by its own factor, which grows faster for small ones."""

    def __init__(
        self, model: nn.Module, lists: tuple[UnitList, ...], options: Growing, masks: Masks | None
    ) -> None:
        super().__init__(model, lists, options, masks)
        self._factors: dict[str, torch.Tensor] = {}
        self._grow()

    def penalty(self) -> torch.Tensor:
        """Half the sum of each unit's r times its squared norm."""
        total = Sparsifying.penalty(self)
        for units in self._lists:
            total = total + (self._factors[units.name] * squares(units)).sum()
        return total / 2

    def after_step(self) -> None:
        """Let every r grow where it is time."""
        super().after_step()
        if self.step % self._options.every == 0:
            self._grow()

    @torch.no_grad()
    def _grow(self) -> None:
        for units in self._lists:
            found = squares(units)
            spread = found.max() - found.min()
            rank = (found.max() - found) / spread if bool(spread > 0) else torch.zeros_like(found)
            grown = self._factors.get(units.name, 0.0) + self._options.delta * rank
            self._factors[units.name] = grown.clamp(max=self._options.most)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Each unit's r."""
        return dict(self._factors)

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with these."""
        super().load(tensors, step)
        for name, factors in self._factors.items():
            factors.copy_(tensors[name])
