"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from secateur import cli


@pytest.fixture
def secateur(monkeypatch, capsys, tmp_path):
    """Runs the command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secateur.cli.options._debug", False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call
