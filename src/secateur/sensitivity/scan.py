"""`scan`: measure the sensitivity of every layer, by pruning each alone at every level.

Each layer is pruned alone to each level, the model is evaluated, and the layer is put back bit for bit. The table of
values shows which layers tolerate pruning, and `Scan.allocate` turns it into a sparsity for each.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
>>> batches = [(torch.randn(16, 4), torch.randint(0, 3, (16,)))]
>>> found = scan(model, batches, granularity="element", levels=[0.5, 0.9])
>>> [(cell.name, cell.sparsity, cell.removed) for cell in found.cells]
[('0.weight', 0.5, 16), ('0.weight', 0.9, 29), ('2.weight', 0.5, 12), ('2.weight', 0.9, 22)]
>>> found.allocate(floor=0.0).sparsities
{'0.weight': 0.9, '2.weight': 0.9}
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.budget import Limits
from secateur.core.context import Context, Loss
from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.core.renamed import renamed
from secateur.core.targets import Pattern
from secateur.criteria import Criterion, CriterionLike
from secateur.errors import OptionError, StoreError
from secateur.execution.example import Example, first_example
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb
from secateur.granularity import Granularity, GranularityLike
from secateur.pruning.cost import CostModel, dense_costs
from secateur.pruning.scored_units import ScoredUnits
from secateur.pruning.scoring import unit_scores
from secateur.pruning.selection import selection_of
from secateur.pruning.taking_part import targets_of
from secateur.pruning.unit_masks import masks_of
from secateur.sensitivity.distributed import CallPool, on_pool, on_threads, on_workers, worth_threads
from secateur.sensitivity.evaluation import Evaluation, EvaluationJob, MaskedEvaluation, Value, repeated
from secateur.sensitivity.scan_file import ScanFile
from secateur.sensitivity.scan_result import Allocation, Cell, Scan

__all__ = ["LEVELS", "Allocation", "Cell", "Scan", "ScanOptions", "check_levels", "scan"]

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""The sparsities that are tried by default: 0.1, 0.2 ... 0.9."""


@renamed(trials="repetitions")
@dataclass(frozen=True)
class ScanOptions:
    """The rarer options of `scan`.

    Args:
        only: Patterns of the layers that are scanned; None means all.
        parameters: Patterns of bare parameters, biases or norm weights that are scanned besides.
        data: Batches for a criterion that scores on data; by default those of `evaluate`.
        loss: A function of outputs and targets, for a criterion or an estimate that needs one.
        higher_is_better: Whether a higher value of `evaluate` is better; False for a loss.
        subset: How many examples of the batches are used, the first ones; each value then has a 95 % interval.
        estimate: A criterion, such as "taylor", whose sum over the removed units is given beside the measured value.
        repetitions: How many times the latency of the model shrunk by each cell alone is read (granularity "channel").
        quick: Whether batches are evaluated by a faster forward pass (batch norm folded, channels last, bfloat16 where
            the processor has it); images whose margin is not well above the rounding measured are evaluated again
            exactly.
        workers: How many processes share the layers. None: no processes, but if the first layers show that the rest
            takes long, as many threads as torch may use and memory allows, each with a copy of the model.
        engine: A worker pool that shares the layers (processes here, or a Ray cluster); a layer is begun again if its
            process was killed.
        memory: How many bytes the values kept between evaluations may take.
        at_least: Fewest units that remain in every layer, or a table of patterns to such numbers.
        resume: A file that keeps the values found so far, so that a stopped scan continues.
        progress: Called after each value with the number done, the total, and the seconds left.
        seed: The seed of everything random.

    >>> ScanOptions(subset=500).quick
    True
    """

    only: Pattern | Sequence[Pattern] | None = None
    parameters: Pattern | Sequence[Pattern] | None = None
    data: Iterable[object] | None = None
    loss: Loss | None = None
    higher_is_better: bool = True
    subset: int | None = None
    estimate: CriterionLike | None = None
    repetitions: int = 0
    quick: bool = True
    workers: int | None = None
    engine: CallPool | None = None
    memory: int = 1 << 30
    at_least: Limits = None
    resume: str | os.PathLike[str] | None = None
    progress: Callable[[int, int, float], None] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        workers = 1 if self.workers is None else self.workers
        if workers < 1 or self.repetitions < 0:
            raise OptionError(
                f"scan: expected workers of at least 1 and repetitions of at least 0, got {workers}, {self.repetitions}"
            )
        if self.engine is not None and workers > 1:
            raise OptionError("scan: workers and engine both distribute the layers; give only one of them")


