"""The contract on modules named in strings: it sees what it forbids, and its layers are those of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.contracts.named_modules import LAYERS, ROOT, upward


def test_a_name_that_points_upwards_is_found():
    text = "import_module('secateur.report.notebook'); 'secateur.core.masks'; 'secateur.report is the page'"
    assert upward("core", text) == ["secateur.report.notebook"]
    assert upward("cli", text) == []
    assert upward("report", text) == []


def test_no_room_names_one_above_it():
    found = {
        str(path.relative_to(ROOT)): names
        for path in ROOT.rglob("*.py")
        if path.parent != ROOT
        and (names := upward(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_layers_are_those_of_the_contract_on_imports():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    rows = next(each["layers"] for each in contracts if each["type"] == "layers")
    assert [[room.strip(" ()") for room in row.split(" : ")] for row in rows] == LAYERS
