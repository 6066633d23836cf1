"""The tables of a study: measurements by their settings, with the published figure and the difference beside them.

>>> from secateur.core.measurement import Measurements
>>> found = Measurements([
...     Measurement("macs", value, "MAC", context={"trial": 0, "variant": name, "sparsity": 0.5})
...     for name, value in (("dense", 100), ("shrunk", 40))])
>>> spec = TableSpec(title="Cost", rows=("sparsity",), where={"variant": "shrunk"},
...                  columns=("macs", TableColumn(name="macs", over="dense", title="times fewer")))
>>> made = tabulate(spec, found, [PublishedFigure(name="macs", value=50, where={"sparsity": 0.5})])
>>> made.head
('sparsity', 'macs', 'published', 'difference', 'times fewer')
>>> made.rows
[('0.5', '40', '50', '−10 (−20.0 %)', '2.50×')]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from secateur.core.measurement import Measurement
from secateur.report.reading import as_text, is_share
from secateur.report.summary import number
from secateur.studies.published import PublishedFigure, alike
from secateur.studies.study import TableColumn, TableSpec

__all__ = ["Tabulated", "difference", "tabulate"]

_OF_ALL = ("variant", "layer", "part", "run", "trial", "step", "batch")
Trial = dict[tuple[str, str], list[Measurement]]  # (variant, name) -> its measurements, in order
Slot = tuple[int, str]  # a column's number, and the value of the setting across


@dataclass
class Tabulated:
    """A table as it is printed: `rows` are texts, `values` the numbers behind them (None where there is none)."""

    title: str
    about: str = ""
    head: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    values: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    right: tuple[int, ...] = ()
    used: list[PublishedFigure] = field(default_factory=list)

    def plain(self) -> dict[str, object]:
        """The table as plain data."""
        values = [dict(zip(self.head, row)) for row in self.values]
        return {
            "title": self.title,
            "head": list(self.head),
            "rows": self.rows,
            "values": values,
            "notes": self.notes,
        }


def difference(ours: float, published: float, name: str = "", digits: int | None = None) -> str:
    """Ours less the published figure, in points where both are shares; 0 where both are the same to `digits` decimals.

    >>> difference(0.9, 0.88, "accuracy"), difference(110.0, 100.0), difference(5, 5)
    ('+2.00 points', '+10 (+10.0 %)', '0')
    """
    change = ours - published
    if not change or (digits is not None and round(ours, digits) == round(published, digits)):
        return "0"
    sign = "+" if change > 0 else "−"
    if is_share(name):
        return f"{sign}{abs(change) * 100:.2f} points"
    text = f"{sign}{number(abs(change), name)}"
    return text + (f" ({sign}{abs(change / published):.1%})".replace("%", " %") if published else "")


def tabulate(
    spec: TableSpec, measurements: Iterable[Measurement], figures: Sequence[PublishedFigure]
) -> Tabulated:
    """A table filled; empty where nothing was measured for it.

    Args:
        spec: What the table shows.
        measurements: All measurements; the table takes those it shows.
        figures: The published figures.
    """
    grid = _Grid(spec, [item for item in measurements if _wanted(item, spec)])
    grid.fill()
    return _Writing(grid, figures).table()


class _Grid:
    """The cells of a table by row and slot. A slot is a column's number and the value of the setting across."""

    def __init__(self, spec: TableSpec, kept: Sequence[Measurement]):
        self.spec, self.columns = spec, spec.all_columns()
        self.trials: dict[tuple[str, int], Trial] = {}
        self.settings: dict[tuple[Any, ...], Trial] = {}
        for item in kept:
            key = (str(item.context.get("variant", "")), item.name)
            self.trials.setdefault(_trial_of(item), {}).setdefault(key, []).append(item)
            self.settings.setdefault(self._settings(item.context), {}).setdefault(key, []).append(item)
        self.items = [item for item in kept if _in(item.context, spec.where)]
        self.cells: dict[tuple[Any, ...], dict[Slot, _Cell]] = {}
        self.across: list[str] = []

    def fill(self) -> None:
        """Every measurement into the cells of all columns that show it."""
        for item in self.items:
            for context, value in _split(item, self.spec):
                self._add(item, context, value)

    def _add(self, item: Measurement, context: Mapping[str, object], value: float | int) -> None:
        spec = self.spec
        if "variant" in spec.rows and context.get("variant") in spec.once:
            context = {key: value for key, value in context.items() if key in _OF_ALL}
        row = tuple(_hashed(context.get(key, "")) for key in spec.rows)
        over = as_text(context[spec.across]) if spec.across and spec.across in context else ""
        if spec.across and not over:
            return
        for index, column in enumerate(self.columns):
            found = self._found(column, item, context, value)
            if found is None:
                continue
            if over not in self.across:
                self.across.append(over)
            cell = self.cells.setdefault(row, {}).setdefault((index, over), _Cell(item, context))
            cell.values[_trial_of(item)] = found

    def _settings(self, context: Mapping[str, object]) -> tuple[Any, ...]:
        """What makes a row of the table, but for the variant and what differs within a trial."""
        keys = [key for key in (*self.spec.rows, self.spec.across) if key and key not in _OF_ALL]
        return tuple(_hashed(context.get(key, "")) for key in keys)

    def _elsewhere(self, item: Measurement, wanted: tuple[str, str]) -> list[Measurement]:
        """What a trial of another part measured for the same row; nothing where several trials did."""
        row = self._settings(item.context)
        found = self.settings.get(row, {}).get(wanted, []) if any(value != "" for value in row) else []
        return found if len({_trial_of(one) for one in found}) == 1 else []

    def _found(
        self, column: TableColumn, item: Measurement, context: Mapping[str, object], value: float | int
    ) -> float | int | None:
        """The value that a column shows of a measurement, or of another variant's in the same trial."""
        trial = self.trials[_trial_of(item)]
        if column.variant is None:
            same = column.name == item.name
            return _value(column, item, value, context.get("layer"), trial) if same else None
        once = self.spec.once
        if context.get("variant") in once and column.variant not in once:
            return None  # a variant that is the same in every trial has no single trial to compare with
        if item.name != joined_name(self.items, column):
            return None
        wanted = (column.variant, column.name)
        other = trial.get(wanted) or self._elsewhere(item, wanted)
        return _value(column, other[-1], _at(other[-1], context.get("layer")), None, trial) if other else None