@verb
def scan(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float] | Iterable[object],
    granularity: GranularityLike = "filter",
    levels: Sequence[float] = LEVELS,
    *,
    criterion: CriterionLike = "l2",
    skip: Pattern | Sequence[Pattern] | None = None,
    example: Example = None,
    options: ScanOptions | None = None,
) -> Scan:
    """Measure the sensitivity of every layer; the model is unchanged afterwards, bit for bit.

    What the model computes before the layer under test is kept between evaluations and used again; the numbers are
    those of evaluating from scratch.

    Args:
        model: The model.
        evaluate: A function of the model that returns a number, or batches (inputs, targets) for top-1 accuracy.
        granularity: What is removed as one unit: a word such as "channel", or a value.
        levels: The sparsities to try, rising.
        criterion: How weights are scored: the units of the lowest scores are removed.
        skip: Patterns of layers that are left alone.
        example: One input, to count the MACs of each layer, so that `Scan.allocate(keep=...)` can spend them; by
            default the first of the batches.
        options: Workers, a file to resume from, progress and the rest.

    Returns:
        A table with one cell for each layer and level.

    Raises:
        NothingToDoError: The granularity finds no unit.
        OptionError: An option is wrong.
        StoreError: The file to resume from holds another scan.
    """
    model = plain_model(model)
    asked = options if options is not None else ScanOptions()
    grid = check_levels(levels)
    evaluation = Evaluation.of(evaluate, asked.subset)
    if example is None and evaluation.batches:
        example = first_example(evaluation.batches, single=True, model=model)
    rule: Criterion = criteria.registry.make(criterion)
    grain: Granularity = granularities.registry.make(granularity)
    data = asked.data if asked.data is not None else evaluation.batches
    context = Context(data=data, loss=asked.loss, example=example, seed=asked.seed)
    targets = targets_of(model, grain, context, asked.only, skip, asked.parameters, rule.of_layers)
    scored = ScoredUnits(model, rule, grain, targets, context)
    plans = _plans(scored, grid, asked.at_least)
    file = ScanFile(
        asked.resume, model, (str(rule), str(grain), str(asked.subset), str(len(evaluation.batches)))
    )
    measured = _Measuring(scored, plans, file, asked)
    measured.run(model, evaluation)
    estimate, rises = _estimates(scored, asked)
    costs = CostModel(model, scored.units, context) if asked.repetitions else None
    return Scan(
        cells=tuple(measured.cells(rises, costs)),
        dense=measured.values["dense"][0],
        higher_is_better=asked.higher_is_better,
        criterion=str(rule),
        granularity=str(grain),
        dense_interval=measured.values["dense"][1],
        costs=dense_costs(model, example, scored.units),
        estimate=estimate,
        how=measured.how,
        skipped=measured.skipped,
        peak_bytes=measured.peak,
    )


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The grid, checked: rising, each a share removed.

    >>> check_levels([0.2, 0.4])
    (0.2, 0.4)
    """
    grid = tuple(budgets.check_share("level", level) for level in levels)
    if not grid:
        raise OptionError("levels: expected at least one sparsity, got none")
    if list(grid) != sorted(set(grid)):
        raise OptionError(f"levels: expected rising sparsities, each once, got {list(levels)}")
    return grid


@dataclass(frozen=True)
class _PlannedCell:
    """One cell before it is measured: its level, which units stay, and the masks. Equal digests mean equal masks."""

    sparsity: float
    keep: torch.Tensor
    masks: Masks
    digest: str

    @property
    def removed(self) -> int:
        return int((~self.keep).sum())


def _plans(scored: ScoredUnits, grid: Sequence[float], at_least: Limits) -> list[list[_PlannedCell]]:
    """The cells of every layer."""
    whole = selection_of(scored, at_least)
    plans = []
    for units, candidates in zip(scored.units, whole.candidates, strict=True):
        alone = replace(whole, candidates=(candidates,))
        plan = []
        for level in grid:
            keep = budgets.registry.make(level).choose(alone)
            masks = masks_of(scored.model, [units], keep, None)
            digest = masks.digest() if bool((~keep[units.name]).any()) else "dense"
            plan.append(_PlannedCell(level, keep[units.name], masks, digest))
        plans.append(plan)
    return plans


class _Measuring:
    """Evaluates the cells, layer by layer: equal masks are evaluated once, values of an earlier scan are reused."""

    def __init__(
        self,
        scored: ScoredUnits,
        plans: Sequence[Sequence[_PlannedCell]],
        file: ScanFile,
        options: ScanOptions,
    ):
        self._scored, self._plans, self._file, self._options = scored, plans, file, options
        self._progress = _Progress(options.progress, 1 + sum(len(plan) for plan in plans))
        self._order: list[int] = []
        self._waiting: dict[str, int] = {}  # how many cells wait for a value
        self.values: dict[str, Value] = dict(file.known)
        self.how, self.skipped, self.peak = "", 0, 0

    def run(self, model: nn.Module, evaluation: Evaluation) -> None:
        """Measure the dense model and every cell."""
        options = self._options
        workers, threads = options.workers or 1, 1
        shared = workers > 1 or options.engine is not None
        with repeated(model, evaluation, options.memory, options.quick) as now:
            self._dense(now)
            units = self._scored.units
            self._order = sorted(
                range(len(units)), key=lambda i: now.position([member.name for member in units[i].members])
            )
            jobs: Sequence[EvaluationJob] = self._jobs()
            if options.workers is None and not shared:
                jobs, threads = self._begun(now, model, evaluation, jobs)
            elif not shared:
                self._take(now.values(jobs))
            self.how, self.skipped, self.peak = now.how, now.skipped, now.peak
        if options.engine is not None:
            self._take(on_pool(model, evaluation, jobs, options.engine, options.memory, options.quick))
            self.how = str(options.engine)
        elif workers > 1:
            self._take(on_workers(model, evaluation, jobs, workers, options.memory, options.quick))
            self.how = f"{workers} processes"
        elif threads > 1:
            self._take(on_threads(model, evaluation, jobs, threads, options.memory, options.quick))
            self.how = f"{threads} threads"

    def _begun(
        self, now: MaskedEvaluation, model: nn.Module, evaluation: Evaluation, jobs: Sequence[EvaluationJob]
    ) -> tuple[Sequence[EvaluationJob], int]:
        """Evaluate here until it is clear that several threads pay off; the remaining jobs, and for how many."""
        began, done, left = time.monotonic(), 0, sum(len(job.masks) for job in jobs)
        for number, job in enumerate(jobs):
            seconds = (time.monotonic() - began) / done * left if done else 0.0
            threads = worth_threads(model, evaluation, len(jobs) - number, seconds, self._options.memory)
            if threads > 1:
                return jobs[number:], threads
            self._take(now.values([job]))
            done, left = done + len(job.masks), left - len(job.masks)
        return [], 1

    def cells(self, rises: Mapping[str, torch.Tensor] | None, costs: CostModel | None) -> Iterator[Cell]:
        """The table's cells in the model's order; `repeated` where an evaluation before had the same masks."""
        again = self._repeated()
        units_of = self._scored.units
        for i, (units, plan) in enumerate(zip(units_of, self._plans, strict=True)):
            for j, cell in enumerate(plan):
                value, interval = self.values[cell.digest]
                rise = None if rises is None else float(rises[units.name][~cell.keep].double().sum())
                latency = None
                if costs is not None:
                    chosen = {each.name: torch.ones(each.count, dtype=torch.bool) for each in units_of}
                    latency = costs.time({**chosen, units.name: cell.keep}, self._options.repetitions, None)[
                        1
                    ]
                removed = cell.masks.numel - cell.masks.kept
                yield Cell(
                    units.name, cell.sparsity, units.count, cell.removed, removed, value, interval,
                    (i, j) in again, rise, latency,
                )  # fmt: skip

    def _dense(self, now: MaskedEvaluation) -> None:
        dense = now.dense()
        known = self._file.known.get("dense")
        if known is not None and known[0] != dense[0]:
            raise StoreError(
                f"{self._file.path}: the dense model gave {known[0]!r} when this scan began and gives {dense[0]!r} "
                "now; the evaluation is not repeatable, or it changed: scan into a new file"
            )
        self.values["dense"] = dense
        self._file.add("dense", dense)
        self._progress.measured(1)

    def _jobs(self) -> list[EvaluationJob]:
        """What has to be evaluated, layer by layer in the order they run."""
        known = 0
        jobs = []
        for i in self._order:
            wanted = []
            for cell in self._plans[i]:
                if cell.digest in self.values:
                    known += 1
                    continue
                if cell.digest not in self._waiting:
                    wanted.append((cell.digest, cell.masks))
                self._waiting[cell.digest] = self._waiting.get(cell.digest, 0) + 1
            names = sorted({member.name for member in self._scored.units[i].members})
            jobs.append(EvaluationJob(names, wanted))
        self._progress.advance(known)
        return [job for job in jobs if job.masks]

    def _take(self, found: Iterable[tuple[str, Value]]) -> None:
        for digest, value in found:
            self.values[digest] = value
            self._file.add(digest, value)
            self._progress.measured(self._waiting[digest])

    def _repeated(self) -> set[tuple[int, int]]:
        met = {"dense"}
        again = set()
        for i in self._order:
            for j, cell in enumerate(self._plans[i]):
                if cell.digest in met:
                    again.add((i, j))
                met.add(cell.digest)
        return again


def _estimates(scored: ScoredUnits, options: ScanOptions) -> tuple[str, dict[str, torch.Tensor] | None]:
    """The estimating criterion's name and its score of every unit; empty if none was asked for."""
    if options.estimate is None:
        return "", None
    rule: Criterion = criteria.registry.make(options.estimate)
    context = replace(scored.context, loss=options.loss if options.loss is not None else F.cross_entropy)
    with undisturbed(scored.model, mode="eval"):  # the estimate is of the model as it was measured
        return str(rule), unit_scores(rule, scored.model, scored.targets, scored.units, context)


class _Progress:
    """Counts cells and estimates how long the rest will take."""

    def __init__(self, progress: Callable[[int, int, float], None] | None, total: int):
        self._progress, self._total = progress, total
        self._done = self._measured = 0
        self._started = time.monotonic()

    def measured(self, cells: int) -> None:
        """Note that one value was measured, which this many cells have."""
        self._measured += 1
        self.advance(cells)

    def advance(self, cells: int) -> None:
        """Note that this many more cells have their value."""
        each = (time.monotonic() - self._started) / max(self._measured, 1)
        for _ in range(cells):
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total, each * (self._total - self._done))
