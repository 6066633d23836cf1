"""No command sends the terminal what a file says: escape sequences in names, texts and errors are shown as codes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from secateur import cli
from secateur.cli import main
from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b1m\u202e"
RECIPE = """
name = "small"
[data]
size = 28
limit = 20
[model]
name = "fc"
[grid]
"prune.budget" = [0.5, 0.6]
[[step]]
kind = "prune"
[[step]]
kind = "measure"
what = ["params"]
"""


def said(monkeypatch, capsys, *arguments):
    """What a command prints: only characters that a terminal shows."""
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
    monkeypatch.setattr("secateur.cli.options._debug", False)
    with contextlib.suppress(SystemExit):
        main()
    out, err = capsys.readouterr()
    bad = {each for each in out + err if not (each.isprintable() or each == "\n")}
    assert bad == set(), (arguments, bad)
    return out + err


@pytest.fixture
def hostile_store(tmp_path):
    """A store of somebody else, whose texts hold escape sequences wherever the schema has a text."""
    folder = tmp_path / "runs"
    store = Store(folder)
    run(Recipe.parse(RECIPE), store)
    store.close()
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        recipe, versions, hardware = (
            json.loads(cell) for cell in db.execute("SELECT recipe, versions, hardware FROM runs").fetchone()
        )
        recipe["grid"] = {HOSTILE: [1, 2]}
        hardware["cpu"], versions[HOSTILE] = HOSTILE, HOSTILE
        texts = [json.dumps(table) for table in (recipe, versions, hardware)]
        db.execute("UPDATE runs SET recipe = ?, versions = ?, hardware = ?", texts)
        db.execute("UPDATE runs SET name = ?, command = ?, device = ?, status = ?", [HOSTILE] * 4)
        db.execute("UPDATE trials SET error = ?, settings = ?", (HOSTILE, json.dumps({HOSTILE: HOSTILE})))
        db.execute("UPDATE steps SET kind = ?", (HOSTILE,))
        whole = json.loads(db.execute("SELECT whole FROM measurements").fetchone()[0])
        changed = {
            **whole,
            "name": HOSTILE,
            "unit": HOSTILE,
            "notes": [HOSTILE],
            "context": {HOSTILE: HOSTILE},
        }
        db.execute("UPDATE measurements SET whole = ?", (json.dumps(changed),))
    return folder


def test_commands_on_a_store(hostile_store, tmp_path, monkeypatch, capsys):
    for command in ("runs", "show"):
        for more in ([], ["--json"]):
            text = said(monkeypatch, capsys, command, "--store", hostile_store, *more)
            assert "\\x1b]0;owned" in text or "\\u001b]0;owned" in text, (command, more, text)
    shown = said(monkeypatch, capsys, "show", "--store", hostile_store, "--json")
    assert json.loads(shown)["name"] == HOSTILE  # the same value, in JSON's own codes
    said(monkeypatch, capsys, "report", "--out", tmp_path / "page", "--no-pictures", "--store", hostile_store)
    said(monkeypatch, capsys, "export", "last", "--out", tmp_path / "m.csv", "--store", hostile_store)
    assert b"owned" in (tmp_path / "m.csv").read_bytes()
    said(monkeypatch, capsys, "gc", "--store", hostile_store)


def test_commands_on_a_recipe(tmp_path, monkeypatch, capsys):
    text = RECIPE.replace('"small"', json.dumps(HOSTILE)).replace(
        'what = ["params"]', f"label = {json.dumps(HOSTILE)}"
    )
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for more in (["--dry-run"], ["--dry-run", "--json"], [], ["--debug"]):
        assert "owned" in said(monkeypatch, capsys, "run", "r.toml", *more)


def test_commands_on_checkpoints(tmp_path, monkeypatch, capsys):
    weights, packed = tmp_path / "w.safetensors", tmp_path / "w.sct"
    save_file({HOSTILE: torch.randn(8, 8)}, weights, metadata={"format": HOSTILE})
    for command in (
        ["pack", weights, packed],
        ["inspect", packed],
        ["inspect", packed, "--json"],
        ["unpack", packed, tmp_path / "b.safetensors"],
        ["prune", weights, tmp_path / "p.safetensors"],
        ["share", weights, tmp_path / "s.safetensors", "--json"],
        ["compensate", tmp_path, tmp_path / "c", "--calibrate", weights],
        ["smallest", "fc", "--weights", weights],
        ["shrink", "fc", "--weights", packed, "--out", tmp_path / "x.sct"],
        ["measure", "fc", packed],
    ):
        said(monkeypatch, capsys, *command)
    assert packed.is_file()


def test_the_check_of_a_promise(tmp_path, monkeypatch, capsys):
    from secateur.adapters.promises import promise
    from secateur.adapters.served import ServeRequest

    artefact = tmp_path / "m.onnx"
    artefact.write_bytes(b"no model")
    promise(artefact, ServeRequest(artefact, "onnx"), {"x": torch.zeros(1)}, {"y": torch.zeros(1)})
    told = tmp_path / "m.onnx.check" / "promise.json"
    data = json.loads(told.read_text())
    for changed in (
        {**data, "files": {HOSTILE: [1, "0"]}},
        {**data, "request": {**data["request"], "runtime": HOSTILE}},
        {**data, "names": [HOSTILE]},
    ):
        told.write_text(json.dumps(changed))
        said(monkeypatch, capsys, "serve-check", artefact)


def test_a_warning_is_shown_as_codes_too(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli._print_anything()
    shown = warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1)
    assert shown == f"UserWarning: {HOSTILE.encode('unicode_escape').decode()}\n"


def test_out_of_memory_is_no_fault_of_secateur(tmp_path, monkeypatch, capsys):
    def fails(*args, **named):
        raise MemoryError

    monkeypatch.setattr("secateur.container.inspection.inspect", fails)
    (tmp_path / "a.sct").write_bytes(b"")
    text = said(monkeypatch, capsys, "inspect", tmp_path / "a.sct")
    assert text.startswith("error: out of memory; close other programs")
