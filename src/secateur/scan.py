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
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import budget as budgets
from secateur import criteria
from secateur import granularity as granularities
from secateur.allocation import spend
from secateur.budget._limits import floors
from secateur.choice import masks_of, pools_of, worth_of
from secateur.core.context import Context, Loss
from secateur.core.files import replacing
from secateur.core.masks import Masks
from secateur.core.replay import Replay
from secateur.core.targets import Pattern, select
from secateur.core.undisturbed import undisturbed
from secateur.core.units import Units
from secateur.errors import BudgetNotMetError, DataError, NothingToDoError, OptionError, StoreError
from secateur.measure.accuracy import top_1
from secateur.measure.macs import macs

__all__ = ["Allocation", "Cell", "Scan", "scan"]

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))


@dataclass(frozen=True)
class Cell:
    """One measurement: this list of units, pruned alone at this level, everything else dense.

    `removed` of its `units` went, which took `weights` weights away. `interval` is the half-width of the 95 %
    interval where the value is a share of counted examples. `repeated` says the masks were those of another cell,
    whose value this is.
    """

    name: str
    sparsity: float
    units: int
    removed: int
    weights: int
    value: float
    interval: float | None = None
    repeated: bool = False


@dataclass(frozen=True)
class Allocation:
    """A sparsity for each scanned list. `budget` is the value to hand to `prune`.

    `predicted` is the dense value less the sum of the single drops: an estimate, as layers are pruned together but
    were measured alone. `cost` is what remains of `of` (MACs or parameters), as a share of dense.
    """

    sparsities: dict[str, float]
    predicted: float
    cost: float | None = None
    of: str = ""

    @property
    def budget(self) -> Any:
        """The `PerLayer` budget that does this."""
        return budgets.registry.get("per_layer")({name: s for name, s in self.sparsities.items() if s > 0.0})

    def table(self) -> str:
        """One line per list and the prediction."""
        width = max(len(name) for name in self.sparsities)
        lines = [f"{name:<{width}}  {sparsity:.4g}" for name, sparsity in self.sparsities.items()]
        lines.append(
            f"predicted {self.predicted:.4f}" + (f", {self.of} {self.cost:.4f} of dense" if self.of else "")
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Scan:
    """The table a scan measured. Prints as one; `save` and `load` keep it; `allocate` turns it into a budget."""

    cells: tuple[Cell, ...]
    dense: float
    higher_is_better: bool = True
    criterion: str = ""
    granularity: str = ""
    dense_interval: float | None = None
    costs: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # "macs"|"params" -> list -> dense cost
    skipped: int = field(default=0, compare=False)  # module calls answered from memory
    peak_bytes: int = field(default=0, compare=False)

    @property
    def names(self) -> list[str]:
        """The lists scanned, in the model's order."""
        return list(dict.fromkeys(cell.name for cell in self.cells))

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(sparsity, value) of one list, dense first."""
        rows = [(cell.sparsity, cell.value) for cell in self.cells if cell.name == name]
        if not rows:
            raise OptionError(f"{name!r} was not scanned; scanned: {', '.join(self.names)}")
        return [(0.0, self.dense), *(row for row in rows if row[0] > 0.0)]

    @property
    def table(self) -> str:
        """Values by list (rows) and sparsity (columns)."""
        levels = sorted({cell.sparsity for cell in self.cells} | {0.0})
        width = max(len(name) for name in self.names)
        lines = [f"{'':<{width}}  " + "  ".join(f"{level:>7.4g}" for level in levels)]
        for name in self.names:
            values = dict(self.curve(name))
            lines.append(
                f"{name:<{width}}  "
                + "  ".join(f"{values[level]:>7.4f}" if level in values else " " * 7 for level in levels)
            )
        if self.dense_interval is not None:
            widest = max(cell.interval or 0.0 for cell in self.cells)
            lines.append(f"95 % interval of each value: at most ±{max(widest, self.dense_interval):.4f}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table

    # -- choosing --------------------------------------------------------------------------------------------
    def allocate(
        self, floor: float | None = None, *, keep: float | None = None, of: str = "macs"
    ) -> Allocation:
        """A sparsity per list, by one of two rules.

        `floor`: the highest scanned sparsity before the value first passes the floor (0 where even the lowest level
        does). `keep`: the least predicted loss while at most this share of `of` ("macs" or "params") remains over the
        scanned lists; a limit that no combination reaches is a `BudgetNotMetError`.
        """
        if (floor is None) == (keep is None):
            raise OptionError(
                "allocate: give either floor= (a value to stay above) or keep= (a share that remains)"
            )
        if floor is not None:
            return self._by_floor(floor)
        assert keep is not None
        if not 0.0 < keep <= 1.0:
            raise OptionError(f"keep is the share that remains: expected 0 < keep <= 1, got {keep!r}")
        return self._by_cost(keep, of)

    def _by_floor(self, floor: float) -> Allocation:
        chosen = {}
        for name in self.names:
            best = 0.0
            for sparsity, value in self.curve(name)[1:]:
                if (value < floor) if self.higher_is_better else (value > floor):
                    break
                best = sparsity
            chosen[name] = best
        return Allocation(chosen, self._predict(chosen))

    def _by_cost(self, keep: float, of: str) -> Allocation:
        if of not in self.costs:
            known = ", ".join(self.costs) or "none"
            raise OptionError(
                f"allocate: the scan knows no costs in {of!r} (known: {known}); scan with example="
            )
        costs = self.costs[of]
        layers, levels = {}, {}
        for name in self.names:
            rows = {cell.sparsity: cell for cell in self.cells if cell.name == name}
            shares = [(0.0, 0.0)] + [(s, cell.removed / cell.units) for s, cell in rows.items() if s > 0.0]
            values = dict(self.curve(name))
            layers[name] = [(costs[name] * (1.0 - share), self._loss(values[s])) for s, share in shares]
            levels[name] = [s for s, _ in shares]
        total = sum(costs[name] for name in self.names)
        try:
            picked = spend(layers, keep * total)
        except BudgetNotMetError:
            least = sum(min(cost for cost, _ in options) for options in layers.values()) / total
            raise BudgetNotMetError(
                f"{of} cannot be brought to {keep:g} of dense over the scanned layers: at their highest scanned "
                f"sparsities {least:.4f} remains; scan higher levels, or ask for less"
            ) from None
        chosen = {name: levels[name][index] for name, index in picked.items()}
        left = sum(layers[name][index][0] for name, index in picked.items())
        return Allocation(chosen, self._predict(chosen), left / total, of)

    def _loss(self, value: float) -> float:
        return (self.dense - value) if self.higher_is_better else (value - self.dense)

    def _predict(self, chosen: Mapping[str, float]) -> float:
        lost = sum(self._loss(dict(self.curve(name))[sparsity]) for name, sparsity in chosen.items())
        return self.dense - lost if self.higher_is_better else self.dense + lost

    # -- keeping ---------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """The whole scan as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Scan:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(**{**data, "cells": tuple(Cell(**cell) for cell in data["cells"])})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scan as JSON, beside the target and renamed."""
        _write(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scan:
        """Read what `save` wrote."""
        return cls.from_json(Path(path).read_text())


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
    memory: int = 1 << 30,
    at_least: int | Mapping[Any, int] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    seed: int = 0,
) -> Scan:
    """Measure every layer's sensitivity: prune it alone at each level, evaluate, put it back to the last bit.

    `evaluate` is a function of the model that returns a number, or batches (inputs, targets) for top-1 accuracy. What
    the model computes before the layer under test is kept between evaluations, within `memory` bytes, and handed out
    again; the numbers are those of evaluating from scratch. `subset` takes only the first so many examples of the
    batches, and each value then has a 95 % interval. With an `example` (or batches) the MACs of each layer are counted
    so that `Scan.allocate(keep=...)` can spend them. `resume` names a file that keeps the values found so far: a scan
    that was stopped goes on from there. `progress(done, total, seconds_left)` is called after each value.
    """
    rule = criteria.registry.make(criterion)
    grain = granularities.registry.make(granularity)
    grid = _levels(levels)
    run, batches = _evaluation(model, evaluate, subset)
    if example is None and batches:
        example = _inputs_of(batches[0])
    targets = select(model, only, skip, parameters)
    context = Context(data=data if data is not None else batches, loss=loss, example=example, seed=seed)
    pieces = grain.units(model, targets, context)
    if not pieces:
        raise NothingToDoError(f"granularity {grain} finds no piece to scan in {type(model).__name__}")
    worth = worth_of(rule, model, targets, pieces, context)
    contests = [
        budgets.Contest(pools_of(model, [units], worth, targets, None), model, targets, context)
        for units in pieces
    ]
    plans = [
        _plan(model, units, replace(contest, pools=floors(contest, at_least)), grid)
        for units, contest in zip(pieces, contests, strict=True)
    ]
    ledger = _Ledger(resume, model, str(rule), str(grain), subset, batches)
    total = 1 + sum(len(plan) for plan in plans)
    clock, done = time.monotonic(), 0
    values: dict[str, tuple[float, float | None]] = dict(ledger.known)
    fresh = 0
    met = {"dense"}

    def note() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            each = (time.monotonic() - clock) / max(fresh, 1)
            progress(done, total, each * (total - done))

    cells: dict[tuple[int, int], Cell] = {}
    with undisturbed(model), torch.no_grad(), Replay(model, memory) as replay:
        values["dense"] = replay.first(run)
        if "dense" in ledger.known and ledger.known["dense"][0] != values["dense"][0]:
            raise StoreError(
                f"{resume}: the dense model gave {ledger.known['dense'][0]!r} when this scan began and gives "
                f"{values['dense'][0]!r} now; the evaluation is not repeatable, or it changed: scan into a new file"
            )
        fresh += 1
        ledger.add("dense", values["dense"])
        note()
        order = sorted(range(len(pieces)), key=lambda i: replay.position([m.name for m in pieces[i].members]))
        for i in order:
            names = sorted({member.name for member in pieces[i].members})
            with replay.before(names):
                for j, (sparsity, removed, masks) in enumerate(plans[i]):
                    digest = "dense" if removed == 0 else masks.digest()
                    if digest not in values:
                        values[digest] = _masked(model, masks, replay, run)
                        fresh += 1
                        ledger.add(digest, values[digest])
                    value, interval = values[digest]
                    gone = masks.numel - masks.kept
                    cells[i, j] = Cell(
                        pieces[i].name, sparsity, pieces[i].count, removed, gone, value, interval, digest in met
                    )  # fmt: skip
                    met.add(digest)
                    note()
    dense, interval = values["dense"]
    return Scan(
        cells=tuple(cells[i, j] for i in range(len(pieces)) for j in range(len(plans[i]))),
        dense=dense,
        higher_is_better=higher_is_better,
        criterion=str(rule),
        granularity=str(grain),
        dense_interval=interval,
        costs=_costs(model, example, pieces),
        skipped=replay.skipped,
        peak_bytes=replay.peak,
    )


def _levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The grid, checked: rising, each a share removed."""
    grid = tuple(budgets.check_share("level", level) for level in levels)
    if not grid:
        raise OptionError("levels: expected at least one sparsity, got none")
    if list(grid) != sorted(set(grid)):
        raise OptionError(f"levels: expected rising sparsities, each once, got {list(levels)}")
    return grid


def _evaluation(
    model: nn.Module, evaluate: Any, subset: int | None
) -> tuple[Callable[[], tuple[float, float | None]], list[Any]]:
    """What one evaluation is: () -> (value, half-width of its 95 % interval or None)."""
    if callable(evaluate):
        if subset is not None:
            raise OptionError(
                "subset: a function decides itself what it evaluates on; pass batches (inputs, targets) instead of a "
                "function, or let the function take fewer"
            )

        def measured() -> tuple[float, float | None]:
            value = float(evaluate(model))
            if math.isnan(value):
                raise DataError("scan: evaluate returned NaN; return a finite number for every pruned model")
            return value, None

        return measured, []
    batches = _first(evaluate, subset)

    def counted() -> tuple[float, float | None]:
        share, count = top_1(model, batches)
        return share, (_half_width(share, count) if subset is not None else None)

    return counted, batches


def _first(batches: Iterable[Any], subset: int | None) -> list[Any]:
    """The batches in memory, or as many as hold the first `subset` examples."""
    if subset is None:
        return list(batches)
    if subset < 1:
        raise OptionError(f"subset: expected a number of examples of at least 1, got {subset}")
    taken: list[Any] = []
    left = subset
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise OptionError(
                "subset: expected batches (inputs, targets); for other batches take fewer beforehand"
            )
        inputs, targets = batch[0][:left], batch[1][:left]
        taken.append((inputs, targets))
        left -= len(targets)
        if left <= 0:
            return taken
    raise DataError(f"subset: the data holds {subset - left} examples, asked for {subset}")


def _half_width(share: float, count: int) -> float:
    """Half of Wilson's 95 % interval of a share of `count`, which stays honest at 0 and 1."""
    z = 1.959963984540054
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


def _inputs_of(batch: Any) -> Any:
    inputs = (
        batch[0] if isinstance(batch, (tuple, list)) else {k: v for k, v in batch.items() if k != "labels"}
    )
    return inputs[:1] if isinstance(inputs, torch.Tensor) else inputs


def _plan(
    model: nn.Module, units: Units, contest: budgets.Contest, grid: Sequence[float]
) -> list[tuple[float, int, Masks]]:
    """(sparsity, units removed, masks) of each level of one list."""
    plan = []
    for level in grid:
        keep = budgets.registry.make(level).choose(contest)
        plan.append((level, units.count - int(keep[units.name].sum()), masks_of(model, [units], keep, None)))
    return plan


def _masked(model: nn.Module, masks: Masks, replay: Replay, run: Callable[[], Any]) -> Any:
    """The evaluation with these masks on; the weights come back to the last bit, whatever happens."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    saved = {name: parameters[name].detach().clone() for name in masks}
    try:
        masks.apply_(model)
        return replay.run(run)
    finally:
        for name, value in saved.items():
            parameters[name].copy_(value)


def _costs(model: nn.Module, example: Any, pieces: Sequence[Units]) -> dict[str, dict[str, float]]:
    """What each list costs when dense: the parameters it cuts, and the MACs of their layers."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    costs = {"params": {u.name: float(sum(sizes[n] for n in {m.name for m in u.members})) for u in pieces}}
    if example is not None:
        per_layer = macs(model, example)["macs"].per_layer
        costs["macs"] = {
            u.name: float(
                sum(per_layer.get(layer, 0) for layer in {m.name.rpartition(".")[0] for m in u.members})
            )
            for u in pieces
        }
    return costs


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
        _write(self.path, json.dumps({"scan": self._key, "values": self._rows}))


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