def _trial_of(item: Measurement) -> tuple[str, int]:
    """Its run and trial."""
    return str(item.context.get("run", "")), int(item.context.get("trial", 0))


def joined_name(items: Sequence[Measurement], column: TableColumn) -> str:
    """The measure whose rows a column of another variant joins: its own, else the first of the table."""
    own = {item.name for item in items}
    return column.name if column.name in own else items[0].name


@dataclass
class _Cell:
    item: Measurement
    context: Mapping[str, object]
    values: dict[tuple[str, int], float | int] = field(default_factory=dict)

    @property
    def value(self) -> float | int:
        several = list(self.values.values())
        return several[0] if len(set(several)) == 1 else fmean(several)


def _wanted(item: Measurement, spec: TableSpec) -> bool:
    """Whether a table shows a measurement; that of another variant may be asked for by a column."""
    if "published" in item.context or "epoch" in item.context:
        return False
    return not spec.parts or item.context.get("part") in spec.parts


def _in(context: Mapping[str, object], where: Mapping[str, object]) -> bool:
    return all(key in context and alike(context[key], value) for key, value in where.items())


def _split(item: Measurement, spec: TableSpec) -> list[tuple[Mapping[str, object], float | int]]:
    """A measurement as (context, value): once, or layer by layer where the table has layers."""
    if "layer" not in (*spec.rows, spec.across) or "layer" in item.context:
        return [(item.context, item.value)]
    return [({**item.context, "layer": layer}, value) for layer, value in item.per_layer.items()]


def _at(item: Measurement, layer: object) -> float | int | None:
    return item.value if layer is None else item.per_layer.get(str(layer))


def _value(
    column: TableColumn, item: Measurement, value: float | int | None, layer: object, trial: Trial
) -> float | int | None:
    """The value that a column shows of a measurement."""
    if column.of is not None:
        return item.spread.get(column.of)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return value
    other = column.over or column.share
    if other is None:
        return value
    found = trial.get((other, column.name), [])
    base = _at(found[0], layer) if found else None
    if base is None:
        return None
    top, bottom = (base, value) if column.over else (value, base)
    return top / bottom if bottom else None


def _hashed(value: object) -> str | int | float:
    """A setting as a hashable value; numbers stay numbers, for sorting."""
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else as_text(value)


