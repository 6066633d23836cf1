"""docs/methods.md names every criterion, budget and method of sparse training there is."""

import re
from pathlib import Path

import secateur as sc
from secateur.lab.training import distill

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_no_method_is_missing() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`[^|]*) \|", text, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    known = {
        *sc.criteria.registry.names(),
        *sc.budget.registry.names(),
        *sc.sparsify.registry.names(),
        *sc.allocation.registry.names(),
        *distill.registry.names(),
    }
    assert known - named == set()
    assert named - known == {"level"}  # another word for magnitude
