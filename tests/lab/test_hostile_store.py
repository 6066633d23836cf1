"""Stores that somebody changed: a named error, whatever is in them, and nothing outside their folder is touched."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError, StoreError
from secateur.lab import database
from secateur.lab.engine import final_state, run
from secateur.lab.objects import Objects
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.tables import write_measurements, write_results

TEXT = """
name = "small"
[data]
size = 28
limit = 20
[model]
name = "fc"
[[step]]
kind = "prune"
[[step]]
kind = "pack"
[[step]]
kind = "measure"
what = ["params"]
"""


@pytest.fixture
def folder(tmp_path):
    """A store with one run."""
    store = Store(tmp_path / "runs")
    run(Recipe.parse(TEXT), store)
    store.close()
    return tmp_path / "runs"


def change(folder, *statements, parameters=()):
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement, parameters)


def read_all(folder):
    """What the verbs of the command line read of a store."""
    store = Store(folder, create=False)
    try:
        for row in store.runs():
            for trial in store.trials(row.id):
                for step in trial["steps"]:
                    store.outcome(step["key"])
            store.measurements(row.id)
        store.timings()
    finally:
        store.close()


# -- the schema
@pytest.mark.parametrize(
    "statements",
    [
        # A view in place of a table: a recursive one never ends.
        (
            "ALTER TABLE runs RENAME TO old",
            "CREATE VIEW runs AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n AS id FROM r",
        ),
        ("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM steps; END",),
        ("CREATE TABLE other (a)",),
        ("CREATE INDEX other ON runs(hex(zeroblob(100000)))",),
        ("ALTER TABLE runs ADD COLUMN extra TEXT",),
    ],
    ids=["view", "trigger", "table", "index", "column"],
)
def test_a_store_with_other_tables_is_refused_before_any_query(folder, statements):
    change(folder, *statements)
    began = time.process_time()
    with pytest.raises(StoreError, match="expected only the tables of a run store"):
        Store(folder, create=False)
    assert time.process_time() - began < 2


def test_a_query_has_a_time_limit(folder, monkeypatch):
    monkeypatch.setattr(database, "QUERY_SECONDS", 0.2)
    store = Store(folder)
    began = time.process_time()
    with pytest.raises(StoreError, match=r"SQLite cannot read it \(interrupted"):
        store.rows("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r")
    assert time.process_time() - began < 2
    assert len(store.runs()) == 1


def test_the_files_own_functions_are_not_trusted(folder):
    store = Store(folder)
    assert store.rows("PRAGMA trusted_schema")[0][0] == 0
    assert store.rows("PRAGMA cell_size_check")[0][0] == 1


# -- the values
DEEP = "[" * 100_000
COLUMNS = {
    "runs": [
        "recipe",
        "versions",
        "hardware",
        "name",
        "status",
        "started",
        "command",
        "device",
        "seed",
        "seconds",
    ],
    "steps": ["state", "options", "log", "provenance", "seconds", "kind", "finished"],
    "trials": ["settings", "status", "trial"],
    "measurements": ["whole"],
}
VALUES = [
    DEEP,
    "[1]",
    "null",
    "{",
    "",
    b"\xff\xfe",
    1.5,
    10**18,
    '{"a": ' * 500 + "1" + "}" * 500,
    "9" * 5000,
]


@pytest.mark.parametrize("table", COLUMNS)
def test_a_value_of_another_kind_is_a_named_error(folder, table):
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for column in COLUMNS[table]:
            value = db.execute(f"SELECT {column} FROM {table}").fetchone()[0]
            for hostile in VALUES:
                db.execute(f"UPDATE {table} SET {column} = ?", (hostile,))
                with contextlib.suppress(
                    SecateurError
                ):  # some values are harmless there; no other error may come
                    read_all(folder)
            db.execute(f"UPDATE {table} SET {column} = ?", (value,))
    change(folder, f"UPDATE {table} SET {COLUMNS[table][0]} = '{DEEP}'")
    with pytest.raises(StoreError):
        read_all(folder)


@pytest.mark.parametrize(
    "data",
    [
        {"name": 3, "value": 1},
        {"name": "x", "value": "much"},
        {"name": "x", "value": 1, "per_layer": [1]},
        {"name": "x", "value": 1, "per_layer": {"a": "b"}},
        {"name": "x", "value": 1, "notes": 5},
        {"name": "x", "value": 1, "extra": 5},
    ],
)
def test_a_measurement_that_is_none_is_a_named_error(folder, data):
    change(folder, "UPDATE measurements SET whole = ?", parameters=(json.dumps(data),))
    with pytest.raises(StoreError, match="a measurement: expected what secateur writes"):
        read_all(folder)


# -- objects
def test_the_name_of_an_object_is_no_path(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    objects = Objects(folder / "objects")
    for name in ("ab/etc/passwd", "../../secret", "..", "", "a" * 63, "A" * 64, "a" * 63 + "/"):
        for method in (objects.get, objects.has, objects.drop, objects.path):
            with pytest.raises(StoreError, match="expected the name of an object"):
                method(name)
    assert (tmp_path / "secret").exists()
    change(folder, 'UPDATE steps SET state = \'{"weights": "object:../../secret"}\'')
    with pytest.raises(StoreError, match="expected the name of an object"):
        read_all(folder)


def test_a_damaged_object_of_the_right_size_is_written_again(tmp_path):
    objects = Objects(tmp_path)
    name = objects.put(b"weights")
    objects.path(name).write_bytes(b"wEights")
    with pytest.raises(StoreError, match="damaged"):
        objects.get(name)
    assert objects.put(b"weights") == name
    assert objects.get(name) == b"weights"


def test_objects_with_other_content_are_a_named_error(folder):
    store = Store(folder)
    trial = plan(Recipe.parse(TEXT)).trials[0]
    state = store.outcome(trial.steps[1].key).state
    for place in ("weights", "masks"):
        for data in (
            b"",
            b"{}",
            b"\xff" * 100,
            b"\x08\0\0\0\0\0\0\0{}      ",
            (2**40).to_bytes(8, "little") + b"{}",
        ):
            changed = {**state, place: f"object:{store.objects.put(data)}"}
            change(folder, "UPDATE steps SET state = ?", parameters=(json.dumps(changed),))
            with pytest.raises(SecateurError):
                final_state(trial, store)


def test_a_file_of_a_step_stays_in_the_folder_of_the_results(folder, tmp_path):
    store = Store(folder)
    ran = run(Recipe.parse(TEXT), store)
    state = dict(store.outcome(ran.plan.trials[0].steps[-1].key).state)
    for name in ("../outside", "/tmp/outside", "a/b", "..", ".hidden"):
        state["files"] = {name: state["weights"]}
        change(folder, "UPDATE steps SET state = ?", parameters=(json.dumps(state),))
        with pytest.raises(StoreError, match="expected a plain file name"):
            write_results(ran, store, tmp_path / "out")
    assert not (tmp_path / "outside").exists()


# -- what is written
def test_cells_of_a_table_are_no_formulas(tmp_path):
    found = Measurements(
        [Measurement("=cmd|' /C calc'!A0", 1.0, "@x", "+y", context={"=z": "-1+1", "b": "-0.5"})]
    )
    write_measurements(found, tmp_path / "m.csv")
    head, row = (tmp_path / "m.csv").read_text().splitlines()
    assert head.split(",")[-2:] == ["'=z", "b"]
    assert row.startswith("'=cmd")
    assert ",'@x,'+y," in row
    assert row.endswith(",'-1+1,-0.5")


def test_a_store_that_cannot_be_written_is_read(folder, tmp_path):
    """`runs` and `show` on a read-only disk; a process without rights stands for one."""
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    tmp_path.chmod(0o555)
    script = (
        "import os, sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import secateur.lab.store as s, secateur.lab.planning, secateur.errors\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "store = s.Store(sys.argv[1], create=False)\n"
        "assert [(row.name, row.status) for row in store.runs()] == [('small', 'done')]\n"
        "assert len(store.measurements(1)) >= 3\n"
        "try:\n"
        "    store.note_trial(1, 0, 'x')\n"
        "except secateur.errors.StoreError as error:\n"
        "    print(error)\n"
    )
    if os.getuid() != 0:
        pytest.skip("only root can give rights up")
    parents = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    for parent in parents:  # pytest's own folders are closed to others
        parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *sys.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "this store cannot be written" in done.stdout


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are listed by Linux")
@pytest.mark.parametrize("how", ["version", "table", "header"])
def test_a_refused_store_is_closed_at_once(folder, how):
    if how == "header":
        (folder / "store.sqlite").write_bytes(b"no database, but long enough to be read as one" * 100)
    else:
        change(folder, {"version": "PRAGMA user_version = 77", "table": "CREATE TABLE more (a)"}[how])
    gc.disable()  # nothing may wait for it
    try:
        with pytest.raises(StoreError) as kept:
            Store(folder, create=False)
        held = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    finally:
        gc.enable()
    assert [path for path in held if str(folder) in path] == [], kept.value