def _text(column: TableColumn, cell: _Cell) -> str:
    if column.over:
        return number(cell.value, "", "x")
    if column.share:
        return number(cell.value, "share_sparsity")
    unit = cell.item.unit if column.of is None else ""
    if column.digits is not None:
        text = f"{cell.value:,.{column.digits}f}"
    else:
        text = number(cell.value, column.name, unit)
    return f"{text} %" if unit == "%" else text


class _Writing:
    """Turns a filled grid into texts, with the published figure and the difference beside each cell that has one."""

    def __init__(self, grid: _Grid, figures: Sequence[PublishedFigure]):
        self._grid = grid
        self._made = Tabulated(grid.spec.title, grid.spec.about)
        slots = [(index, over) for over in grid.across for index in range(len(grid.columns))]
        self._slots = [slot for slot in slots if any(slot in row for row in grid.cells.values())]
        self._beside = {
            (key, slot): match
            for key, row in grid.cells.items()
            for slot, cell in row.items()
            if (match := self._match(slot, cell, figures)) is not None
        }
        self._paired = {slot for _, slot in self._beside}

    def table(self) -> Tabulated:
        """The table."""
        made, rows = self._made, len(self._grid.spec.rows)
        made.head = tuple(self._head())
        made.right = tuple(range(rows, len(made.head)))
        for key, row in self._grid.cells.items():
            texts, values = [as_text(part) for part in key], list(key)
            for slot in self._slots:
                found = row.get(slot)
                texts.append(_text(self._grid.columns[slot[0]], found) if found else "")
                values.append(found.value if found else None)
                if slot in self._paired:
                    for text, value in self._comparison(slot, found, self._beside.get((key, slot))):
                        texts.append(text)
                        values.append(value)
            made.rows.append(tuple(texts))
            made.values.append(tuple(values))
        made.used = list(self._beside.values())
        return made

    def _match(self, slot: Slot, cell: _Cell, figures: Sequence[PublishedFigure]) -> PublishedFigure | None:
        """The published figure of a cell."""
        column = self._grid.columns[slot[0]]
        name = column.published or (column.name if not (column.over or column.share or column.of) else "")
        context = cell.context if column.variant is None else {**cell.context, "variant": column.variant}
        return next((one for one in figures if one.fits(name, context)), None)

    def _head(self) -> list[str]:
        columns, cells = self._grid.columns, self._grid.cells.values()
        head = [key.replace("_", " ") for key in self._grid.spec.rows]
        for index, over in self._slots:
            unit = next((row[index, over].item.unit for row in cells if (index, over) in row), "")
            suffix = f" [{unit}]" if unit in ("ms", "s") and columns[index].of is None else ""
            several = len(columns) > 1 or not over
            title = " · ".join(part for part in (over, columns[index].head if several else "") if part)
            head += [title + suffix, *(("published", "difference") if (index, over) in self._paired else ())]
        return head

    def _comparison(
        self, slot: Slot, found: _Cell | None, figure: PublishedFigure | None
    ) -> list[tuple[str, float | int | None]]:
        """The published figure and the difference, each as text and number."""
        if figure is None:
            return [("", None), ("", None)]
        column = self._grid.columns[slot[0]]
        name = "share_sparsity" if column.share else column.name
        text = _shown(figure.value, column, name, "x" if column.over else "") + _note(self._made, figure)
        if found is None:
            return [(text, figure.value), ("", None)]
        change = difference(found.value, figure.sound, name, column.digits)
        return [(text, figure.value), (change, found.value - figure.sound)]


def _shown(value: float | int, column: TableColumn, name: str, unit: str) -> str:
    """A published figure in the format of ours beside it."""
    return number(value, name, unit) if column.digits is None else f"{value:,.{column.digits}f}"


def _note(made: Tabulated, figure: PublishedFigure) -> str:
    """The note on a figure: why it cannot be right, and the number that ours is compared with instead."""
    if not (figure.inconsistent or figure.note):
        return ""
    text = f"reference inconsistent: {figure.inconsistent}" if figure.inconsistent else figure.note
    if figure.follows is not None:
        text += f"; {number(figure.follows, figure.name)} follows from it, and the difference is to that"
    if text not in made.notes:
        made.notes.append(text)
    return " (" + "*" * (made.notes.index(text) + 1) + ")"
