"""Commands where the locale is not UTF-8 and the paths are not ASCII."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from attacks.tiny_recipe import tiny

C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def secateur(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "secateur.cli", *words],
        env={**os.environ, **C_LOCALE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_store_and_a_recipe_under_names_that_the_locale_does_not_know(tmp_path: Path) -> None:
    folder = tmp_path / "Lager ä✓"
    folder.mkdir()
    (folder / "zäh.toml").write_text(
        tiny('[[step]]\nkind = "measure"\nwhat = ["params"]\n'), encoding="utf-8"
    )
    store = str(folder / "runs")
    assert "266,610" in secateur("run", str(folder / "zäh.toml"), "--store", store)
    assert "done" in secateur("runs", "--store", store)
    with sqlite3.connect(next((folder / "runs").glob("*.sqlite*"))) as db:
        ((command,),) = db.execute("SELECT command FROM runs").fetchall()
    assert "Lager ä✓/zäh.toml" in command
    assert "266,610" in secateur("show", "1", "--store", store)
