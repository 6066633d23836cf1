"""Tables of runs as files: typed columns in Parquet, and a row for every step, also of trials that failed."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet
import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, SecateurError
from secateur.lab import Recipe, Store, run
from secateur.lab.table_files import steps_table, write_steps, write_table
from secateur.lab.tables import write_measurements

RECIPE = """
name = "costs"
[data]
limit = 20
[model]
name = "fc"
[lab]
threads = 1
[[step]]
kind = "idle"
[[step]]
kind = "idle"
label = "second"
[[step]]
kind = "measure"
what = ["params"]
"""


def test_numbers_are_numbers_in_parquet(tmp_path):
    rows = Measurements(
        Measurement(
            "accuracy",
            0.5,
            context={"run": 1, "trial": trial, "seed": trial % 2, "prune.budget.keep": keep, "epoch": 3}
            | ({"share.bits": bits} if bits else {})
            | {"prune.criterion": "l1", "prune.budget": mixed, "train.flip": True},
        )
        for trial, (keep, bits, mixed) in enumerate([(1, 4, "a"), (0.6, None, 0.5)])
    )
    assert write_measurements(rows, tmp_path / "m.parquet") == 2
    table = pyarrow.parquet.read_table(tmp_path / "m.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    whole = ("run", "trial", "trial_number", "seed", "epoch", "share.bits")
    assert {name: types.pop(name) for name in whole} == dict.fromkeys(whole, "int64")
    assert {types.pop(name) for name in ("value", "prune.budget.keep")} == {"double"}
    assert set(types.values()) == {"string"}
    assert table["share.bits"].to_pylist() == [4, None]
    assert table["prune.budget"].to_pylist() == ["a", "0.5"]
    write_measurements(rows, tmp_path / "m.csv")
    last = list(csv.DictReader((tmp_path / "m.csv").open()))[-1]
    assert (last["trial"], last["trial_number"], last["train.flip"], last["share.bits"]) == (
        "1",
        "2",
        "true",
        "",
    )


def test_every_step_has_a_row_with_its_cost_also_where_its_trial_failed(tmp_path):
    store = Store(tmp_path / "runs")
    run(Recipe.parse(RECIPE), store)
    ran = run(
        Recipe.parse(RECIPE + '[grid]\n"second.note" = ["", "x"]\n"measure.repetitions" = [1, 2]\n'), store
    )
    assert not ran.failures
    columns, rows = steps_table(store, store.runs())
    assert columns[:7] == [
        "run",
        "name",
        "trial",
        "trial_number",
        "seed",
        "measure.repetitions",
        "second.note",
    ]
    assert columns[7:] == ["label", "kind", "how", "seconds", "device", "finished", "status", "error"]
    how = [(row["run"], row["trial_number"], row["label"], row["how"]) for row in rows]
    assert how[:3] == [(1, 1, label, "computed") for label in ("idle", "second", "measure")]
    second = {
        number: [word for run, at, _, word in how if (run, at) == (2, number)] for number in range(1, 5)
    }
    assert second[1][:2] == ["cached", "cached"]  # the first run had both
    assert second[3][:2] == ["cached", "computed"]
    assert second[4] == ["cached", "shared", "computed"]
    assert all(row["status"] == "done" and row["seconds"] >= 0 and row["finished"] for row in rows)
    assert {row["device"] for row in rows} == {"cpu"}


def test_a_failed_trial_says_which_step_failed_and_why(tmp_path):
    store = Store(tmp_path / "runs")
    run(Recipe.parse(RECIPE + '[grid]\n"second.fail" = [true, false]\n'), store)
    for ending in ("csv", "parquet", "json"):
        assert write_steps(store, store.runs(), tmp_path / f"steps.{ending}") == 6
    rows = json.loads((tmp_path / "steps.json").read_text())
    found = [(row["trial_number"], row["label"], row["how"], row["status"]) for row in rows]
    assert found == [
        (1, "idle", "computed", "done"),
        (1, "second", None, "failed"),
        (1, "measure", None, "not reached"),
        (2, "idle", "shared", "done"),
        (2, "second", "computed", "done"),
        (2, "measure", "computed", "done"),
    ]
    assert [row["seconds"] is None for row in rows] == [False, True, True, False, False, False]
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False, False]
    table = pyarrow.parquet.read_table(tmp_path / "steps.parquet")
    assert [str(table.schema.field(name).type) for name in ("run", "trial", "seed", "seconds")] == [
        *["int64"] * 3,
        "double",
    ]


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"expected a name that ends in \.csv, \.parquet or \.json"):
        write_table(["a"], [{"a": 1}], tmp_path / "a.xlsx")
    with pytest.raises(SecateurError, match="nothing to export"):
        write_steps(Store(tmp_path / "runs"), [], tmp_path / "a.csv")
