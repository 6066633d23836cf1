"""The result of a scan: `Scan`, a table of `Cell`s, and the `Allocation` of sparsities that follows from it.

>>> cells = [Cell("a", 0.5, 10, 5, 50, 0.8), Cell("b", 0.5, 10, 5, 50, 0.4)]
>>> found = Scan(tuple(cells), dense=0.9, costs={"macs": {"a": 100.0, "b": 100.0}})
>>> print(found)
       0      0.5
a   0.9000   0.8000
b   0.9000   0.4000
>>> found.allocate(floor=0.5).sparsities, found.allocate(keep=0.75).sparsities
({'a': 0.5, 'b': 0.0}, {'a': 0.5, 'b': 0.0})
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secateur import budget as budgets
from secateur.allocation.knapsack import spend
from secateur.core.atomic_files import atomic_open
from secateur.core.html_table import html_table
from secateur.core.json_text import parse
from secateur.errors import BudgetNotMetError, DataError, OptionError

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Allocation", "Cell", "Scan"]


@dataclass(frozen=True)
class Cell:
    """One measurement: this list of units, pruned alone at this level, everything else dense.

    `removed` of its `units` were removed, with `weights` weights. `interval` is the half-width of the 95 %
    interval where the value is a share of counted examples. `repeated` says the masks were those of another cell,
    whose value this is. `estimate` is the first-order criterion's score of the removed units, `time` the
    shrunk model's share of the dense model's time, read in turns; both are None if not asked for.
    """

    name: str
    sparsity: float
    units: int
    removed: int
    weights: int
    value: float
    interval: float | None = None
    repeated: bool = False
    estimate: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class Allocation:
    """A sparsity for each scanned list. `budget` is the value to hand to `prune`.

    `predicted` is the dense value less the sum of the single drops: an estimate, as layers are pruned together but
    were measured alone. `cost` is what remains of `of` (MACs, parameters, bytes or time), as a share of dense.
    """

    sparsities: dict[str, float]
    predicted: float
    cost: float | None = None
    of: str = ""

    @property
    def budget(self) -> Any:
        """The `PerLayer` budget with these sparsities."""
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
    """The table a scan measured. It prints as a table; `save` and `load` store it; `allocate` turns it into a budget.

    `how` says in a sentence how the evaluations were made faster; the values are those of the plain loop.
    """

    cells: tuple[Cell, ...]
    dense: float
    higher_is_better: bool = True
    criterion: str = ""
    granularity: str = ""
    dense_interval: float | None = None
    # "macs" | "params" | "size" -> list -> what it costs when dense
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    estimate: str = ""  # the criterion of the first-order column
    how: str = field(default="", compare=False)
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
        """Values by list (rows) and sparsity (columns), and the first-order estimates below them."""
        lines = self._grid({name: dict(self.curve(name)) for name in self.names}, ".4f")
        if self.dense_interval is not None:
            widest = max(cell.interval or 0.0 for cell in self.cells)
            lines.append(f"95 % interval of each value: at most ±{max(widest, self.dense_interval):.4f}")
        if self.estimate:
            rows: dict[str, dict[float, float]] = {name: {} for name in self.names}
            for cell in self.cells:
                if cell.estimate is not None:
                    rows[cell.name][cell.sparsity] = cell.estimate
            lines += [f"{self.estimate} of what goes (first order, in units of the loss)"]
            lines += self._grid(rows, ".1e")
        return "\n".join(lines)

    def _grid(self, rows: Mapping[str, Mapping[float, float]], style: str) -> list[str]:
        levels = sorted({level for row in rows.values() for level in row})
        width = max(len(name) for name in rows)
        lines = [f"{'':<{width}}  " + "  ".join(f"{level:>7.4g}" for level in levels)]
        for name, row in rows.items():
            told = (f"{row[level]:>7{style}}" if level in row else " " * 7 for level in levels)
            lines.append(f"{name:<{width}}  " + "  ".join(told))
        return lines

    def __str__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        """Values by list and sparsity in a notebook."""
        rows = {name: dict(self.curve(name)) for name in self.names}
        levels = sorted({level for row in rows.values() for level in row})
        cells = (
            (name, *(f"{row[level]:.4f}" if level in row else "" for level in levels))
            for name, row in rows.items()
        )
        return html_table(("layer", *(f"{level:g}" for level in levels)), cells)

    def plot(self) -> alt.TopLevelMixin:
        """The curves of all layers as the report draws them; a notebook shows what is returned."""
        from secateur.report.charts import chart
        from secateur.report.forms import scan_measurements

        drawn: alt.TopLevelMixin = chart("sensitivity", scan_measurements(self))[0].chart
        return drawn

    # -- choosing --------------------------------------------------------------------------------------------
    def allocate(
        self, floor: float | None = None, *, keep: float | None = None, cost: str = "macs"
    ) -> Allocation:
        """Choose a sparsity for each list, by one of two rules.

        Args:
            floor: Take the highest scanned sparsity before the value first passes this floor (0 where even the lowest
                level does).
            keep: Take the least predicted loss while at most this share of `cost` remains.
            cost: "macs" or "params" (over the scanned lists), "size" (their bytes once coded, estimated from the
                counts), or "latency" (of the whole model, from the times that `scan(repetitions=...)` read with one
                list cut at a time).

        Raises:
            BudgetNotMetError: No combination keeps as little as `keep`, or the dense model is past `floor` itself.
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
        return self._by_cost(keep, cost)

    def _by_floor(self, floor: float) -> Allocation:
        if (self.dense < floor) if self.higher_is_better else (self.dense > floor):
            raise BudgetNotMetError(
                f"floor: the model has {self.dense:g} before anything is removed, and {floor:g} is asked for; ask for "
                "less, or train it further first"
            )
        chosen = {}
        for name in self.names:
            best = 0.0
            for sparsity, value in self.curve(name)[1:]:
                if (value < floor) if self.higher_is_better else (value > floor):
                    break
                best = sparsity
            chosen[name] = best
        return Allocation(chosen, self._predict(chosen))

    def _by_cost(self, keep: float, cost: str) -> Allocation:
        layers, levels = {}, {}
        for name in self.names:
            rows = [cell for cell in self.cells if cell.name == name and cell.sparsity > 0.0]
            costs = self._costs_of(name, rows, cost)
            values = [self.dense, *(cell.value for cell in rows)]
            layers[name] = [(spent, self._loss(value)) for spent, value in zip(costs, values, strict=True)]
            levels[name] = [0.0, *(cell.sparsity for cell in rows)]
        total = sum(options[0][0] for options in layers.values())
        try:
            picked = spend(layers, keep * total)
        except BudgetNotMetError:
            least = sum(min(spent for spent, _ in options) for options in layers.values()) / total
            raise BudgetNotMetError(
                f"{cost} cannot be brought to {keep:g} of dense over the scanned layers: at their highest scanned "
                f"sparsities {least:.4f} remains; scan higher levels, or ask for less"
            ) from None
        chosen = {name: levels[name][index] for name, index in picked.items()}
        left = sum(layers[name][index][0] for name, index in picked.items())
        return Allocation(chosen, self._predict(chosen), left / total, cost)

    def _costs_of(self, name: str, rows: list[Cell], cost: str) -> list[float]:
        """The cost of a list, dense and at each of its levels."""
        if cost == "latency":
            times = [cell.time for cell in rows]
            if any(time is None for time in times):
                raise OptionError(
                    "allocate: the scan read no times; scan with repetitions= (and granularity 'channel', as zeros in "
                    "place save no time)"
                )
            # each list is given an even share of the whole, less its own saving, so that the lists add up to the whole
            share = 1.0 / len(self.names)
            return [share, *(share - (1.0 - time) for time in times if time is not None)]
        if cost not in self.costs:
            known = ", ".join(self.costs) or "none"
            raise OptionError(
                f"allocate: the scan knows no costs in {cost!r} (known: {known}); scan with example= for macs, with "
                "repetitions= for latency"
            )
        dense = self.costs[cost][name]
        if cost == "size":
            return [dense, *(_coded(dense, cell) for cell in rows)]
        return [dense, *(dense * (1.0 - cell.removed / cell.units) for cell in rows)]

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
        """The inverse of `to_json`.

        Args:
            text: The scan, as JSON.

        Raises:
            DataError: The text is not a scan.
        """
        data = parse(text, "a scan", DataError, constants=True)
        cells = data.get("cells") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(cells, list):
            raise DataError(
                "a scan: expected a JSON object with cells, as save writes it, got something else"
            )
        return _checked(cls, {**data, "cells": tuple(_checked(Cell, cell) for cell in cells)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scan as JSON, beside the target and renamed."""
        with atomic_open(Path(path)) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scan:
        """Read a scan that `save` wrote.

        Args:
            path: The file.

        Raises:
            DataError: The file is not a scan.
        """
        try:
            return cls.from_json(Path(path).read_bytes().decode())
        except UnicodeDecodeError:
            raise DataError(f"{path}: expected a scan as JSON in UTF-8, got other bytes") from None


_Value = TypeVar("_Value", Cell, Scan)
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "tuple[Cell, ...]": (tuple,),
}


def _checked(kind: type[_Value], data: object) -> _Value:
    """A value of a dataclass from plain data whose fields have the types that the class says."""
    if not isinstance(data, dict):
        raise DataError(f"a scan: expected an object for a {kind.__name__}, got {str(data)[:80]!r}")
    for each in fields(kind):
        value = data.get(each.name)
        if each.name not in data:
            fits = each.default is not MISSING or each.default_factory is not MISSING
        elif each.name == "costs":
            fits = _are_costs(value)
        else:
            fits = isinstance(value, _KINDS[str(each.type)]) and (
                isinstance(value, bool) <= (each.type == "bool")
            )
        if not fits:
            raise DataError(
                f"a scan: {each.name} of a {kind.__name__}: expected {each.type}, got {str(value)[:80]!r}"
            )
    unknown = sorted(set(data) - {each.name for each in fields(kind)})
    if unknown:
        raise DataError(
            f"a scan: a {kind.__name__} has no {unknown[0][:80]!r}; was it saved by a later release?"
        )
    return kind(**data)


def _are_costs(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, dict) and all(type(cost) in (int, float) for cost in row.values())
        for row in value.values()
    )


def _coded(dense: float, cell: Cell) -> float:
    """Bytes of a list at a level: the weights that stay, and which units these are, at the entropy of that choice."""
    gone = cell.removed / cell.units
    if gone in (0.0, 1.0):
        return dense * (1.0 - gone)
    bits = -gone * math.log2(gone) - (1.0 - gone) * math.log2(1.0 - gone)
    return dense * (1.0 - gone) + cell.units * bits / 8
