"""Rows of the store's database as values, each checked: a changed or damaged store is said to be one.

>>> measurement_of({"name": 1})
Traceback (most recent call last):
secateur.errors.StoreError: a measurement: expected what secateur writes, got something else ...
"""

from __future__ import annotations

import json
import sqlite3

from secateur.core.measurement import Measurement
from secateur.errors import StoreError
from secateur.lab.database import parsed, typed
from secateur.lab.outcomes import RunRow, Table

__all__ = ["in_order", "measurement_of", "run_row"]


def in_order(value: object) -> str:
    """A measurement as JSON, with its layers in the model's order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def measurement_of(data: Table) -> Measurement:
    """A measurement as the store has it."""
    try:
        found = Measurement.from_dict(data)
        if not all(
            isinstance(text, str) for text in (found.name, found.unit, found.definition, *found.notes)
        ):
            raise TypeError("name, unit, definition and notes are text")
        numbers = (*found.per_layer.values(), *found.trials, *found.spread.values())
        if not all(isinstance(number, int | float | None) for number in numbers):
            raise TypeError("layers, trials and spread are numbers")
        return found
    except Exception as error:  # whatever the values of a changed file lead to
        raise StoreError(
            f"a measurement: expected what secateur writes, got something else ({error}); the store is damaged or was "
            "changed; restore it from a copy, or name another folder with --store"
        ) from error


def run_row(row: sqlite3.Row) -> RunRow:
    """A run as the store has it."""
    seconds = row["seconds"]

    def text(name: str) -> str:
        return typed(row[name], f"{name} of a run", str)

    def count(name: str) -> int:
        return typed(row[name], f"{name} of a run", int)

    return RunRow(
        id=count("id"),
        name=text("name"),
        status=text("status"),
        started=text("started"),
        seconds=None if seconds is None else typed(seconds, "seconds of a run", float),
        trials=count("trials"),
        failed=count("failed"),
        steps=count("steps"),
        computed=count("computed"),
        seed=count("seed"),
        device=text("device"),
        command=text("command"),
        recipe=parsed(row["recipe"], "recipe of a run"),
        versions=parsed(row["versions"], "versions of a run"),
        hardware=parsed(row["hardware"], "hardware of a run"),
    )
