"""`allocate`: search for how much each layer loses, within a limit of multiply-accumulates or parameters.

A scan cuts each layer alone; here whole choices are evaluated, by one of the methods of `secateur.allocation`.

>>> import torch
>>> from torch import nn
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
>>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
>>> found = allocate(model, [(x, model(x).argmax(1))], "net_adapt", keep=0.5, example=x[:1])
>>> found.cost <= 0.5, found.value >= found.uniform, sorted(found.shares)
(True, True, ['0', '2'])
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur import allocation, criteria
from secateur import budget as budgets
from secateur import granularity as granularities
from secateur.allocation import Allocator, AllocatorLike, Gone, Space
from secateur.budget import Limits, Selection
from secateur.core.context import Context, Loss
from secateur.core.model_kinds import plain_model
from secateur.core.targets import Pattern
from secateur.criteria import Criterion, CriterionLike
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.execution.example import Example, first_example
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb
from secateur.granularity import Granularity, GranularityLike
from secateur.pruning.scored_units import ScoredUnits
from secateur.pruning.scoring import unit_scores
from secateur.pruning.selection import selection_of
from secateur.pruning.taking_part import targets_of
from secateur.pruning.unit_masks import masks_of
from secateur.sensitivity.evaluation import Evaluation

if TYPE_CHECKING:
    from secateur.budget.per_layer import PerLayer
    from secateur.pruning.cost import CostModel

__all__ = ["AllocateOptions", "FoundShares", "allocate"]

_COSTS = ("macs", "params")


@dataclass(frozen=True)
class AllocateOptions:
    """The rarer options of `allocate`.

    Args:
        of: What is limited: "macs" or "params".
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.
        data: Batches for a criterion that scores on data, and for `grad_nas`.
        loss: A function of outputs and targets, where the criterion or `grad_nas` needs one.
        tune: Called with a copy of the model under each choice before it is evaluated: a short fine-tuning, or
            new statistics of batch norm. Masks are applied again after it.
        at_least: Fewest units that remain in every layer, or a table of patterns to such numbers.
        higher_is_better: Whether a higher value of `evaluate` is better; False for a loss.
        progress: Called after each evaluation with the number done and the best value so far.
        seed: For what is drawn at random.
    """

    of: str = "macs"
    only: Pattern | Sequence[Pattern] | None = None
    skip: Pattern | Sequence[Pattern] | None = None
    data: Iterable[object] | None = None
    loss: Loss | None = None
    tune: Callable[[nn.Module], object] | None = None
    at_least: Limits = 1
    higher_is_better: bool = True
    progress: Callable[[int, float], None] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in _COSTS:
            raise OptionError(f"of: expected one of {', '.join(_COSTS)}, got {self.of!r}")


@dataclass(frozen=True)
class FoundShares:
    """What `allocate` found.

    Attributes:
        method: How it was searched.
        shares: The share that each list of units loses.
        value: The value of the model with it, as `evaluate` returns it.
        dense: The value of the dense model.
        uniform: Its value with one share for all lists at the same limit.
        cost: The share of the dense cost that remains.
        of: What the cost is: "macs" or "params".
        tried: The number of evaluations.
    """

    method: str
    shares: dict[str, float]
    value: float
    dense: float
    uniform: float
    cost: float
    of: str
    tried: int

    @property
    def budget(self) -> PerLayer:
        """The budget with this allocation, for `prune` with the same criterion and granularity."""
        found: PerLayer = budgets.registry.get("per_layer")({n: s for n, s in self.shares.items() if s > 0.0})
        return found

    def __str__(self) -> str:
        width = max(len(name) for name in self.shares)
        lines = [f"{name:<{width}}  {share:.4g}" for name, share in self.shares.items()]
        return "\n".join(
            [
                *lines,
                f"{self.method}: value {self.value:.4f} at {self.cost:.4f} of the {self.of}, after {self.tried} "
                f"evaluations; equal shares {self.uniform:.4f}, dense {self.dense:.4f}",
            ]
        )


@verb
def allocate(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float] | Iterable[object],
    method: AllocatorLike = "net_adapt",
    *,
    keep: float,
    granularity: GranularityLike = "channel",
    criterion: CriterionLike = "l2",
    example: Example = None,
    options: AllocateOptions | None = None,
) -> FoundShares:
    """Search for how much each layer loses; the model stays as it is.

    Args:
        model: The model.
        evaluate: A function of the model that returns a number, or batches (inputs, targets) for top-1 accuracy. Use
            images that no test looks at.
        method: How to search: `net_adapt`, `annealing`, `amc`, `fast_nas`, `grad_nas`, `knapsack`, or a value such as
            `sc.allocation.Annealing(rounds=50)`.
        keep: The share of the cost that remains at most.
        granularity: What is removed as one unit: a word such as "channel", or a value.
        criterion: How weights are scored: in each list the units of the lowest scores are removed.
        example: One input; by default the first of the batches.
        options: What is limited, which layers take part, a short training and the rest.

    Returns:
        The share of each list, and the budget for `prune`.

    Raises:
        BudgetNotMetError: The limit cannot be met.
        NothingToDoError: The granularity finds no unit.
        OptionError: An option is wrong.
        DataError: `evaluate` returned NaN, or an example is missing.
    """
    model = plain_model(model)
    asked = options if options is not None else AllocateOptions()
    finder: Allocator = allocation.registry.make(method)
    budgets.registry.get("macs")(keep)  # checks the share that remains
    evaluation = Evaluation.of(evaluate)
    if example is None and evaluation.batches:
        example = first_example(evaluation.batches, single=True, model=model)
    rule: Criterion = criteria.registry.make(criterion)
    grain: Granularity = granularities.registry.make(granularity)
    data = asked.data if asked.data is not None else evaluation.batches or None
    context = Context(data=data, loss=asked.loss, example=example, seed=asked.seed)
    targets = targets_of(model, grain, context, asked.only, asked.skip, None, rule.of_layers)
    trial = _Trial(ScoredUnits(model, rule, grain, targets, context), evaluation, asked)
    return _found(trial.space(keep), finder, asked)


def _found(space: Space, finder: Allocator, asked: AllocateOptions) -> FoundShares:
    """Search, and put the result beside equal shares and the dense model."""
    if not any(space.most):
        raise NothingToDoError(
            f"allocate: at_least={asked.at_least!r} leaves no unit that may go; lower it, or let more layers take part"
        )
    gone = finder.search(space, asked.seed)
    sign = 1 if asked.higher_is_better else -1
    uniform = space.fitted([0.0] * len(space.names))
    value, even, dense = (sign * space.value(each) for each in (gone, uniform, space.none))
    if not any(gone):
        raise NothingToDoError(
            f"allocate: keep={space.limit} removes nothing; keep less, or let more layers take part"
        )
    shares = {name: each / count for name, each, count in zip(space.names, gone, space.counts, strict=True)}
    return FoundShares(str(finder), shares, value, dense, even, space.cost(gone), asked.of, len(space.tried))


class _Trial:
    """A model under one choice after the other: its cost and its value."""

    def __init__(self, scored: ScoredUnits, evaluation: Evaluation, options: AllocateOptions):
        self._scored, self._evaluation, self._options = scored, evaluation, options
        self._selection: Selection = selection_of(scored, options.at_least)
        self._costs: CostModel = scored.costs()
        self._dense = self._costs.dense(options.of)
        self._best: float | None = None
        self._done = 0

    def space(self, keep: float) -> Space:
        """The choices, as the methods see them."""
        lists = self._selection.candidates
        losses = self._losses if self._options.loss is not None else None
        return Space(
            [each.name for each in lists],
            [each.count for each in lists],
            [each.most for each in lists],
            self._cost,
            self._value,
            keep,
            losses,
        )

    def _chosen(self, gone: Gone) -> dict[str, torch.Tensor]:
        lists = self._selection.candidates
        return {each.name: each.drop(count) for each, count in zip(lists, gone, strict=True)}

    def _cost(self, gone: Gone) -> float:
        return self._costs.remaining(self._options.of, self._chosen(gone)) / self._dense

    def _value(self, gone: Gone) -> float:
        """The value of a copy of the model under the masks of a choice; higher is better."""
        model = copy.deepcopy(self._scored.model)
        masks = masks_of(model, self._scored.units, self._chosen(gone), None)
        masks.apply_(model)
        if self._options.tune is not None and any(gone):
            self._options.tune(model)
            masks.apply_(model)
        with undisturbed(model, mode="eval"), torch.no_grad():
            value = self._evaluation.plainly(model)[0]
        found = value if self._options.higher_is_better else -value
        self._done += 1
        self._best = found if self._best is None else max(self._best, found)
        if self._options.progress is not None:
            self._options.progress(self._done, self._best if self._options.higher_is_better else -self._best)
        return found

    def _losses(self) -> list[list[float]]:
        """For every list the sum of the estimates of the units that leave first."""
        scored = self._scored
        if scored.context.data is None:
            raise DataError("grad_nas: expected data= to estimate the rise of the loss on, got none")
        taylor = criteria.registry.make("taylor")
        with undisturbed(scored.model, mode="eval"):
            estimates = unit_scores(taylor, scored.model, scored.targets, scored.units, scored.context)
        found = []
        for each in self._selection.candidates:
            order = each.ranked.sort(stable=True).indices
            found.append(list(accumulate(estimates[each.name][order][: each.most].tolist())))
        return found
