"""The help of the command line: every verb in one group, with a whole sentence."""

from __future__ import annotations

from secateur.cli.app import app
from secateur.cli.sections import SECTIONS


def test_every_verb_is_in_one_group():
    grouped = [name for _, names in SECTIONS for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {command.name for command in app.registered_commands}


def test_no_sentence_is_cut_at_80_columns(secateur, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = secateur("--help")
    assert code == 0
    assert "..." not in out.partition("\n")[2]
    assert out.index("A model:") < out.index("Files:") < out.index("Recipes:") < out.index("Names:")
    assert "More:" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert "masked one does, and write it as one file." in " ".join(out.split())
