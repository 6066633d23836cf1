"""Stores that somebody changed: a named error, whatever is in them, and nothing outside their folder is touched."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from attacks.lab_targets import read_store

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
                    read_store(folder)
            db.execute(f"UPDATE {table} SET {column} = ?", (value,))
    change(folder, f"UPDATE {table} SET {COLUMNS[table][0]} = '{DEEP}'")
    with pytest.raises(StoreError):
        read_store(folder)


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
        read_store(folder)


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
        read_store(folder)


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


# -- files beside the database
def super_journal(database, victim):
    """A journal that ends with the name of a file, which SQLite deletes when it has played the journal back."""
    data = database.read_bytes()
    page = int.from_bytes(data[16:18], "big")
    magic = bytes.fromhex("d9d505f920a163d7")
    numbers = (0, 0, len(data) // page, 512, page)  # pages, a nonce, the size before, of a sector, of a page
    head = (magic + b"".join(number.to_bytes(4, "big") for number in numbers)).ljust(512, b"\0")
    name = str(victim).encode()
    last = (name, len(name).to_bytes(4, "big"), sum(name).to_bytes(4, "big"), magic)
    return head + ((1 << 30) // page + 1).to_bytes(4, "big") + b"".join(last)


def settled(folder):
    """The database of a store that nothing has open, without files beside it."""
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert [path.name for path in folder.glob("store.sqlite*")] == ["store.sqlite"]
    return folder / "store.sqlite"


def test_a_journal_that_names_a_file_deletes_nothing(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    database = settled(folder)
    journal = folder / "store.sqlite-journal"
    journal.write_bytes(super_journal(database, victim))
    with pytest.raises(StoreError, match="names another file, which SQLite would delete"):
        Store(folder, create=False)
    with pytest.raises(StoreError, match="names another file"):
        Store(folder)
    assert victim.read_text() == "precious"
    # What the check is there for: SQLite itself deletes the file.
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("SELECT * FROM runs").fetchall()
    assert not victim.exists()


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("ending", ["-wal", "-journal", "-shm"])
def test_a_link_beside_the_database_is_refused(folder, tmp_path, ending, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    settled(folder)
    getattr(folder / f"store.sqlite{ending}", kind)(victim)
    with pytest.raises(StoreError, match="expected a plain file, found a link or a device"):
        Store(folder, create=False)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "store.sqlite").symlink_to(
        folder / "store.sqlite"
    )  # SQLite takes what lies beside the real one
    with pytest.raises(StoreError, match="expected a plain file, found a link or a device"):
        Store(linked, create=False)
    assert victim.read_text() == "precious"


def test_a_copy_takes_the_log_beside_the_real_database(folder, tmp_path):
    settled(folder)
    linked = tmp_path / "linked"
    linked.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("DELETE FROM runs")  # lies in the log only
        (linked / "store.sqlite").symlink_to(folder / "store.sqlite")
        store = database.Database(linked / "store.sqlite", create=False)
        store.close()
        store._open_copy()
        assert store.rows("SELECT * FROM runs") == []
        store.close()


def test_an_object_that_is_a_device_or_a_pipe_is_missing(folder):
    objects = Objects(folder / "objects")
    names = [name for name, _ in objects.names()]
    (folder / "objects" / names[0][:2] / names[0][2:]).unlink()
    (folder / "objects" / names[0][:2] / names[0][2:]).symlink_to("/dev/zero")
    pipe = folder / "objects" / "ab" / ("c" * 62)
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    for name in (names[0], "ab" + "c" * 62):
        with pytest.raises(StoreError, match="is missing"):
            within(20, lambda name=name: objects.get(name))


def within(seconds, read):
    """What a function gives or raises; an error where it does not end."""
    found = []

    def work():
        try:
            found.append(read())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it does not end"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are of Linux")
def test_a_store_that_cannot_be_written_is_read(folder, tmp_path):
    """The commands that read a store, on a read-only disk; a process without rights stands for one."""
    out = tmp_path.parent / f"{tmp_path.name}-out"
    out.mkdir()
    out.chmod(0o777)
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    tmp_path.chmod(0o555)
    script = (
        "import os, sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "folder = os.path.abspath(sys.argv[1])\n"
        "import secateur.lab.store as s, secateur.lab.planning, secateur.errors\n"
        "import ctypes\n"
        "if os.getuid() == 0:  # who may write whatever the permissions say; without capabilities root may not\n"
        "    none = (ctypes.c_uint32 * 6)()\n"
        "    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0\n"
        "store = s.Store(sys.argv[1], create=False)\n"
        "assert [(row.name, row.status) for row in store.runs()] == [('small', 'done')]\n"
        "assert len(store.measurements(1)) >= 3\n"
        "try:\n"
        "    store.note_trial(1, 0, 'x')\n"
        "except secateur.errors.StoreError as error:\n"
        "    print(error)\n"
        "import secateur.cli as c\n"
        "for words in ('runs', 'show 1', 'report 1 --no-pictures --out page', 'export 1 --out rows.csv'):\n"
        "    sys.argv = ['secateur', *words.split(), '--store', str(folder)]\n"
        "    try:\n"
        "        c.main()\n"
        "    except SystemExit as leaving:\n"
        "        assert not leaving.code, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *sys.path],
        capture_output=True,
        text=True,
        check=False,
        cwd=out,
        env={**os.environ, "HOME": str(out), "TMPDIR": str(out)},
    )
    assert done.returncode == 0, done.stderr
    assert "this store cannot be written" in done.stdout
    assert done.stdout.count("small") >= 2  # `runs` and `show`
    assert "params" in (out / "rows.csv").read_text()
    assert (out / "page" / "index.html").stat().st_size > 10_000
    assert sorted(path.name for path in out.iterdir()) == ["page", "rows.csv"]


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
