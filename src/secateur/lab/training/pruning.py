"""`GradualPruning`: sparsity that rises with the optimizer's steps along a cubic, and is then held.

It rises fast at first and slower towards the end (Zhu and Gupta, 2017), so that every pruning is followed by steps that
recover from it. The sparsity is a function of the step alone, so a checkpoint needs only the masks in force.

>>> plan = GradualPruning(0.9, start=0.5, until=0.5, every=10)
>>> [round(plan.level(step, 200), 4) for step in (0, 40, 90, 100, 199)]
[0.5, 0.8136, 0.8996, 0.9, 0.9]
>>> [step for step in range(200) if plan.is_due(step, 200)]
[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.core.masks import Masks
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError
from secateur.execution.example import Example
from secateur.pruning.prune import PruneOptions, prune

if TYPE_CHECKING:
    from secateur.criteria import Criterion
    from secateur.granularity import Granularity

__all__ = ["GradualPruning"]


@dataclass(frozen=True)
class GradualPruning:
    """How weights are removed while training runs. What is removed stays removed.

    Criteria that score on data are refused: with them `prune` makes the masks in your own loop, and
    `hold(...).update(masks)` puts them in force.

    Args:
        sparsity: The share removed in the end: of weights, or of units where the granularity has larger ones.
        start: The share removed before the first step.
        until: The share of all optimizer steps after which the final sparsity is reached.
        every: Optimizer steps between two prunings.
        power: The exponent of the curve; 3 is a cubic.
        criterion: Scores the weights that remain.
        granularity: What is cut as one unit.
        budget: The name of a budget that takes a share (`overall`, `per_tensor`, ...): which units compete.
        only: Layers to prune, by name or pattern.
        skip: Layers to leave alone.
        at_least: Fewest units that remain in every layer.
        at_most: The largest share that a layer may lose.

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
    criterion: str | Criterion = "magnitude"
    granularity: str | Granularity = "element"
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
        if self.at_most is not None:
            budgets.check_share("at_most", self.at_most)
        if self.at_least is not None and not (type(self.at_least) is int and self.at_least >= 0):
            raise OptionError(
                f"at_least counts units: expected a whole number of at least 0, got {self.at_least!r}; leave it out to "
                "set no limit"
            )
        budgets.registry.get(self.budget).at(self.sparsity)
        if criteria.registry.make(self.criterion).needs_data:
            raise OptionError(
                f"criterion: {self.criterion} scores on data, which is not read while training runs: expected one of "
                "the weights alone, such as 'magnitude'; or make the masks in your own loop, by sc.prune(..., "
                "data=...), and put them in force by held.update(masks)"
            )
        granularities.registry.make(self.granularity)

    @property
    def needs_example(self) -> bool:
        """Whether `masks` needs an example: the units, or the scores, are read off the model's forward."""
        grain = granularities.registry.make(self.granularity)
        rule = criteria.registry.make(self.criterion)
        return granularities.needs_example(grain) or bool(rule.needs_example)

    def _last(self, steps: int) -> int:
        """The step, of `steps`, at which the final sparsity is reached."""
        return max(1, min(round(self.until * steps), steps - 1))

    def level(self, step: int, steps: int) -> float:
        """The sparsity from this step on.

        Args:
            step: Counted from 0.
            steps: Optimizer steps of the whole training.

        Returns:
            The share removed.

        >>> GradualPruning(0.9).level(50, 100), GradualPruning(0.9).level(0, 100)
        (0.9, 0.0)
        """
        left = 1 - step / self._last(steps)
        if left <= 0:
            return self.sparsity
        return self.sparsity - (self.sparsity - self.start) * left**self.power

    def is_due(self, step: int, steps: int) -> bool:
        """Whether masks are made before this step: every `every` steps, and where the final sparsity is reached.

        Args:
            step: Counted from 0.
            steps: Optimizer steps of the whole training.
        """
        last = self._last(steps)
        return step == last or (step < last and step % self.every == 0)

    def masks(
        self, model: nn.Module, step: int, steps: int, before: Masks | None, example: Example = None
    ) -> Masks | None:
        """The masks from this step on.

        Args:
            model: The network as it is at this step.
            step: Counted from 0.
            steps: Optimizer steps of the whole training.
            before: The masks in force.
            example: One input as the model is called with it, where `needs_example` says so.

        Returns:
            The masks; `before` where nothing more is removed at this step.

        Raises:
            DataError: `needs_example` is true, and there is none.
        """
        level = self.level(step, steps)
        if level <= 0 or (before is not None and self._of_weights() and level <= before.sparsity):
            return before
        try:
            made = self._pruned(model, level, before, example)
        except NothingToDoError:
            if level < self.sparsity:
                return before  # less than one unit so far
            raise
        except BudgetNotMetError:
            if before is None or before.sparsity < self._pruned(model, level, None, example).sparsity:
                raise
            return before  # which removes more
        return before if not self._of_weights() and made == before else made

    def _of_weights(self) -> bool:
        """Whether a unit is one weight, so that the share of units is the sparsity of the masks."""
        return isinstance(
            granularities.registry.make(self.granularity), granularities.registry.get("element")
        )

    def _pruned(self, model: nn.Module, level: float, before: Masks | None, example: Example) -> Masks:
        """The masks that remove this share."""
        return prune(
            model,
            self.criterion,
            self.granularity,
            budgets.registry.get(self.budget).at(level),
            skip=self.skip,
            example=example,
            options=PruneOptions(only=self.only, masks=before, at_least=self.at_least, at_most=self.at_most),
        )
