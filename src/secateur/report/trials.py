"""The table of a sweep's trials: one row for every variant of every trial, one column for every setting and measure.

>>> found = Measurements(
...     Measurement("accuracy", value, context={"trial": trial, "variant": variant, "prune.budget": 0.5 + trial / 4})
...     for trial in (0, 1) for variant, value in (("dense", 0.9), ("pruned", 0.8)))
>>> table = trials_table(found)
>>> table.head
('trial', 'variant', 'budget', 'removed', 'accuracy')
>>> [cell.text for cell in table.rows[0]], table.choices
(['1', 'dense', '0.5', '0.0 %', '90.00 %'], {1: ['dense', 'pruned'], 2: ['0.5', '0.75']})
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.measurement import Measurement, Measurements
from secateur.report.reading import VariantRow, as_text, finite, rows_of, settings_of
from secateur.report.summary import MEASURES, NAMES, number

__all__ = ["TableCell", "TrialsTable", "trials_table"]

_MOST_MEASURES = 9
_MOST_CHOICES = 12


@dataclass(frozen=True)
class TableCell:
    """A cell: its text, and the number that it is sorted by where it has one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class TrialsTable:
    """Rows under a head.

    `choices` holds, by column, the values that a reader may pick from; `kinds` the variant of each row; `of` how many
    rows there are when not all are shown.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    choices: dict[int, list[str]]
    kinds: tuple[str, ...]
    of: int


def trials_table(measurements: Measurements, most: int = 250) -> TrialsTable:
    """Every variant of every trial.

    Args:
        measurements: What was measured.
        most: Show at most this many rows, evenly spaced.

    Returns:
        The table.
    """
    rows = rows_of(measurements)
    settings = settings_of(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    order = [name for name in MEASURES if name in names] + [name for name in names if name not in MEASURES]
    order = order[:_MOST_MEASURES]
    runs, seeds = len({row.run for row in rows}) > 1, len({str(row.seed) for row in rows}) > 1
    removed = any(row.removed is not None for row in rows)
    head = ["trial", *(["run"] if runs else []), "variant", *settings.values(), *(["seed"] if seeds else [])]
    first_measure = len(head)
    head += [*(["removed"] if removed else []), *(_heading(name) for name in order)]

    def cells(row: VariantRow) -> tuple[TableCell, ...]:
        found = [
            TableCell(str(row.trial + 1), row.trial),
            *([TableCell(row.run)] if runs else []),
            TableCell(row.variant),
        ]
        found += [_setting(row.settings.get(key)) for key in settings]
        found += [TableCell(str(row.seed))] if seeds else []
        if removed:
            share = row.removed
            found.append(TableCell("") if share is None else TableCell(f"{share * 100:.1f} %", share))
        return (*found, *(_measured(row.values.get(name)) for name in order))

    shown = rows[:: max(1, -(-len(rows) // most))]
    body = tuple(cells(row) for row in shown)
    choices = {}
    for index in range(1, first_measure):
        values = list(dict.fromkeys(row[index].text for row in body if row[index].text))
        if 2 <= len(values) <= _MOST_CHOICES:
            choices[index] = values
    return TrialsTable(tuple(head), body, choices, tuple(row.variant for row in shown), len(rows))


def _heading(name: str) -> str:
    """The heading of a measure's column."""
    alone = {"macs_nonzero": "non-zero multiply-accumulates", "latency": "latency, ms"}
    return alone.get(name) or NAMES.get(name, name.replace("_", " "))


def _setting(value: object) -> TableCell:
    return TableCell("") if value is None else TableCell(as_text(value), finite(value))


def _measured(item: Measurement | None) -> TableCell:
    return (
        TableCell("")
        if item is None
        else TableCell(number(item.value, item.name, item.unit), float(item.value))
    )
