"""Exit codes: 2 where what was given is wrong, a path that is not there among it; 1 where work fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secateur.errors import DataError

RECIPE = """
data = {name = "digits", limit = 40}
model = {name = "fc"}
step = [{kind = "measure", what = ["params"]}]
"""
DOCS = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"
MISSING = {
    "run": "run none.toml",
    "sweep": "sweep none.toml --seeds 2",
    "compare": "compare none.toml --methods l1,random",
    "search": "search none.toml --over prune.budget=0.1:0.9 --maximize sparsity",
    "auto": "auto none.toml",
    "smallest": "smallest none.toml",
    "study": "study none",
    "runs": "runs --store none",
    "show": "show --store none",
    "report": "report --store none",
    "gc": "gc --store none",
    "watch": "watch none",
    "export of a store": "export last --out a.csv --store none",
    "export": "export fc none.pt --out a.onnx",
    "measure": "measure fc none.pt",
    "explain": "explain fc none.pt",
    "shrink": "shrink fc none.pt --budget 0.5",
    "scan": "scan fc none.pt",
    "factorise": "factorise fc none.pt --keep 0.5",
    "compress": "compress fc none.pt",
    "serve-check": "serve-check none.onnx",
    "inspect": "inspect none.sct",
    "pack": "pack none.pt a.sct",
    "unpack": "unpack none.sct a.safetensors",
    "prune": "prune none.pt a.safetensors --budget 0.5",
    "share": "share none.pt a.safetensors --bits 3",
    "weights of a recipe": "run r.toml --set model.weights=none.pt",
    "a data folder": "run r.toml --set data.name=folder --set data.path=none",
    "data of Parquet": "run r.toml --set data.name=parquet --set data.path=none",
    "a known data set": "run r.toml --set data.name=mnist --set data.path=none",
    "boxes": "run r.toml --set data.name=yolo --set data.path=none",
    "data by its path": "measure fc --what accuracy --data ./none",
}


@pytest.mark.parametrize("words", MISSING.values(), ids=MISSING.keys())
def test_what_is_not_there_is_usage(secateur, words):
    Path("r.toml").write_text(RECIPE)
    code, out, err = secateur(*words.split())
    assert code == 2, err
    assert err.startswith("error: ")
    assert "none" in err
    assert not out


DAMAGED = {
    "weights": ("a.pt", "measure fc a.pt"),
    "safetensors": ("a.safetensors", "measure fc a.safetensors"),
    "file of secateur": ("a.sct", "inspect a.sct"),
    "checkpoint": ("a.safetensors", "pack a.safetensors b.sct"),
    "store": ("runs/store.sqlite", "runs"),
}


@pytest.mark.parametrize(("name", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_has_failed(secateur, name, words):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(b"damaged" * 99)
    code, _, err = secateur(*words.split())
    assert code == 1, err
    assert err.startswith("error: ")


def test_a_run_that_is_not_there_is_usage(secateur):
    Path("r.toml").write_text(RECIPE)
    assert secateur("run", "r.toml", "-q")[0] == 0
    assert secateur("show", "9")[0] == 2
    assert secateur("show", "last")[0] == 0


def test_the_table_has_every_code_and_no_error_has_another():
    from secateur import errors

    table = {int(code) for code in re.findall(r"^\| (\d) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)}
    assert table == {0, 1, 2, 3, 4}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert {kind.exit_code for kind in kinds if isinstance(kind, type)} <= table
    assert DataError("none: no such file").as_usage().exit_code == 2
    assert DataError("an empty batch").exit_code == 1
