"""The verb `report` on a store: a page from a stored run, with what its models look like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.errors import StoreError
from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.reporting import pictures_of
from secateur.lab.store import Store

RECIPE = """
name = "small"
[data]
name = "digits"
size = 28
limit = 200
[model]
name = "lenet-300-100"
[[step]]
kind = "train"
epochs = 1
lr = 0.05
[[step]]
kind = "measure"
label = "dense"
what = ["accuracy", "params", "macs", "size"]
[[step]]
kind = "prune"
granularity = "channel"
criterion = "l1"
budget = 0.5
[[step]]
kind = "shrink"
[[step]]
kind = "pack"
[[step]]
kind = "measure"
label = "file"
what = ["accuracy", "params", "macs", "size"]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    run(Recipe.parse(RECIPE, source="small.toml", name="small"), Store(folder))
    return folder


def test_report_of_a_stored_run(store: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--store", str(store), "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (Path(told["file"]).name, told["file_bytes"]) == ("index.html", Path(told["file"]).stat().st_size)
    assert all(Path(path).is_file() for path in told["files"])
    names = {Path(path).name for path in told["files"]}
    assert {"index.html", "network.svg", "widths.png", "weight-histograms.svg", "file-bytes.png"} <= names
    page = (tmp_path / "index.html").read_text()
    assert page.count("not drawn") == 0
    assert "out_features=150" in page  # print(model), half of 300
    assert "small #1" in page


def test_two_runs_side_by_side(store: Path, tmp_path: Path) -> None:
    words = ["report", str(store), f"{store}:1", "--no-pictures", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "small #1 (1)" in done.stdout
    assert "small #1 (2)" in done.stdout


def test_no_store_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, StoreError)
    assert "no run store here" in str(done.exception)


def test_the_page_opens_in_the_browser_when_asked(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    words = ["report", "--store", str(store), "--no-pictures", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert opened == []
    assert CliRunner().invoke(app, [*words, "--open"]).exit_code == 0
    assert opened == [(tmp_path / "index.html").as_uri()]


def test_pictures_are_of_the_model_that_the_grid_sets(tmp_path: Path) -> None:
    """The headline is the network that the recipe does not name."""
    text = RECIPE.replace('granularity = "channel"', "").split("[[step]]")
    recipe = (
        "[[step]]".join(text[:4]) + '[[step]]\nkind = "measure"\nlabel = "small"\nwhat = ["params", "size"]\n'
    )
    store = Store(tmp_path)
    run(Recipe.parse(recipe, source="r.toml", grid=["model.name=lenet-300-100,lenet5"]), store)
    row = store.run("last")
    trial = store.trials(row.id)[1]
    assert trial["settings"] == {"model.name": "lenet5"}
    undrawn: list[str] = []
    steps = trial["steps"]
    found = pictures_of(store, row.recipe, steps, undrawn, settings=trial["settings"])
    assert undrawn == []
    assert any(item.name == "weight_histogram" for item in found)
    assert not pictures_of(store, row.recipe, steps, undrawn, settings={"model.name": "its:code"})
    assert "--allow-code" in undrawn[0]
