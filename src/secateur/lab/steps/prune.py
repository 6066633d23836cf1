"""`prune`: criterion x granularity x budget; the weights removed are zero from here on.

>>> Prune(criterion="l1", granularity="filter", budget=0.5, skip=["fc"]).budget
0.5
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from secateur import budget, criteria, granularity
from secateur.core import schedule
from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select
from secateur.errors import RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Base, Plugin, Result, Work, make
from secateur.prune import prune

__all__ = ["Prune"]

Patterns = str | tuple[str, ...] | None
_SCHEDULES = {
    "one_shot": "OneShot",
    "iterative": "Iterative",
    "gradual": "Gradual",
    "exponential": "Exponential",
}


class Prune(Base):
    """Choose weights by criterion, granularity and budget, and set them to zero."""

    criterion: Plugin = Field("magnitude", description="what a weight is worth")
    granularity: Plugin = Field("element", description="what is cut as one piece")
    budget: Plugin = Field(
        0.5, description="who competes with whom and how many go; a number: that share of every tensor"
    )
    only: Patterns = Field(None, description="layers to prune, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    parameters: Patterns = Field(None, description="bare parameters to prune as well")
    schedule: int | tuple[float, ...] | dict[str, Any] | str | None = Field(
        None, description="rounds: a number, a list of levels, or a table with `name`"
    )
    at_least: int | dict[str, int] | None = Field(None, description="units that stay in every layer")
    at_most: float | dict[str, float] | None = Field(None, description="the largest share a layer may lose")
    images: int = Field(10, ge=1, description="images of each class that criteria which need data see")
    allow_collapse: bool = Field(False, description="go on with a mask that disconnects the network")

    def _schedule(self) -> Any:
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
        """Names, options, and patterns against the model."""
        make(criteria.registry, self.criterion)
        make(granularity.registry, self.granularity)
        if not isinstance(self.budget, str):
            make(budget.registry, self.budget)
        self._schedule()
        select(model, self.only, self.skip, self.parameters)

    def run(self, state: State, work: Work) -> Result:
        """Prune further: what earlier steps removed stays removed and counts towards the budget."""
        state.model.to(work.device)
        images, labels = work.data.train.per_class(self.images)
        masks = prune(
            state.model,
            make(criteria.registry, self.criterion),
            make(granularity.registry, self.granularity),
            self.budget if isinstance(self.budget, (str, float)) else make(budget.registry, self.budget),
            only=self.only,
            skip=self.skip,
            parameters=self.parameters,
            data=[(images.to(work.device), labels.to(work.device))],
            loss=nn.functional.cross_entropy,
            example=work.data.example.to(work.device),
            schedule=self._schedule(),
            masks=state.masks.to(work.device) if state.masks is not None else None,
            at_least=self.at_least,
            at_most=self.at_most,
            allow_collapse=self.allow_collapse,
            seed=work.seed,
        )
        masks.apply_(state.model)
        state.model.to("cpu")
        text = "share of the pruned tensors' weights that the masks remove"
        layers = {row.name: row.sparsity for row in masks.summary()}
        measured = Measurement("mask_sparsity", masks.sparsity, "", text, per_layer=layers)
        kept = f"{masks.numel - masks.kept:,} of {masks.numel:,} weights removed ({masks.sparsity:.1%})"
        return Result(
            State(state.model, masks=masks.to("cpu"), plan=state.plan), Measurements([measured]), {}, kept
        )
