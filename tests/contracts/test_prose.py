"""The linter for prose finds planted faults, and nothing in the documents and docstrings."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prose():
    sys.modules.setdefault("prose", type(sys)("prose"))
    return runpy.run_path(str(ROOT / "docs/site/prose.py"), run_name="prose")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The channels live or\ndie together.", "word"),
        ("Stopped, it goes on where it stood.", "word"),
        ("A sparsity of 0.3 remains.", "share"),
        ("With keep=0.5 removed, it is small.", "share"),
        ("See /" + "root/file.txt for it.", "path"),
        ("It lies in `/" + "work/main`.", "path"),
        ("word " * 61 + ".", "long"),
    ],
)
def test_a_planted_fault_is_found_on_its_line(prose, text, rule) -> None:
    found = prose["faults"]("A title\n\n" + text, "page.md")
    assert [(fault.rule, fault.line) for fault in found] == [(rule, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "The channels are coupled; a sparsity of 0.3 is removed, keep=0.7 remains.",
        "```bash\n" + "word " * 80 + "\n```\n",
        "- " + "word " * 40 + "\n- " + "word " * 40,
        "See docs/work/file and https://example.org/root/x.",
    ],
)
def test_what_is_no_fault_is_left_alone(prose, text) -> None:
    assert prose["faults"](text, "page.md") == []


def test_a_docstring_is_checked_and_named_by_its_line(prose, tmp_path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""Fine."""\n\n\ndef f():\n    """One.\n\n    This is told in pages.\n    """\n')
    assert [(fault.rule, fault.line) for fault in prose["faults_of"](file)] == [("word", 7)]


def test_the_documents_and_docstrings_have_no_fault(prose) -> None:
    assert [str(fault) for path in prose["files"]() for fault in prose["faults_of"](path)] == []
