"""`scan`: prune every layer alone, at every level, and measure what it costs.

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

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.budget._limits import floors
from secateur.core.atomic_files import atomic_open
from secateur.core.context import Context, Loss
from secateur.core.masks import Masks
from secateur.core.targets import Pattern, select
from secateur.core.units import Units
from secateur.errors import NothingToDoError, OptionError, StoreError
from secateur.execution.undisturbed import undisturbed
from secateur.metrics.macs import macs
from secateur.pruning.cost import CostModel
from secateur.pruning.scoring import masks_of, pools_of, worth_of
from secateur.sensitivity.evaluation import (
    CallPool,
    Evaluation,
    EvaluationJob,
    Value,
    on_crew,
    on_workers,
    repeated,
)
from secateur.sensitivity.scan_result import Allocation, Cell, Scan

__all__ = ["LEVELS", "Allocation", "Cell", "Scan", "check_levels", "scan"]

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))


def scan(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float] | Iterable[Any],
    granularity: Any = "filter",
    levels: Sequence[float] = LEVELS,
    *,
    criterion: Any = "l2",
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    example: Any = None,
    higher_is_better: bool = True,
    subset: int | None = None,
    estimate: Any = None,
    trials: int = 0,
    quick: bool = True,
    workers: int = 1,
    engine: CallPool | None = None,
    memory: int = 1 << 30,
    at_least: int | Mapping[Any, int] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    seed: int = 0,
) -> Scan:
    """Measure every layer's sensitivity: prune it alone at each level, evaluate, put it back to the last bit.

    `evaluate` is a function of the model that returns a number, or batches (inputs, targets) for top-1 accuracy. What
    the model computes before the layer under test is kept between evaluations, within `memory` bytes, and handed out
    again; the numbers are those of evaluating from scratch. Batches also let `quick` compute outputs by a shorter way
    (batch norm folded, channels last, bfloat16 where the processor has it), with the images whose margin is not
    several times wider than the rounding this was measured to bring looked at again. `subset` takes only the first so
    many examples of the batches, and each value then has a 95 % interval.

    With an `example` (or batches) the MACs of each layer are counted so that `Scan.allocate(keep=...)` can spend them;
    `trials` also reads the time of the model shrunk by every cell alone (granularity "channel"), so many times.
    `estimate` names a criterion, such as "taylor", whose sum over the units that go stands beside the measured value.
    `workers` processes share the layers; an `engine` (a `secateur.lab.engines.worker_pool.Crew`: processes
    here or a Ray
    cluster) does so too, and begins a layer again whose process was killed. `resume` names a file that keeps the
    values found so far: a scan that was stopped goes on from there. `progress(done, total, seconds_left)` is called
    after each value.
    """
    rule = criteria.registry.make(criterion)
    grain = granularities.registry.make(granularity)
    grid = check_levels(levels)
    if workers < 1 or trials < 0:
        raise OptionError(
            f"scan: expected workers of at least 1 and trials of at least 0, got {workers}, {trials}"
        )
    if engine is not None and workers > 1:
        raise OptionError("scan: workers and engine are two ways to share the layers out; give one of them")
    evaluation = Evaluation.of(evaluate, subset)
    batches = evaluation.batches
    if example is None and batches:
        example = _inputs_of(batches[0])
    targets = select(model, only, skip, parameters)
    context = Context(data=data if data is not None else batches, loss=loss, example=example, seed=seed)
    pieces = grain.units(model, targets, context)
    if not pieces:
        raise NothingToDoError(f"granularity {grain} finds no piece to scan in {type(model).__name__}")
    worth = worth_of(rule, model, targets, pieces, context)
    contests = [
        budgets.Selection(pools_of(model, [units], worth, targets, None), model, targets, context)
        for units in pieces
    ]
    plans = [
        _plan(model, units, replace(contest, pools=floors(contest, at_least)), grid)
        for units, contest in zip(pieces, contests, strict=True)
    ]
    ledger = _Ledger(resume, model, str(rule), str(grain), subset, batches)
    watch = _CellProgress(progress, 1 + sum(len(plan) for plan in plans))
    with repeated(model, evaluation, memory, quick) as now:
        values: dict[str, Value] = dict(ledger.known)
        dense = now.dense()
        if "dense" in ledger.known and ledger.known["dense"][0] != dense[0]:
            raise StoreError(
                f"{resume}: the dense model gave {ledger.known['dense'][0]!r} when this scan began and gives "
                f"{dense[0]!r} now; the evaluation is not repeatable, or it changed: scan into a new file"
            )
        values["dense"] = dense
        ledger.add("dense", dense)
        watch.found(1)
        order = sorted(
            range(len(pieces)), key=lambda i: now.position([member.name for member in pieces[i].members])
        )
        jobs, shown, known = _jobs(pieces, plans, order, values)
        watch.tell(known)
        if workers == 1 and engine is None:
            found = now.values(jobs)
            for digest, value in found:
                values[digest] = value
                ledger.add(digest, value)
                watch.found(shown[digest])
        how, skipped, peak = now.how, now.skipped, now.peak
    if workers > 1 or engine is not None:
        if engine is None:
            shared = on_workers(model, evaluation, jobs, workers, memory, quick)
        else:
            shared = on_crew(model, evaluation, jobs, engine, memory, quick)
        for digest, value in shared:
            values[digest] = value
            ledger.add(digest, value)
            watch.found(shown[digest])
        how = f"{workers} processes" if engine is None else str(engine)
    estimates = None if estimate is None else criteria.registry.make(estimate)
    rises = None
    if estimates is not None:
        informed = replace(context, loss=loss if loss is not None else F.cross_entropy)
        with undisturbed(model, mode="eval"):  # what is estimated is what was measured
            rises = worth_of(estimates, model, targets, pieces, informed)
    meter = CostModel(model, pieces, context) if trials else None
    return Scan(
        cells=tuple(_cells(pieces, plans, order, values, rises, meter, trials)),
        dense=dense[0],
        higher_is_better=higher_is_better,
        criterion=str(rule),
        granularity=str(grain),
        dense_interval=dense[1],
        costs=_costs(model, example, pieces),
        estimate="" if estimates is None else str(estimates),
        how=how,
        skipped=skipped,
        peak_bytes=peak,
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
class _Planned:
    """One cell to be: its level, which units stay, and the masks; a digest says which cells are the same."""

    sparsity: float
    keep: torch.Tensor
    masks: Masks
    digest: str

    @property
    def removed(self) -> int:
        return int((~self.keep).sum())


def _plan(
    model: nn.Module, units: Units, contest: budgets.Selection, grid: Sequence[float]
) -> list[_Planned]:
    """The cells of one list."""
    plan = []
    for level in grid:
        keep = budgets.registry.make(level).choose(contest)
        masks = masks_of(model, [units], keep, None)
        digest = masks.digest() if bool((~keep[units.name]).any()) else "dense"
        plan.append(_Planned(level, keep[units.name], masks, digest))
    return plan


def _jobs(
    pieces: Sequence[Units], plans: Sequence[list[_Planned]], order: Sequence[int], known: Mapping[str, Value]
) -> tuple[list[EvaluationJob], dict[str, int], int]:
    """What has to be evaluated, layer by layer; how many cells show each value; how many a value known already."""
    shown: dict[str, int] = {}
    before = 0
    jobs = []
    for i in order:
        todo = []
        for cell in plans[i]:
            if cell.digest not in known and cell.digest not in shown:
                todo.append((cell.digest, cell.masks))
            if cell.digest in known:
                before += 1
            else:
                shown[cell.digest] = shown.get(cell.digest, 0) + 1
        jobs.append(EvaluationJob(sorted({member.name for member in pieces[i].members}), todo))
    return [job for job in jobs if job.masks], shown, before


def _cells(
    pieces: Sequence[Units],
    plans: Sequence[list[_Planned]],
    order: Sequence[int],
    values: Mapping[str, Value],
    rises: Mapping[str, torch.Tensor] | None,
    meter: CostModel | None,
    trials: int,
) -> list[Cell]:
    """The table's cells in the model's order; `repeated` where an evaluation before had the same masks."""
    met = {"dense"}
    again = set()
    for i in order:
        for j, cell in enumerate(plans[i]):
            if cell.digest in met:
                again.add((i, j))
            met.add(cell.digest)
    cells = []
    for i, (units, plan) in enumerate(zip(pieces, plans, strict=True)):
        for j, cell in enumerate(plan):
            value, interval = values[cell.digest]
            gone = cell.masks.numel - cell.masks.kept
            rise = None if rises is None else float(rises[units.name][~cell.keep].double().sum())
            time_left = None
            if meter is not None:
                chosen = {u.name: torch.ones(u.count, dtype=torch.bool) for u in pieces}
                time_left = meter.time({**chosen, units.name: cell.keep}, trials, None)[1]
            cells.append(
                Cell(
                    units.name, cell.sparsity, units.count, cell.removed, gone, value, interval,
                    (i, j) in again, rise, time_left,
                )
            )  # fmt: skip
    return cells


def _inputs_of(batch: Any) -> Any:
    inputs = (
        batch[0] if isinstance(batch, (tuple, list)) else {k: v for k, v in batch.items() if k != "labels"}
    )
    return inputs[:1] if isinstance(inputs, torch.Tensor) else inputs


def _costs(model: nn.Module, example: Any, pieces: Sequence[Units]) -> dict[str, dict[str, float]]:
    """What each list costs when dense: the parameters it cuts, their bytes, and the MACs of their layers."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    members = {u.name: {m.name for m in u.members} for u in pieces}
    costs = {
        "params": {name: float(sum(tensors[n].numel() for n in held)) for name, held in members.items()},
        "size": {
            name: float(sum(tensors[n].numel() * tensors[n].element_size() for n in held))
            for name, held in members.items()
        },
    }
    if example is not None:
        per_layer = macs(model, example)["macs"].per_layer
        costs["macs"] = {
            name: float(sum(per_layer.get(layer, 0) for layer in {n.rpartition(".")[0] for n in held}))
            for name, held in members.items()
        }
    return costs


