"""`prune`: choose the weights to remove by criterion, granularity and budget, and set them to zero.

`budget = {name = "scanned", floor = 0.5}` takes each layer's sparsity from an earlier `scan` step: the highest at which
the scanned accuracy stays above the floor. With `keep = 0.4` instead (and `cost = "params"`, "size" or "macs") it is
the combination of least predicted loss that keeps this share of the cost. `scan` is the label of the scan step.

>>> PruneStep(criterion="l1", granularity="filter", budget=0.5, skip=["fc"]).budget
0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from torch import nn

from secateur import budget, criteria, granularity
from secateur.budget import Budget
from secateur.core import schedule
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.schedule import Schedule
from secateur.core.targets import select
from secateur.criteria import Criterion
from secateur.errors import NothingToDoError, OptionError, RecipeError, near
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Options, Plugin, Plugins, Result, Step, Work, leaving_one, make
from secateur.lab.steps.scan import FILE
from secateur.pruning.connectivity import FAINT, Collapse, find_collapsed, rescale_, signal_left
from secateur.pruning.prune import PruneOptions, budget_of, prune
from secateur.pruning.scored_units import rules_of
from secateur.sensitivity.scan import Allocation, Scan

__all__ = ["PruneStep", "mask_rows"]

Patterns = str | tuple[str, ...] | None
_SCHEDULES = {
    "one_shot": "OneShot",
    "iterative": "Iterative",
    "gradual": "Gradual",
    "exponential": "Exponential",
}


class Scanned(Options):
    """A budget from an earlier `scan` step: give `floor`, or `keep` with `cost`."""

    name: str = "scanned"
    scan: str = Field("scan", description="label of the scan step")
    floor: float | None = Field(None, description="the metric at which a layer, pruned alone, stops")
    keep: float | None = Field(None, gt=0, le=1, description="share of the scanned layers' cost that remains")
    cost: str = Field("macs", description="the cost that `keep` is a share of: macs, params or size")


class PruneStep(Step):
    """Choose weights by criterion, granularity and budget, and set them to zero."""

    measures: ClassVar[tuple[str, ...] | None] = (
        "mask_sparsity",
        "remaining",
        "scan_predicted",
        "chosen_sparsity",
        "collapsed_layers",
        "signal_left",
    )
    criterion: Plugins = Field(
        "magnitude",
        description="scores the weights: a name, or a class of your own, module:Class; a list has one for each "
        "granularity",
    )
    granularity: Plugins = Field(
        "element", description="what is cut as one unit; a list, as ['layer', 'channel'], shares one budget"
    )
    budget: Plugin = Field(
        0.5,
        description="which units compete and how many are removed; a number: that share of every tensor; "
        "{name = 'scanned', floor = 0.5}: from an earlier scan step",
    )
    only: Patterns = Field(None, description="layers to prune, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    parameters: Patterns = Field(None, description="bare parameters to prune as well")
    schedule: int | tuple[float, ...] | dict[str, Any] | str | None = Field(
        None, description="rounds: a number, a list of levels, or a table with `name`"
    )
    at_least: int | dict[str, int] | None = Field(None, description="fewest units that remain in every layer")
    at_most: float | dict[str, float] | None = Field(None, description="the largest share a layer may lose")
    images: int = Field(10, ge=1, description="images of each class for criteria that need data")
    allow_collapse: bool = Field(False, description="accept masks that disconnect the network")
    rescale: bool = Field(
        False,
        description="scale the kept weights so that each tensor's sum of squares stays: for pruning before training",
    )

    def _criterion(self) -> Criterion | tuple[Criterion, ...]:
        """The criterion, or one for each granularity."""
        if isinstance(self.criterion, tuple):
            return tuple(make(criteria.registry, each) for each in self.criterion)
        found: Criterion = make(criteria.registry, self.criterion)
        return found

    def _budget(self, found: Allocation | None) -> Budget:
        if found is not None:
            return found.budget
        if isinstance(self.budget, dict) or (isinstance(self.budget, str) and ":" in self.budget):
            named: Budget = make(budget.registry, self.budget)
            return named
        return budget_of(self.budget)

    def _schedule(self) -> Schedule:
        value = self.schedule
        if not isinstance(value, (dict, str)):
            return schedule.make(value)
        options = {"name": value} if isinstance(value, str) else dict(value)
        word = options.pop("name", None)
        if word not in _SCHEDULES:
            raise RecipeError(
                f"step {self.label!r}: unknown schedule {word!r}: {near(str(word), _SCHEDULES)}"
            )
        cls = getattr(schedule, _SCHEDULES[word])
        for option in options:
            if option not in cls.__dataclass_fields__:
                known = near(option, cls.__dataclass_fields__)
                raise RecipeError(f"step {self.label!r}: schedule {word!r} has no option {option!r}: {known}")
        return cls(**{key: tuple(part) if isinstance(part, list) else part for key, part in options.items()})

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check names and options, and patterns against the model."""
        for rule, _ in rules_of(self._criterion(), make(granularity.registry, self.granularity)):
            rule.check_model(model)
        scanned = self._scanned()
        if scanned is not None:
            if scanned.scan not in before:
                raise RecipeError(
                    f"step {self.label!r}: budget: scan {scanned.scan!r} is no earlier step; "
                    + (near(scanned.scan, before) if before else "this is the first step")
                )
            if (scanned.floor is None) == (scanned.keep is None):
                raise RecipeError(
                    f"step {self.label!r}: budget 'scanned': give either floor (a value to stay above) or keep (a "
                    "share that remains)"
                )
        else:
            self._budget(None)
        self._schedule()
        select(model, self.only, self.skip, self.parameters)

    def _scanned(self) -> Scanned | None:
        """The budget, where it comes from a scan."""
        if not isinstance(self.budget, dict) or self.budget.get("name") != "scanned":
            return None
        for option in self.budget:
            if option not in Scanned.model_fields:
                known = near(option, Scanned.model_fields)
                raise RecipeError(f"step {self.label!r}: budget 'scanned' has no option {option!r}: {known}")
        try:
            return Scanned.model_validate(self.budget)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RecipeError(
                f"step {self.label!r}: budget 'scanned': {where}: {first['msg']}, got {first['input']!r}"
            ) from None

    def chosen(self) -> Table:
        """The options; without `rescale` where it is not used, so that addresses of older outcomes stay valid."""
        found = leaving_one(super().chosen())
        if not self.rescale:
            del found["rescale"]
        return found

    def refers(self) -> tuple[str, ...]:
        """The scan step that the budget comes from."""
        scanned = self._scanned()
        return () if scanned is None else (scanned.scan,)

    def _allocation(self, scanned: Scanned, work: Work) -> Allocation:
        """The scan's sparsities; refused where it measured another criterion or granularity."""
        data = work.earlier(scanned.scan).files.get(FILE)
        if data is None:
            raise OptionError(
                f"step {self.label!r}: budget: step {scanned.scan!r} is no scan; name one that is"
            )
        table = Scan.from_json(data.decode())
        for what, ours, theirs in (
            ("granularity", str(make(granularity.registry, self.granularity)), table.granularity),
            ("criterion", str(self._criterion()), table.criterion),
        ):
            if ours != theirs:
                raise OptionError(
                    f"step {self.label!r}: budget: step {scanned.scan!r} measured {what} {theirs}, and this step cuts "
                    f"by {ours}; give both the same"
                )
        found = table.allocate(scanned.floor, keep=scanned.keep, cost=scanned.cost)
        if not any(found.sparsities.values()):
            raise NothingToDoError(
                f"step {self.label!r}: budget: no scanned layer can lose anything at {scanned.model_dump()}; "
                "lower the floor, or scan lower levels"
            )
        return found

    def run(self, state: State, work: Work) -> Result:
        """Prune further: what earlier steps removed stays removed and counts towards the budget."""
        scanned = self._scanned()
        found = self._allocation(scanned, work) if scanned is not None else None
        state.model.to(work.device)
        images, labels = work.data.train.per_class(self.images)
        masks = prune(
            state.model,
            self._criterion(),
            make(granularity.registry, self.granularity),
            self._budget(found),
            skip=self.skip,
            data=[(images.to(work.device), labels.to(work.device))],
            loss=nn.functional.cross_entropy,
            example=work.data.example.to(work.device),
            options=PruneOptions(
                only=self.only,
                parameters=self.parameters,
                schedule=self._schedule(),
                masks=state.masks.to(work.device) if state.masks is not None else None,
                at_least=self.at_least,
                at_most=self.at_most,
                allow_collapse=self.allow_collapse,
                seed=work.seed,
            ),
        )
        dead, signal = [], 1.0
        if self.allow_collapse:
            dead = find_collapsed(state.model, masks, work.data.example.to(work.device))
            signal = signal_left(state.model, masks, images.to(work.device), self.rescale)
        if self.rescale:
            rescale_(state.model, masks)
        masks.apply_(state.model)
        state.model.to("cpu")
        measured = mask_rows(state.model, masks)
        if found is not None:
            measured += _scan_rows(found)
        if self.allow_collapse:
            measured += _collapse_rows(dead, signal)
        line = f"{masks.numel - masks.kept:,} of {masks.numel:,} weights removed ({masks.sparsity:.1%})"
        line += f"; {signal:.1g} of the signal left" if signal < FAINT else ""
        line += f"; {len(dead)} layers collapsed, the first: {dead[0]}" if dead else ""
        return Result(
            State(state.model, masks=masks.to("cpu"), plan=state.plan), Measurements(measured), {}, line
        )


