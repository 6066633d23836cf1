"""Tables of runs as files for other programs: rows of plain values as .csv, .parquet or .json; what every step cost.

>>> column_type([1, None, 2]), column_type([1, 2.5]), column_type([0.5, "0.5"]), column_type([True])
('int64', 'double', 'string', 'string')
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.core.json_text import finite
from secateur.errors import NothingToDoError, OptionError
from secateur.lab.objects import atomic_write
from secateur.lab.outcomes import Table
from secateur.report.files import csv_text

if TYPE_CHECKING:
    from secateur.lab.store import RunRow, Store

__all__ = ["cell", "column_type", "steps_table", "write_steps", "write_table"]

_MOST = 2**63  # integers of Parquet have 64 bits


def cell(value: object) -> object:
    """A setting as a cell of a table: numbers and texts as they are, other values as JSON."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value)


def column_type(values: Iterable[object]) -> str:
    """The type of a column in a Parquet file: that of its numbers where it has nothing else, else text.

    Args:
        values: The column's cells; None is an empty one.
    """
    found = [value for value in values if value is not None]
    kinds = {type(value) for value in found}
    if kinds == {int} and all(-_MOST <= value < _MOST for value in found if isinstance(value, int)):
        return "int64"
    return "double" if kinds and kinds <= {int, float} else "string"


def write_table(columns: Sequence[str], rows: Sequence[Table], path: Path) -> None:
    """Write rows to a file.

    In .csv a text cell that a spreadsheet would take for a formula begins with an apostrophe. In .parquet a column
    that holds numbers alone is int64 or double; an empty cell of it is null, one of a column of text is "".

    Args:
        columns: The columns' names, in order.
        rows: The cells of each row by their column; those that are not there are empty.
        path: A name that ends in .csv, .parquet or .json.

    Raises:
        OptionError: The name has another ending.
    """
    if path.suffix == ".csv":
        cells = ([row.get(name) for name in columns] for row in rows)
        atomic_write(path, csv_text(columns, cells).encode())
    elif path.suffix == ".parquet":
        atomic_write(path, _parquet(columns, rows))
    elif path.suffix == ".json":
        plain = [{name: row.get(name) for name in columns} for row in rows]
        atomic_write(path, json.dumps(finite(plain), indent=2).encode())
    else:
        raise OptionError(f"{path}: expected a name that ends in .csv, .parquet or .json")


def _parquet(columns: Sequence[str], rows: Sequence[Table]) -> bytes:
    """The bytes of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    types = {"int64": pyarrow.int64(), "double": pyarrow.float64(), "string": pyarrow.string()}
    made = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        kind = column_type(values)
        if kind == "string":
            values = ["" if value is None else str(value) for value in values]
        elif kind == "double":
            values = [None if value is None else float(value) for value in values]
        made[name] = pyarrow.array(values, types[kind])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(made), buffer)
    return buffer.getvalue()


_BEFORE = ("run", "name", "trial", "trial_number", "seed")
_AFTER = ("label", "kind", "how", "seconds", "device", "finished", "status", "error")


def steps_table(store: Store, runs: Iterable[RunRow]) -> tuple[list[str], list[Table]]:
    """A row for every step of every trial of some runs: how its outcome was obtained, what it cost, and its error.

    `how` is computed, cached (an earlier run had computed it) or shared (another trial of this run had), and empty for
    a step without an outcome. `seconds` are those of the computation, also where an outcome was only found: what a run
    took is the sum over its computed steps. `status` is done, failed, not reached (after a failed step) or waiting.

    Args:
        store: The store.
        runs: Some of its runs.

    Returns:
        The columns, with one for each setting of a grid, and the rows.
    """
    rows: list[Table] = []
    axes: dict[str, None] = {}
    for run in runs:
        trials = store.trials(run.id)
        computed = {step["key"] for trial in trials for step in trial["steps"] if step["how"] == "computed"}
        for trial in trials:
            settings = {key: cell(value) for key, value in trial["settings"].items()}
            axes |= dict.fromkeys(settings)
            number = trial["trial"]
            base = {"run": run.id, "name": run.name, "trial": number, "trial_number": number + 1}
            base["seed"] = trial["settings"].get("lab.seed", run.seed)
            rows += [{**settings, **base, **own} for own in _steps_of(trial, computed)]
    extra = [axis for axis in axes if axis not in (*_BEFORE, *_AFTER)]
    return [*_BEFORE, *extra, *_AFTER], rows


def _steps_of(trial: Table, computed: set[str]) -> list[Table]:
    """The steps of a trial, the one that failed with the trial's error."""
    rows: list[Table] = []
    failed = False
    for step in trial["steps"]:
        row = {"label": step["label"], "kind": step["kind"]}
        if step["how"] in ("computed", "cached"):
            shared = step["how"] == "cached" and step["key"] in computed
            row |= {name: step[name] for name in ("seconds", "device", "finished")}
            row |= {"how": "shared" if shared else step["how"], "status": "done"}
        elif failed or trial["status"] != "failed":
            row["status"] = "not reached" if failed else "waiting"
        else:
            failed = True
            row |= {"status": "failed", "error": trial["error"]}
        rows.append(row)
    return rows


def write_steps(store: Store, runs: Iterable[RunRow], path: Path) -> int:
    """Write `steps_table` to a file.

    Args:
        store: The store.
        runs: Some of its runs.
        path: A name that ends in .csv, .parquet or .json.

    Returns:
        How many rows were written.

    Raises:
        NothingToDoError: The runs have no steps.
        OptionError: The name has another ending.
    """
    columns, rows = steps_table(store, runs)
    if not rows:
        raise NothingToDoError("these runs have no steps, so there is nothing to export")
    write_table(columns, rows, path)
    return len(rows)
