"""What the store holds, as plain frozen values: the `Outcome` of a step and the `RunRow` of a run; and its SQL schema.

>>> canonical({"b": (1, 2), "a": 0.5})
'{"a":0.5,"b":[1,2]}'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from secateur.core.measurement import Measurements

__all__ = [
    "MOST_LEVELS",
    "SCHEMA",
    "VERSION",
    "Outcome",
    "RunRow",
    "Table",
    "canonical",
    "now",
    "objects_of",
    "problem_of",
]

Table = dict[str, Any]
"""A table of plain data, as TOML and JSON hold it: words and their values."""

VERSION = 1
SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, status TEXT NOT NULL, started TEXT NOT NULL,
    finished TEXT, seconds REAL, command TEXT NOT NULL, recipe TEXT NOT NULL, seed INTEGER NOT NULL,
    device TEXT NOT NULL, versions TEXT NOT NULL, hardware TEXT NOT NULL);
CREATE TABLE trials (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    trial INTEGER NOT NULL, settings TEXT NOT NULL,
    status TEXT NOT NULL, error TEXT, PRIMARY KEY (run, trial)) WITHOUT ROWID;
CREATE TABLE plan (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    trial INTEGER NOT NULL, position INTEGER NOT NULL,
    label TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, how TEXT NOT NULL DEFAULT 'waiting',
    PRIMARY KEY (run, trial, position)) WITHOUT ROWID;
CREATE INDEX plan_key ON plan(key);
CREATE TABLE steps (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, parent TEXT, options TEXT NOT NULL, state TEXT NOT NULL,
    log TEXT NOT NULL, seconds REAL NOT NULL, finished TEXT NOT NULL, provenance TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE measurements (
    key TEXT NOT NULL REFERENCES steps(key) ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    value REAL, unit TEXT NOT NULL, whole TEXT NOT NULL, PRIMARY KEY (key, position)) WITHOUT ROWID;
CREATE INDEX measurements_name ON measurements(name);
"""


MOST_LEVELS = 64
"""How deep tables and lists of plain data may be nested."""


def problem_of(value: object) -> str:
    """Why a value is no plain data that can be kept, hashed and read again; an empty text where it is.

    Args:
        value: What TOML or JSON gave.

    Returns:
        The problem: nested too deeply, a date or another type that JSON lacks, or text that is no Unicode.

    >>> problem_of({"a": [1, 2.5, None]}), problem_of({1, 2})
    ('', "a value of type set, '{1, 2}'")
    """
    level = [value]
    for _ in range(MOST_LEVELS):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str):
                if not item.isascii() and item.encode("utf-8", "replace").decode() != item:
                    return f"text that is no Unicode: {item[:40]!r}"
            elif item is not None and not isinstance(item, bool | int | float):
                return f"a value of type {type(item).__name__}, {str(item)[:40]!r}"
        if not below:
            return ""
        level = below
    return f"tables or lists nested more than {MOST_LEVELS} deep"


def canonical(value: object) -> str:
    """A value as JSON in canonical form: equal values have equal text.

    >>> canonical({"b": (1, 2), "a": 0.5})
    '{"a":0.5,"b":[1,2]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def now() -> str:
    """The time now, to the millisecond, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Outcome:
    """The result of one step: the state after it (names of objects), its Measurements, its log, the time it took."""

    key: str
    kind: str
    state: Mapping[str, Any]
    seconds: float
    parent: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    measurements: Measurements = field(default_factory=Measurements)
    log: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    finished: str = ""


@dataclass(frozen=True)
class RunRow:
    """One line of `secateur runs`."""

    id: int
    name: str
    status: str
    started: str
    seconds: float | None
    trials: int
    failed: int
    steps: int
    computed: int
    seed: int
    device: str
    command: str
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]


def objects_of(state: Mapping[str, object]) -> list[str]:
    """The names of the objects a stored state refers to.

    >>> objects_of({"weights": "object:aa", "files": {"model.sct": "object:bb"}, "note": "x"})
    ['aa', 'bb']
    """
    found: list[str] = []
    for value in state.values():
        if isinstance(value, Mapping):
            found += objects_of(value)
        elif isinstance(value, str) and value.startswith("object:"):
            found.append(value.removeprefix("object:"))
    return found