def mask_rows(model: nn.Module, masks: Masks) -> list[Measurement]:
    """How much the masks remove, and how much of the whole model remains.

    Args:
        model: The model, with the masks applied or not.
        masks: The masks.
    """
    text = "share of the pruned tensors' weights that the masks remove"
    layers = {row.name: row.sparsity for row in masks.summary()}
    total = sum(parameter.numel() for parameter in model.parameters())
    left = 100 * (total - (masks.numel - masks.kept)) / total
    return [
        Measurement("mask_sparsity", masks.sparsity, "", text, per_layer=layers),
        Measurement(
            "remaining", left, "%", "parameters of the whole model that the masks leave, in per cent"
        ),
    ]


def _scan_rows(found: Allocation) -> list[Measurement]:
    """What the scan predicted, and the sparsities chosen from it."""
    chosen = {name: float(sparsity) for name, sparsity in found.sparsities.items()}
    predicted = "the scanned metric of the dense model less the loss of each layer alone: a prediction"
    text = "mean of the sparsities chosen from the scan, over the layers"
    return [
        Measurement("scan_predicted", found.predicted, "", predicted),
        Measurement("chosen_sparsity", sum(chosen.values()) / len(chosen), "", text, per_layer=chosen),
    ]


def _collapse_rows(dead: Sequence[Collapse], signal: float) -> list[Measurement]:
    """The layers that no signal passes, and how much signal is left."""
    text = "layers of which nothing is left, or that no signal reaches: found before any training"
    layers = {collapse.layer: 1 for collapse in dead}
    notes = tuple(str(collapse) for collapse in dead)
    share = (
        "how much outputs of different images differ before any training, as a share of the dense network's"
    )
    return [
        Measurement("collapsed_layers", len(dead), "", text, per_layer=layers, notes=notes),
        Measurement("signal_left", signal, "", share),
    ]
