"""The store: whole outcomes only, shared between processes, nothing private, freed when asked."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, StoreError, UnknownNameError
from secateur.lab import tables
from secateur.lab.objects import Objects, atomic_write
from secateur.lab.provenance import clean, clean_plain
from secateur.lab.store import Outcome, Store, canonical

KEY = "a" * 64


def outcome(store: Store, key: str = KEY, data: bytes = b"weights", **other) -> Outcome:
    found = Measurements([Measurement("macs", 5, "MAC", per_layer={"fc": 5})])
    return Outcome(
        key, "prune", {"weights": f"object:{store.objects.put(data)}"}, 1.5, measurements=found, **other
    )


def a_run(store: Store, key: str = KEY, settings=None):
    run, alive = store.start_run(
        name="r", recipe={}, command="c", seed=0, device="cpu", versions={}, hardware={},
        trials=[(settings or {}, [("measure", "measure", key)])],
    )  # fmt: skip
    return run, alive


def test_an_outcome_comes_back_as_it_went_in(tmp_path):
    store = Store(tmp_path)
    given = outcome(store, parent="p", options={"budget": 0.5}, log={"line": "x"}, provenance={"threads": 1})
    store.keep(given)
    found = Store(tmp_path).outcome(KEY)
    assert (found.state, found.measurements, found.options) == (
        given.state,
        given.measurements,
        given.options,
    )
    assert (found.parent, found.log, found.seconds) == ("p", {"line": "x"}, 1.5)


def test_an_outcome_whose_object_is_gone_counts_as_not_computed(tmp_path):
    store = Store(tmp_path)
    store.keep(outcome(store))
    assert store.has(KEY)
    store.objects.drop(store.outcome(KEY).state["weights"].removeprefix("object:"))
    assert store.outcome(KEY) is None
    assert not store.has(KEY)


def test_a_damaged_object_is_told_apart_and_named(tmp_path):
    objects = Objects(tmp_path)
    name = objects.put(b"weights")
    objects.path(name).write_bytes(b"weighty")
    with pytest.raises(StoreError, match=rf"object {name[:12]} is damaged: expected content that hashes"):
        objects.get(name)
    with pytest.raises(StoreError, match="is missing from"):
        objects.get("0" * 64)


def test_writing_whole_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_store_of_another_version_or_another_kind_is_refused(tmp_path):
    Store(tmp_path / "a")
    with sqlite3.connect(tmp_path / "a" / "store.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="expected a run store of version 1, got version 99"):
        Store(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "store.sqlite").write_bytes(b"not a database, long enough to be read as one" * 30)
    with pytest.raises(StoreError, match="SQLite cannot read it"):
        Store(tmp_path / "b")
    with pytest.raises(StoreError, match="no run store here"):
        Store(tmp_path / "c", create=False)


def test_a_run_that_died_is_interrupted_and_a_living_one_is_not(tmp_path):
    store = Store(tmp_path)
    _, alive = a_run(store)
    assert store.run("last").status == "running"
    with pytest.raises(StoreError, match="run 1 is still running"):
        store.gc()
    code = f"""
import os
from secateur.lab.store import Store
store = Store({str(tmp_path)!r})
run, alive = store.start_run(name='r', recipe={{}}, command='c', seed=0, device='cpu', versions={{}}, hardware={{}},
    trials=[])
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [row.status for row in store.runs()] == ["running", "interrupted"]
    alive.release()
    assert store.run(1).status == "interrupted"
    with pytest.raises(UnknownNameError, match="no run '7' in this store: runs 1 to 2 are there"):
        store.run("7")


def test_measurements_of_a_run_say_where_they_belong(tmp_path):
    store = Store(tmp_path)
    run, alive = a_run(store, settings={"prune.budget": 0.5})
    store.keep(outcome(store))
    alive.release()
    (found,) = store.measurements(run)
    assert found.context == {
        "run": 1, "trial": 0, "variant": "measure", "step": "measure", "seed": 0, "prune.budget": 0.5
    }  # fmt: skip