class _CellProgress:
    """Counts cells and tells how long the rest will take."""

    def __init__(self, progress: Callable[[int, int, float], None] | None, total: int):
        self.progress, self.total = progress, total
        self.done = self.fresh = 0
        self.started = time.monotonic()

    def found(self, cells: int) -> None:
        """A value was measured that so many cells show."""
        self.fresh += 1
        self.tell(cells)

    def tell(self, cells: int) -> None:
        """So many cells more have their value."""
        each = (time.monotonic() - self.started) / max(self.fresh, 1)
        for _ in range(cells):
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total, each * (self.total - self.done))


class _Ledger:
    """The values found so far, in a file, so that a stopped scan goes on."""

    def __init__(
        self, path: Any, model: nn.Module, rule: str, grain: str, subset: int | None, batches: list[Any]
    ):
        self.path = None if path is None else Path(path)
        self.known: dict[str, tuple[float, float | None]] = {}
        if self.path is None:
            return
        whole = hashlib.sha256(f"{rule}|{grain}|{subset}|{len(batches)}".encode())
        for name, value in model.state_dict().items():
            whole.update(name.encode())
            if isinstance(value, torch.Tensor):
                whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self._key = whole.hexdigest()
        if self.path.exists():
            try:
                data = json.loads(self.path.read_text())
                key, rows = data["scan"], data["values"]
            except (ValueError, KeyError, TypeError):
                raise StoreError(
                    f"{self.path}: expected the values of a scan, got something else; name another file"
                ) from None
            if key != self._key:
                raise StoreError(
                    f"{self.path}: holds another scan (other weights, criterion, granularity or subset); name another "
                    "file, or remove it"
                )
            self.known = {digest: (value, interval) for digest, (value, interval) in rows.items()}
        self._rows: dict[str, Any] = dict(self.known)

    def add(self, digest: str, value: tuple[float, float | None]) -> None:
        """Keep one value; the file is whole at every moment."""
        if self.path is None or digest in self._rows:
            return
        self._rows[digest] = value
        with atomic_open(self.path) as file:
            file.write(json.dumps({"scan": self._key, "values": self._rows}).encode())
