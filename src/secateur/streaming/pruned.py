"""`prune_checkpoint`: prune by criteria that need no data, one tensor in memory at a time.

The masks are those that `sc.prune` gives the same model in memory: the same criterion, granularity and budget decide,
about a model of one layer at a time. Where all tensors compete (`sc.budget.Overall`), two passes find the threshold
first.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import save_file
>>> import secateur as sc
>>> with tempfile.TemporaryDirectory() as folder:
...     source = pathlib.Path(folder) / "model.safetensors"
...     save_file({"a.weight": torch.ones(4, 4), "b.weight": 2 * torch.ones(4, 4)}, source)
...     done = prune_checkpoint(source, pathlib.Path(folder) / "pruned.safetensors", budget=sc.budget.Overall(0.5))
>>> [(row["name"], row["kept"]) for row in done.rows]
[('a.weight', 0), ('b.weight', 16)]
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from secateur.budget import Budget, BudgetLike, Candidates, Selection, share_of
from secateur.budget.overall import Overall
from secateur.container.arrays import to_tensor
from secateur.container.checkpoint import Checkpoint
from secateur.container.format import Entry
from secateur.container.shards import open_source
from secateur.core.context import Context
from secateur.core.targets import Pattern, Target
from secateur.criteria import Criterion, CriterionLike
from secateur.criteria import registry as criteria
from secateur.errors import NothingToDoError, OptionError
from secateur.granularity import Granularity, GranularityLike
from secateur.granularity import registry as granularities
from secateur.pruning.prune import budget_of
from secateur.pruning.scoring import unit_scores
from secateur.pruning.unit_masks import masks_of
from secateur.streaming.in_flight import Item, in_flight, memory_limit, worker_limit
from secateur.streaming.rewriting import Changed, Progress, RewrittenCheckpoint, Row, check_target, rewrite
from secateur.streaming.skeleton import targets_in, with_weight
from secateur.streaming.threshold import Threshold, Upper, lower_counts, upper_counts
from secateur.streaming.tied import leading

__all__ = ["ALONE", "StreamOptions", "prune_checkpoint"]

_Found = TypeVar("_Found")
ALONE = ("block", "element", "filter", "kernel")
"""Granularities that cut a tensor without looking at others."""
_SCORING = 24  # bytes of memory that scoring and choosing take for each weight, besides the weights


@dataclass(frozen=True, eq=False)
class StreamOptions:
    """Which tensors of a checkpoint take part, and how much memory and how many threads are used.

    Attributes:
        only: Layers that take part, by name or glob; all unless given.
        parameters: Tensors that take part besides the weights of layers, by name or glob.
        model: The model on the meta device. It identifies what shapes cannot: embeddings, transposed layers, classes.
        seed: For criteria that draw at random.
        memory: The bytes that tensors in progress may take together; half of the free memory unless given.
        workers: How many tensors are processed at a time; one for each processor unless given.

    >>> StreamOptions(only="model.layers.*").seed
    0
    """

    only: Pattern | Sequence[Pattern] | None = None
    parameters: Pattern | Sequence[Pattern] | None = None
    model: nn.Module | None = None
    seed: int = 0
    memory: int | None = None
    workers: int | None = None


def prune_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    criterion: CriterionLike = "magnitude",
    granularity: GranularityLike = "element",
    budget: BudgetLike = 0.5,
    *,
    skip: Pattern | Sequence[Pattern] | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
) -> RewrittenCheckpoint:
    """Write a checkpoint with the weights at zero that the criterion scores lowest; one tensor in memory at a time.

    Args:
        source: A folder of safetensors files with their index, or one .safetensors file.
        target: A new folder, which gets the same files; or a .sct file, which holds everything. For a .safetensors
            file: another one.
        criterion: How weights are scored; one that needs no data and no example.
        granularity: What is removed as one unit: "element", "filter", "kernel" or "block".
        budget: How much is removed: of every tensor by itself, or `sc.budget.Overall(share)`.
        skip: Layers that are left alone, by name or glob.
        options: Which other tensors take part, and how much memory and how many threads are used.
        progress: Called with (bytes done, bytes in all, tensor) for every tensor.

    Returns:
        The written checkpoint, with the weights and the kept weights of every pruned tensor.

    Raises:
        DataError: The checkpoint cannot be read.
        OptionError: The choice needs more than one tensor at a time, or the target exists.
        NothingToDoError: No weight would be removed.
    """
    asked = options or StreamOptions()
    rule, grain, rule_of_share = _checked(criterion, granularity, budget)
    with open_source(source) as checkpoint:
        check_target(checkpoint, Path(target))
        layers, targets = targets_in(checkpoint.entries, asked.model, asked.only, skip, asked.parameters)
        lead = {} if asked.model is None else leading(layers, targets)
        job = _Pruning(checkpoint, layers, targets, rule, grain, Context(seed=asked.seed), lead)
        limits = memory_limit(asked.memory), worker_limit(asked.workers)
        choose = job.chooser(rule_of_share, *limits)
        text = repr(("prune", rule, grain, rule_of_share, sorted(targets), asked.seed))
        changed = functools.partial(job.changed, choose, memory=limits[0], workers=limits[1])
        return rewrite(checkpoint, target, text, changed, progress, _check_removes, ("weights", "kept"))


def _check_removes(rows: Sequence[Row]) -> None:
    """Raise if every weight is kept."""
    if all(row["kept"] == row["weights"] for row in rows):
        raise NothingToDoError("the budget removes no weight of any tensor; ask for a larger share")


def _checked(
    criterion: CriterionLike, granularity: GranularityLike, budget: BudgetLike
) -> tuple[Criterion, Granularity, Budget]:
    """The three choices as values, if tensors can be judged one at a time by them."""
    rule: Criterion = criteria.make(criterion)
    grain: Granularity = granularities.make(granularity)
    if rule.needs_data or rule.needs_example:
        raise OptionError(
            f"criterion {rule} needs {'data' if rule.needs_data else 'an example'}, which no tensor by itself has; "
            "sc.compensate_checkpoint prunes on data, block by block"
        )
    if not any(isinstance(grain, granularities.get(word)) for word in ALONE):
        raise OptionError(
            f"granularity {grain} follows the forward of a model; for a checkpoint tensor by tensor take one of "
            f"{', '.join(ALONE)}"
        )
    return rule, grain, budget_of(budget)


Choice = Callable[[str, Candidates, nn.Module], torch.Tensor]
"""From a tensor's name, the scores of its units and its layer to one bit per unit."""