def test_export_writes_csv_parquet_and_json(tmp_path):
    store = Store(tmp_path / "s")
    run, alive = a_run(store, settings={"prune.budget": 0.5})
    store.keep(outcome(store))
    alive.release()
    found = store.measurements(run)
    assert tables.write_measurements(found, tmp_path / "m.csv") == 2
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0].startswith("name,layer,value,unit,definition")
    assert lines[1].startswith("macs,,5.0,MAC")
    assert lines[2].startswith("macs,fc,5.0,MAC")
    import pyarrow.parquet

    tables.write_measurements(found, tmp_path / "m.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "m.parquet").to_pydict()
    assert (table["layer"], table["value"], table["prune.budget"]) == (["", "fc"], [5.0, 5.0], [0.5, 0.5])
    tables.write_measurements(found, tmp_path / "m.json")
    tables.write_measurements(Measurements([Measurement("loss", math.nan)]), tmp_path / "nan.json")
    assert json.loads((tmp_path / "nan.json").read_text(), parse_constant=str)[0]["value"] is None
    with pytest.raises(ValueError, match=r"ends in .csv, .parquet or .json"):
        tables.write_measurements(found, tmp_path / "m.xls")
    with pytest.raises(NothingToDoError, match="this run measured nothing"):
        tables.write_measurements(Measurements(), tmp_path / "m.csv")


def test_gc_frees_what_no_run_refers_to_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    other = "b" * 64
    store.keep(outcome(store))
    store.keep(outcome(store, other, b"other weights"))
    store.objects.put(b"left by a killed step")
    store.checkpoint("c" * 64).write_bytes(b"half a training")
    _, alive = a_run(store)
    alive.release()
    a_run(store, other)[1].release()
    assert store.gc(dry_run=True) == {"runs": 0, "steps": 0, "objects": 1, "bytes": 36}
    assert store.gc() == {"runs": 0, "steps": 0, "objects": 1, "bytes": 36}
    assert store.has(KEY)
    assert store.has(other)
    freed = store.gc(keep=1)
    assert (freed["runs"], freed["steps"], freed["objects"], freed["bytes"]) == (1, 1, 1, 7)
    assert (store.has(KEY), store.has(other), [row.id for row in store.runs()]) == (False, True, [2])


def test_many_processes_on_one_store_lose_nothing(tmp_path):
    code = """
import sys
from secateur.lab.store import Outcome, Store
store = Store(sys.argv[1])
for index in range(20):
    key = f"{int(sys.argv[2]):032d}{index:032d}"
    name = store.objects.put(str(index).encode())
    store.keep(Outcome(key, "prune", {"weights": f"object:{name}"}, 0.0))
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(index)]) for index in range(3)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    store = Store(tmp_path)
    assert all(store.has(f"{worker:032d}{index:032d}") for worker in range(3) for index in range(20))
    assert len(list(store.objects.names())) == 20


def test_nothing_private_is_kept(monkeypatch):
    home = str(Path.home())
    assert clean(f"secateur run {home}/recipes/r.toml --set model.weights={home}/w.pt") == (
        "secateur run ~/recipes/r.toml --set model.weights=~/w.pt"
    )
    assert clean("HF_TOKEN=hf_secret run") == "HF_TOKEN=*** run"
    assert clean("--api-key sk-123 x") == "--api-key *** x"
    plain = clean_plain({"a": [f"{home}/x"], "access_token": "t", "seed": 3})
    assert plain == {"a": ["~/x"], "access_token": "***", "seed": 3}


def test_canonical_does_not_depend_on_the_order_of_keys():
    assert canonical({"a": 1, "b": {"d": 2, "c": 3}}) == canonical({"b": {"c": 3, "d": 2}, "a": 1})
