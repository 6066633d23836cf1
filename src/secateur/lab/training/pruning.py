"""Pruning while training: sparsity rises with the optimizer's steps along a cubic, and is then held.

Fast while there is most to take, slower towards the end (Zhu and Gupta, 2017), so that every cut is followed by
steps that mend it. `GradualPruning` is the plan, a frozen value; `levels` of it are a function of the step alone, so a
checkpoint needs the masks in force and nothing more.

>>> plan = GradualPruning(0.9, start=0.5, until=0.5, every=10)
>>> [round(plan.level(step, 200), 4) for step in (0, 40, 90, 100, 199)]
[0.5, 0.8136, 0.8996, 0.9, 0.9]
>>> [step for step in range(200) if plan.is_due(step, 200)]
[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur import budget as budgets
from secateur.core.masks import Masks
from secateur.errors import NothingToDoError, OptionError
from secateur.pruning.prune import prune

__all__ = ["GradualPruning"]


@dataclass(frozen=True)
class GradualPruning:
    """Prune up to `sparsity`, from `start` on, while the first `until` of all optimizer steps are made.

    The masks are made anew every `every` steps: what is gone stays gone, and of what is left the criterion
    chooses. `budget` says who competes with whom (a name of a budget that takes a share: `overall`,
    `per_tensor`, ...). Criteria that read data need a loop of your own: `hold(...).update(masks)`.

    >>> model = nn.Linear(4, 4)
    >>> GradualPruning(0.75).masks(model, 100, 100, None).sparsity
    0.75
    >>> GradualPruning(0.5, start=0.8)
    Traceback (most recent call last):
    secateur.errors.OptionError: start: expected a share 0 <= start <= sparsity (0.5), got 0.8
    """

    sparsity: float
    start: float = 0.0
    until: float = 0.5
    every: int = 100
    power: float = 3.0
    criterion: Any = "magnitude"
    granularity: Any = "element"
    budget: str = "overall"
    only: str | Sequence[str] | None = None
    skip: str | Sequence[str] | None = None
    at_least: int | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise OptionError(f"sparsity: expected a share 0 < sparsity < 1, got {self.sparsity}")
        if not 0 <= self.start <= self.sparsity:
            raise OptionError(
                f"start: expected a share 0 <= start <= sparsity ({self.sparsity:g}), got {self.start}"
            )
        if not 0 < self.until <= 1:
            raise OptionError(f"until: expected a share of the training 0 < until <= 1, got {self.until}")
        if self.every < 1:
            raise OptionError(f"every: expected at least 1 step, got {self.every}")
        if not self.power > 0:
            raise OptionError(f"power: expected a number above 0, got {self.power}")
        budgets.registry.get(self.budget).at(self.sparsity)

    def _last(self, steps: int) -> int:
        """The step at which the final sparsity is reached, of so many."""
        return max(1, min(round(self.until * steps), steps - 1))

    def level(self, step: int, steps: int) -> float:
        """The sparsity from this step on (counted from 0), of so many in the whole training.

        >>> GradualPruning(0.9).level(50, 100), GradualPruning(0.9).level(0, 100)
        (0.9, 0.0)
        """
        left = 1 - step / self._last(steps)
        if left <= 0:
            return self.sparsity
        return self.sparsity - (self.sparsity - self.start) * left**self.power

    def is_due(self, step: int, steps: int) -> bool:
        """Whether masks are made before this step: every so many, and where the final sparsity is reached."""
        last = self._last(steps)
        return step == last or (step < last and step % self.every == 0)

    def masks(self, model: nn.Module, step: int, steps: int, before: Masks | None) -> Masks | None:
        """The masks from this step on; `before` are those in force. None while nothing is to go yet."""
        level = self.level(step, steps)
        if level <= (0.0 if before is None else before.sparsity):
            return before
        try:
            return prune(
                model,
                self.criterion,
                self.granularity,
                budgets.registry.get(self.budget).at(level),
                only=self.only,
                skip=self.skip,
                masks=before,
                at_least=self.at_least,
                at_most=self.at_most,
            )
        except NothingToDoError:
            if level < self.sparsity:
                return before  # less than one weight so far
            raise
