"""What the lab writes (stores, tables, the recipe of a run), read back over values that are unusual and allowed."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path

import pyarrow.parquet
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from secateur.core.measurement import Measurement, Measurements
from secateur.lab.database import parsed
from secateur.lab.outcomes import Outcome, canonical
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.tables import write_measurements

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(
        [
            "=1+2",
            "-1",
            "+a",
            "@SUM(A1)",
            "\r",
            "a\r\nb",
            'say "no"',
            ",",
            ";",
            "'",
            "\0",
            "\x1b[2J",
            "\u2028",
            "ü✓𝔴",
        ]
    ),
)
numbers = st.one_of(st.floats(allow_infinity=False), st.integers(-(1 << 60), 1 << 60))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(texts, plain, max_size=3)
rows = st.lists(
    st.builds(
        Measurement,
        texts.filter(bool),
        numbers,
        texts,
        definition=texts,
        notes=st.lists(texts, max_size=2).map(tuple),
        per_layer=st.dictionaries(texts, st.floats(allow_infinity=False), max_size=2),
        context=st.dictionaries(texts.map("of {}".format), texts, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


def equal(one: object, other: object) -> bool:
    """Equal, and NaN equals itself."""
    return repr(one) == repr(other)


@QUICK
@given(tables, tables, rows, texts)
def test_what_a_store_keeps_it_gives_back(options: dict, log: dict, measured: list[Measurement], kind: str):
    given_outcome = Outcome(
        "k" * 64, kind, {"note": options}, 0.5, options=options, measurements=Measurements(measured), log=log
    )
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name) / "Lager ä✓")
        try:
            store.keep(given_outcome)
            found = store.outcome("k" * 64)
        finally:
            store.close()
    assert found is not None
    assert (found.kind, found.state, found.options, found.log) == (kind, {"note": options}, options, log)
    assert equal([m.to_dict() for m in found.measurements], [m.to_dict() for m in measured])


@QUICK
@given(rows)
@example([Measurement("a", 1.0, "\r"), Measurement("b\n", math.nan, ",")])
@example(
    [Measurement("a", math.nan, per_layer={"fc": math.nan}, trials=(math.nan,), spread={"low": math.nan})]
)
def test_tables_that_are_written_are_read_by_other_programs(measured: list[Measurement]):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = {
            write_measurements(Measurements(measured), folder / f"m.{kind}")
            for kind in ("csv", "parquet", "json")
        }
        with open(folder / "m.csv", encoding="utf-8", newline="") as file:
            cells = list(csv.DictReader(file))
        columns = pyarrow.parquet.read_table(folder / "m.parquet").to_pylist()
        again = [Measurement.from_dict(each) for each in json.loads((folder / "m.json").read_text("utf-8"))]
    assert count == {len(cells)} == {len(columns)}
    assert equal([m.to_dict() for m in again], [m.to_dict() for m in measured])
    assert columns[0]["name"] == measured[0].name
    for cell, row in zip(cells, columns):
        for column in ("name", "layer", "unit", "definition", "notes"):
            assert cell[column] in (row[column], f"'{row[column]}"), column
        assert equal(float(cell["value"]), row["value"])


@QUICK
@given(st.integers(0, 1 << 62), texts.filter(bool), st.floats(1e-9, 1), texts.filter(bool))
def test_the_recipe_that_a_run_keeps_is_the_recipe(seed: int, name: str, lr: float, label: str):
    steps = [
        {"kind": "train", "lr": lr, "epochs": 1},
        {"kind": "measure", "what": ["params"], "label": label},
    ]
    recipe = Recipe.of(
        {
            "name": name,
            "data": {"name": "digits"},
            "model": {"name": "fc"},
            "lab": {"seed": seed},
            "step": steps,
        }
    )
    kept = canonical(recipe.plain())
    again = Recipe.of(parsed(kept, "a recipe"))
    assert canonical(again.plain()) == kept
    assert again == recipe