@dataclass(frozen=True)
class _Pruning:
    """The tensors of a checkpoint, and how they are judged.

    `lead` has the first name of a tensor that the model shares: it counts once, and is pruned under all of its names.
    """

    checkpoint: Checkpoint
    layers: nn.Module
    targets: dict[str, Target]
    rule: Criterion
    grain: Granularity
    context: Context
    lead: Mapping[str, str]

    def _counted(self) -> list[Target]:
        """The tensors that take part, each once."""
        return [target for name, target in self.targets.items() if self.lead.get(name, name) == name]

    def chooser(self, budget: Budget, memory: int, workers: int) -> Choice:
        """How a budget decides about one tensor; where tensors compete, this takes two passes over all."""
        selection = Selection(tuple(self._shapes()), self.layers, tuple(self._counted()), self.context)
        apart = budget.apart(selection)
        if apart is not None:
            return functools.partial(self._alone, apart)
        if not isinstance(budget, Overall) or budget.by != "units":
            raise OptionError(
                f"{budget} compares units of several tensors, which one tensor at a time cannot; take a share per "
                "tensor, or sc.budget.Overall(share)"
            )
        remove = share_of(budget.sparsity, selection.count)
        if not remove:
            raise NothingToDoError(
                f"{budget} removes none of {selection.count:,} units; ask for a larger share"
            )
        found = self._threshold(remove, memory, workers)
        return lambda name, candidates, _: found.keep(self.lead.get(name, name), candidates.scores)

    def _shapes(self) -> Iterator[Candidates]:
        """The lists of units without scores, in the order of the targets."""
        for target in self._counted():
            for units in self.grain.units(self.layers, [target], self.context):
                scores = torch.empty(units.count, device="meta")
                yield Candidates(units, scores, shapes={target.name: target.shape})

    def _alone(
        self, budgets: dict[str, Budget], name: str, candidates: Candidates, model: nn.Module
    ) -> torch.Tensor:
        budget = budgets.get(self.lead.get(name, name))
        if budget is None:
            return torch.ones(candidates.count, dtype=torch.bool)
        found = budget.choose(Selection((candidates,), model, (self.targets[name],), self.context))
        return found[candidates.name]

    def _threshold(self, remove: int, memory: int, workers: int) -> Threshold:
        """The threshold for all tensors, in two passes."""

        def counted(
            count: Callable[[torch.Tensor], _Found], entry: Entry, words: np.ndarray
        ) -> tuple[str, _Found]:
            return entry.name, count(self._scored(self.targets[entry.name], entry.dtype, words)[1].scores)

        counts = {target.name for target in self._counted()}

        def pass_over(count: Callable[[torch.Tensor], _Found]) -> Iterator[tuple[str, _Found]]:
            entries = self.checkpoint.entries
            items = (
                Item(
                    self._cost(number),
                    functools.partial(self.checkpoint.words, number),
                    functools.partial(counted, count, entries[number]),
                )
                for number in range(len(entries))
                if entries[number].name in counts
            )
            return in_flight(items, memory, workers)

        upper = Upper(remove)
        for _, found in pass_over(upper_counts):
            upper.add(found)
        lower = upper.lower()
        for name, halves in pass_over(functools.partial(lower_counts, upper=lower.upper)):
            lower.add(name, *halves)
        return lower.found()

    def _cost(self, number: int) -> int:
        entry = self.checkpoint.entries[number]
        return 3 * entry.nbytes + (_SCORING * entry.numel if entry.name in self.targets else 0)

    def _scored(self, target: Target, dtype: str, words: np.ndarray) -> tuple[nn.Module, Candidates]:
        """The layer with its weight, and the units of it with their scores."""
        model = with_weight(self.layers, target, to_tensor(Entry(target.name, dtype, target.shape), words))
        units = self.grain.units(model, [target], self.context)
        with torch.no_grad():
            scores = unit_scores(self.rule, model, [target], units, self.context)
        (only,) = units
        return model, Candidates(only, scores[only.name].cpu(), shapes={target.name: target.shape})

    def changed(self, choose: Choice, numbers: Sequence[int], memory: int, workers: int) -> Iterator[Changed]:
        """The tensors of these numbers with their removed weights at zero."""
        items = (
            Item(
                self._cost(number),
                functools.partial(self.checkpoint.words, number),
                functools.partial(self._pruned, choose, number),
            )
            for number in numbers
        )
        return in_flight(items, memory, workers)

    def _pruned(self, choose: Choice, number: int, words: np.ndarray) -> Changed:
        entry = self.checkpoint.entries[number]
        target = self.targets.get(entry.name)
        if target is None:
            return Changed(entry, words, {})
        model, candidates = self._scored(target, entry.dtype, words)
        keep = choose(entry.name, candidates, model)
        mask = masks_of(model, [candidates.units], {candidates.name: keep}, None)[entry.name]
        words = np.where(mask.numpy(), words, np.zeros((), dtype=words.dtype))
        row: Row = {"name": entry.name, "weights": entry.numel, "kept": int(np.count_nonzero(mask.numpy()))}
        return Changed(entry, words, row | {"sparsity": 1.0 - int(str(row["kept"])) / entry.numel})
