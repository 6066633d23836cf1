"""`prune`: criterion x granularity x budget -> `Masks`. The model itself is never changed.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
>>> masks = prune(model, criterion="magnitude", granularity="filter", budget=0.5, skip=["3"])
>>> masks["0.weight"].flatten(1).any(1).sum().item()
4
"""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.budget import Selection
from secateur.budget._limits import floors
from secateur.core import schedule as schedules
from secateur.core.context import Context, Loss
from secateur.core.masks import Masks, count_true
from secateur.core.targets import Pattern, select
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.execution.example import first_example
from secateur.pruning.connectivity import check_connected
from secateur.pruning.scoring import masks_of, pools_of, worth_of

__all__ = ["budget_of", "prune"]


@torch.no_grad()
def prune(
    model: nn.Module,
    criterion: Any = "magnitude",
    granularity: Any = "element",
    budget: Any = 0.5,
    *,
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    example: Any = None,
    schedule: Any = None,
    masks: Masks | Mapping[str, torch.Tensor] | None = None,
    at_least: int | Mapping[Any, int] | None = None,
    at_most: float | Mapping[Any, float] | None = None,
    regrow: bool = False,
    allow_collapse: bool = False,
    seed: int = 0,
) -> Masks:
    """Decide which weights go.

    `criterion`, `granularity` and `budget` are each a name or a value; a bare number is the share removed
    of every tensor. `only`, `skip` and `parameters` say which weights (see `core.targets.select`). `data`,
    `loss` and `example` are for the criteria that need them. With a `schedule` the share is reached in
    rounds, and criteria whose scores depend on what is already gone are asked again in each. `masks` are
    those of an earlier call: what they removed stays removed and counts towards the budget, unless
    `regrow`. `at_least` units stay in every layer (or in those a table names); `at_most` is the largest
    share a layer may lose. A mask that disconnects the network is a `CollapseError` unless
    `allow_collapse`.
    """
    rule = criteria.registry.make(criterion)
    grain = granularities.registry.make(granularity)
    plan = budget_of(budget)
    rounds = schedules.make(schedule)
    targets = select(model, only, skip, parameters)
    context = Context(data=data, loss=loss, example=example, seed=seed)
    _check_inputs(rule, criterion, context)
    for target in targets:
        if target.of(model).device.type == "meta":
            raise OptionError(
                f"{target.name}: expected real weights, got a tensor on the meta device; load the model first"
            )
    if masks is not None:
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        masks.check(model)
    steps = plan.steps(rounds)
    if not rule.rescore:
        steps = steps[-1:]  # the same scores in every round: the last round contains the others
    elif len(steps) > 1 and isinstance(data, Iterator):
        raise DataError(
            f"the schedule has {len(steps)} rounds and each reads the data, but an iterator can be "
            "read only once; pass "
            "list(data) or a DataLoader"
        )
    pieces = grain.units(model, targets, context)
    if not pieces:
        raise NothingToDoError(f"granularity {grain} finds no piece to cut in {type(model).__name__}")
    found = masks
    view: nn.Module | None = None
    worth: dict[str, torch.Tensor] = {}
    for step in steps:
        start = None if regrow else found
        if not worth or rule.rescore:
            view = _masked_view(model, start, view)
            worth = worth_of(rule, view or model, targets, pieces, context)
        contest = Selection(pools_of(model, pieces, worth, targets, start), model, targets, context)
        contest = replace(contest, meter=partial(_meter, model, pieces, context, start))
        contest = replace(contest, pools=floors(contest, at_least, at_most))
        found = masks_of(model, pieces, step.choose(contest), start)
    assert found is not None
    if all(count_true(mask) == mask.numel() for mask in found.values()):
        raise NothingToDoError(
            f"{plan} with granularity {grain} removes nothing from {type(model).__name__}: ask for a "
            "larger share, or lower the floors (at_least, at_most)"
        )
    if not allow_collapse:
        check_connected(model, found, example if example is not None else _first_input(data, loss))
    return found


def _meter(*known: Any) -> Any:
    """What measures the cost of a choice; imported only for the budgets that ask."""
    from secateur.pruning.cost import CostModel

    return CostModel(*known)


def budget_of(value: Any) -> budgets.Budget:
    """A budget from a number, a name or a value, with help where a number was meant."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return budgets.registry.make(float(value))
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            raise OptionError(f"budget: got the text {value!r}; write the number {number:g} without quotes")
    try:
        return budgets.registry.make(value)
    except TypeError as error:
        name = value if isinstance(value, str) else value.__name__
        raise OptionError(
            f"budget {name!r} needs its options: pass a value such as sc.budget.PerTensor(0.5) ({error})"
        ) from None


def _check_inputs(rule: criteria.Criterion, named: Any, context: Context) -> None:
    """Raise when a criterion's inputs are missing, before any work."""
    name = named if isinstance(named, str) else repr(rule)
    if isinstance(context.seed, bool) or not isinstance(context.seed, int):
        raise OptionError(f"seed: expected a whole number, got {context.seed!r}")
    if context.data is not None and not isinstance(context.data, Iterable):
        raise DataError(
            f"data: expected an iterable of batches, got {type(context.data).__name__}; write data=[(inputs, "
            "targets)], or pass a DataLoader"
        )
    if context.loss is not None and not callable(context.loss):
        raise OptionError(
            f"loss: expected a function of outputs and targets, such as torch.nn.functional.cross_entropy, got "
            f"{context.loss!r}"
        )
    if rule.needs_data and context.data is None:
        missing = "data=" if context.loss is not None else "data= and loss="
        raise DataError(
            f"criterion {name} scores on data: pass {missing} (data: batches of (inputs, targets); loss: a "
            "function of outputs and targets, not needed where the model's own output holds a loss)"
        )
    if rule.needs_example and context.example is None and context.data is None:
        raise DataError(
            f"criterion {name} needs to know one input: pass example= (a tensor, or a tuple of arguments)"
        )


def _first_input(data: Iterable[Any] | None, loss: Loss | None) -> Any:
    """One example of the data, or None where none can be had without using the data up."""
    try:
        return first_example(data, labels_apart=loss is not None, single=True)
    except DataError:
        return None


def _masked_view(model: nn.Module, masks: Masks | None, view: nn.Module | None) -> nn.Module | None:
    """A copy of the model with the masks applied, or None where the model itself already looks like that."""
    if masks is None:
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if view is None:
        if not any(
            bool((parameters[name][~mask.to(parameters[name].device)] != 0).any())
            for name, mask in masks.items()
        ):
            return None
        view = copy.deepcopy(model)
    masks.apply_(view)  # masks only grow, so applying the new ones is enough
    return view
