"""The notebooks of the documentation run, and what they show is of the kind that is stored in them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def kinds(notebook: dict) -> list[list[str]]:
    """For every cell of code, the kinds of its outputs."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[kind for out in cell["outputs"] for kind in out.get("data", {"text": 0})] for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_did(path: Path) -> None:
    executed = runpy.run_path(str(ROOT / "docs" / "site" / "notebooks.py"))["executed"]
    stored = json.loads(path.read_text(encoding="utf-8"))
    found = executed(stored)
    assert kinds(found) == kinds(stored)
    assert any("application/vnd.vegalite.v6+json" in each for each in kinds(found))
    assert path.stat().st_size < 100_000


def test_there_are_three_and_the_start_page_names_them() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in text
        assert "/tmp" not in path.read_text(encoding="utf-8")
