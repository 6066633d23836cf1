"""`prune`: criterion x granularity x budget -> `Masks`. The model itself is never changed.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
>>> masks = prune(model, criterion="magnitude", granularity="filter", budget=0.5, skip="3")
>>> masks["0.weight"].flatten(1).any(1).sum().item()
4
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.budget import Budget, BudgetLike, Limits
from secateur.core import schedule as schedules
from secateur.core.context import Context, Loss
from secateur.core.left_alone import say_left_alone
from secateur.core.masks import Masks, count_true
from secateur.core.model_kinds import plain_model
from secateur.core.targets import Pattern
from secateur.criteria import Criterion, CriterionLike
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.execution.example import ComparedByCall, Example, Training, check_training, first_example
from secateur.execution.sound_weights import check_loaded
from secateur.execution.verb import verb
from secateur.granularity import Granularity, GranularityLike
from secateur.pruning.connectivity import raise_if_disconnected
from secateur.pruning.scored_units import ScoredUnits, rules_of
from secateur.pruning.selection import selection_of
from secateur.pruning.taking_part import targets_of
from secateur.pruning.unit_masks import masks_of

__all__ = ["PruneOptions", "budget_of", "prune"]

ScheduleLike = schedules.Schedule | type[schedules.Schedule] | int | Sequence[float] | None
"""Every form in which a schedule is given: a value or a class, a number of equal rounds, a list of levels, or None
for one round.
"""


@dataclass(frozen=True, eq=False)
class PruneOptions(ComparedByCall):
    """The limits of a call of `prune`: the weights that take part, earlier masks, and floors.

    Args:
        only: Patterns of the layers that take part; None means all. See `core.targets.select`.
        parameters: Patterns of bare parameters, biases or norm weights that take part besides.
        schedule: Reaches the share in rounds. Criteria whose scores depend on removed weights score again in each.
        masks: Those of an earlier call: weights that they removed stay removed and count towards the budget.
        regrow: Whether weights that `masks` removed may be kept again.
        at_least: Fewest units that remain in every layer, or a table of patterns to such numbers.
        at_most: The largest share that a layer may lose, or a table of patterns to shares.
        allow_collapse: Whether masks that disconnect the network are accepted.
        seed: The seed of everything random.
        training: What the model is called with in training, where the cut one has to run too, as `ProofOptions` says:
            True for the example itself, False where it is never trained, or another example, such as (images, targets).

    Raises:
        OptionError: `training` is None.

    >>> PruneOptions(only=["features.*"], at_least=1).regrow
    False
    """

    only: Pattern | Sequence[Pattern] | None = None
    parameters: Pattern | Sequence[Pattern] | None = None
    schedule: ScheduleLike = None
    masks: Masks | Mapping[str, torch.Tensor] | None = None
    regrow: bool = False
    at_least: Limits = None
    at_most: Limits = None
    allow_collapse: bool = False
    seed: int = 0
    training: Training = True

    def __post_init__(self) -> None:
        check_training(self.training)


@verb
@torch.no_grad()
def prune(
    model: nn.Module,
    criterion: CriterionLike | Sequence[CriterionLike] = "magnitude",
    granularity: GranularityLike = "element",
    budget: BudgetLike = 0.5,
    *,
    skip: Pattern | Sequence[Pattern] | None = None,
    example: Example = None,
    data: Iterable[object] | None = None,
    loss: Loss | None = None,
    options: PruneOptions | None = None,
) -> Masks:
    """Decide which weights are removed.

    Args:
        model: Any PyTorch model; it is not changed.
        criterion: How weights are scored: a word such as "l2", or a value such as `sc.criteria.Taylor(mode="eval")`;
            with several granularities also a list, one for each.
        granularity: What is removed as one unit: a word such as "channel", or a value. A list, such as
            ["layer", "channel"], removes several kinds under one budget; see `secateur.budget`.
        budget: How much is removed: the share of every tensor, or a value such as `sc.budget.Macs(keep=0.5)`.
        skip: Patterns of layers that are left alone. See `secateur.core.targets.select`.
        example: One input as the model is called with it, where one is needed (granularity "channel", budgets on cost).
        data: Batches (inputs, targets) for criteria that score on data.
        loss: A function of outputs and targets; not needed where the model's output holds a loss.
        options: Which layers take part, earlier masks, a schedule, floors and the rest.

    Returns:
        One boolean tensor per parameter that takes part, True where the weight is kept.

    Raises:
        NothingToDoError: Nothing takes part, or nothing would be removed.
        BudgetNotMetError: No choice meets the budget.
        CollapseError: The masks disconnect the network, and `allow_collapse` is not set.
        OptionError: An option is wrong, or the model is of a kind that cannot be worked on (TorchScript, int8).
        DataError: The criterion needs data or an example that was not given.
    """
    model = plain_model(model)
    asked = options if options is not None else PruneOptions()
    named: list[CriterionLike] = (
        [*criterion] if isinstance(criterion, Sequence) and not isinstance(criterion, str) else [criterion]
    )
    if not named:
        raise OptionError("criterion: expected one, or one for each granularity, got an empty list")
    rules: list[Criterion] = [criteria.registry.make(each) for each in named]
    grain: Granularity = granularities.registry.make(granularity)
    final = budget_of(budget)
    context = Context(data=data, loss=loss, example=example, training=asked.training, seed=asked.seed)
    for rule, name in zip(rules, named, strict=True):
        _check_inputs(rule, name, context)
    scorers = rules if len(rules) > 1 else rules[0]
    _check_blocks(rules_of(scorers, grain))
    of_layers = any(rule.of_layers for rule in rules)
    targets = targets_of(model, grain, context, asked.only, skip, asked.parameters, of_layers)
    if asked.only is None and asked.parameters is None:
        how = "a criterion of single weights, such as 'magnitude', and " if of_layers else ""
        how += "options=sc.PruneOptions("
        # a granularity that follows the forward finds the weights that belong to no layer by itself
        among = grain.left_out(model, targets, context) if granularities.needs_example(grain) else None
        say_left_alone("prune", model, targets, skip, how, among)
    check_loaded({target.name: target.of(model) for target in targets})
    found = _checked_masks(asked.masks, model)
    rounds = _rounds(rules, final, asked, data)
    scored = ScoredUnits(model, scorers, grain, targets, context, None if asked.regrow else found)
    for number, step in enumerate(rounds):
        if number > 0:
            scored.restart(None if asked.regrow else found)
        chosen = step.choose(selection_of(scored, asked.at_least, asked.at_most))
        found = masks_of(model, scored.units, chosen, scored.start)
    assert found is not None
    _check_removes(found, final, grain, model, context)
    if not asked.allow_collapse:
        raise_if_disconnected(
            model, found, example if example is not None else _first_input(model, data, loss)
        )
    return found


def _check_blocks(pairs: Iterable[tuple[Criterion, Granularity]]) -> None:
    """Raise where a criterion of whole blocks meets another granularity: all its scores within a block are alike."""
    for rule, grain in pairs:
        if rule.of_blocks and not isinstance(grain, granularities.registry.get("layer")):
            raise OptionError(
                f"criterion {rule} scores whole blocks: expected granularity 'layer', got {grain}; take that, another "
                "criterion, or a list with one criterion for each granularity"
            )


def _check_removes(
    masks: Masks, budget: Budget, granularity: Granularity, model: nn.Module, context: Context
) -> None:
    """Raise where the masks keep every weight."""
    if all(count_true(mask) == mask.numel() for mask in masks.values()):
        held = granularity.held_back(model, context)
        raise NothingToDoError(
            f"{budget} with granularity {granularity} removes nothing from {type(model).__name__}: ask for a "
            "larger share, or lower the floors (at_least, at_most)" + (f"; {held}" if held else "")
        )


def _rounds(
    rules: Sequence[Criterion], final: Budget, options: PruneOptions, data: Iterable[object] | None
) -> tuple[Budget, ...]:
    """The budgets of the schedule's rounds."""
    rounds = final.steps(schedules.make(options.schedule))
    if not any(rule.rescore for rule in rules):
        return rounds[-1:]  # the same scores in every round: the last round contains the others
    if len(rounds) > 1 and isinstance(data, Iterator):
        raise DataError(
            f"the schedule has {len(rounds)} rounds and each reads the data, but an iterator can be read only once; "
            "pass list(data) or a DataLoader"
        )
    return rounds


