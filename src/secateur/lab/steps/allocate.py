"""`allocate`: search for the sparsity of each layer within a limit of the cost, and prune by what was found.

    [[step]]
    kind = "allocate"
    method = {name = "annealing", rounds = 50}
    keep = 0.5

The search evaluates the model under many choices, on validation images; the test images are not looked at.

>>> AllocateStep(method="fast_nas", keep=0.5).of
'macs'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from secateur import allocation, criteria, granularity
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select
from secateur.data import Split
from secateur.errors import OptionError
from secateur.lab.state import State
from secateur.lab.steps import Plugin, Result, Step, Work, make
from secateur.lab.steps.prune import mask_rows
from secateur.pruning.prune import PruneOptions, prune
from secateur.sensitivity.allocate import AllocateOptions, FoundShares, allocate

__all__ = ["AllocateStep"]

Patterns = str | tuple[str, ...] | None


class AllocateStep(Step):
    """Search for how much each layer loses, and set those weights to zero."""

    measures: ClassVar[tuple[str, ...] | None] = (
        "mask_sparsity",
        "remaining",
        "allocated_accuracy",
        "uniform_accuracy",
        "chosen_sparsity",
    )
    keep: float = Field(gt=0, lt=1, description="share of the cost that remains at most")
    of: str = Field("macs", pattern="^(macs|params)$", description="the cost: macs or params")
    method: Plugin = Field("net_adapt", description="how the shares are searched")
    criterion: Plugin = Field("l2", description="how weights are scored")
    granularity: Plugin = Field("channel", description="what is cut as one unit")
    only: Patterns = Field(None, description="layers that take part, by name or pattern")
    skip: Patterns = Field(None, description="layers to leave alone")
    at_least: int | dict[str, int] | None = Field(1, description="units that stay in every layer")
    split: str = Field(
        "validation", pattern="^(validation|train)$", description="images that choices are evaluated on"
    )
    subset: int | None = Field(None, ge=1, description="only the first of them, this number")
    batch_size: int = Field(250, ge=1, description="images of one forward pass")
    images: int = Field(10, ge=1, description="images of each class for what scores on data")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check names and patterns, and that the model is one that accuracy is measured of."""
        make(allocation.registry, self.method)
        make(criteria.registry, self.criterion).check_model(model)
        make(granularity.registry, self.granularity)
        select(model, self.only, self.skip)
        if hasattr(model, "training_loss") or hasattr(model, "evaluation_metrics"):
            raise OptionError(
                f"step {self.label!r}: expected a model that accuracy is measured of, got {type(model).__name__} with "
                "a measure of its own; use sc.allocate with a function"
            )

    def run(self, state: State, work: Work) -> Result:
        """Search, then prune by the shares that were found."""
        if state.masks is not None:
            raise OptionError(
                f"step {self.label!r}: expected a model without masks, got those of an earlier step; shrink it before, "
                "or prune by a share"
            )
        split: Split = getattr(work.data, self.split)
        count = min(self.subset or len(split), len(split))
        batches, seen = [], 0
        for images, labels in split.batches(self.batch_size, device=work.device):
            batches.append((images[: count - seen], labels[: count - seen]))
            seen += len(batches[-1][1])
            if seen >= count:
                break
        model = state.model.to(work.device).eval()
        found = self._found(model, batches, work)
        masks = self._pruned(model, found, work)
        masks.apply_(model)
        model.to("cpu")
        rows = [*mask_rows(model, masks), *_rows(found)]
        line = (
            f"{found.cost:.1%} of the {self.of} remain, accuracy {found.value:.4f} of {found.dense:.4f} on {count:,} "
            f"{self.split} images (equal shares {found.uniform:.4f}), {found.tried} evaluations"
        )
        made = State(model, masks=masks.to("cpu"), plan=state.plan)
        return Result(made, Measurements(rows), {"shares": str(found)}, line)

    def _scoring(self, work: Work) -> list[object]:
        images, labels = work.data.train.per_class(self.images)
        return [(images.to(work.device), labels.to(work.device))]

    def _found(self, model: nn.Module, batches: Sequence[object], work: Work) -> FoundShares:
        return allocate(
            model,
            batches,
            make(allocation.registry, self.method),
            keep=self.keep,
            granularity=make(granularity.registry, self.granularity),
            criterion=make(criteria.registry, self.criterion),
            example=work.data.example.to(work.device),
            options=AllocateOptions(
                of=self.of,
                only=self.only,
                skip=self.skip,
                data=self._scoring(work),
                loss=nn.functional.cross_entropy,
                at_least=self.at_least,
                seed=work.seed,
            ),
        )

    def _pruned(self, model: nn.Module, found: FoundShares, work: Work) -> Masks:
        return prune(
            model,
            make(criteria.registry, self.criterion),
            make(granularity.registry, self.granularity),
            found.budget,
            skip=self.skip,
            data=self._scoring(work),
            loss=nn.functional.cross_entropy,
            example=work.data.example.to(work.device),
            options=PruneOptions(only=self.only, at_least=self.at_least, seed=work.seed),
        )


def _rows(found: FoundShares) -> list[Measurement]:
    """What the search found, and the shares."""
    mean = sum(found.shares.values()) / len(found.shares)
    return [
        Measurement(
            "allocated_accuracy", found.value, "", "accuracy with the shares that were found, untrained"
        ),
        Measurement(
            "uniform_accuracy", found.uniform, "", "accuracy with one share for all lists, untrained"
        ),
        Measurement(
            "chosen_sparsity", mean, "", "mean of the shares found, over the lists", per_layer=found.shares
        ),
    ]