def _checked_masks(masks: Masks | Mapping[str, torch.Tensor] | None, model: nn.Module) -> Masks | None:
    """Earlier masks, checked against the model."""
    if masks is None:
        return None
    found = masks if isinstance(masks, Masks) else Masks(masks)
    found.check(model)
    return found


def budget_of(value: BudgetLike) -> Budget:
    """A budget from a number, a name or a value, with help where a number was meant.

    Args:
        value: The share removed of every tensor, the word of a budget, its class, or a value.

    Raises:
        OptionError: The budget needs options, or the number was given as text.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found: Budget = budgets.registry.make(float(value))
        return found
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            raise OptionError(f"budget: got the text {value!r}; write the number {number:g} without quotes")
    try:
        found = budgets.registry.make(value)
        return found
    except TypeError as error:
        name = value if isinstance(value, str) else getattr(value, "__name__", value)
        raise OptionError(
            f"budget {name!r} needs its options: pass a value such as sc.budget.PerTensor(0.5) ({error})"
        ) from None


def _check_inputs(rule: Criterion, named: CriterionLike, context: Context) -> None:
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
    if rule.needs_data and not rule.needs_loss and context.data is None:
        raise DataError(
            f"criterion {name} scores on data: pass data= (batches of inputs; it asks for no labels and no loss)"
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


def _first_input(model: nn.Module, data: Iterable[object] | None, loss: Loss | None) -> Example:
    """One example of the data, or None if reading one would use the data up."""
    try:
        return first_example(data, labels_apart=loss is not None, single=True, model=model)
    except DataError:
        return None
