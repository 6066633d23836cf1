"""The linter for prose finds planted faults, and nothing in the documents and docstrings."""

from __future__ import annotations

import re
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
        ("A weight is worth its square.", "word"),
        ("The layer is solved anew.", "word"),
        ("The others make\nup for each.", "word"),
        ("A killed run goes on.", "word"),
        ("It is equal to the last bit.", "word"),
        ("Give some hundred inputs.", "word"),
        ("What comes in is a model.", "word"),
        ("Blocks that leave whole.", "word"),
        ("It is measured all the same: times all the same.", "word"),
        ("A file of a stranger.", "word"),
        ("The bits are foretold.", "word"),
        ("Mend the model first.", "word"),
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
        "The names are all the same; handing over is fine; a recommendation to amend; the price of a model.",
        "A file may leave names to the model. Logs go into a folder.",
    ],
)
def test_what_is_no_fault_is_left_alone(prose, text) -> None:
    assert prose["faults"](text, "page.md") == []


def test_a_docstring_is_checked_and_named_by_its_line(prose, tmp_path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""Fine."""\n\n\ndef f():\n    """One.\n\n    This is told in pages.\n    """\n')
    assert [(fault.rule, fault.line) for fault in prose["faults_of"](file)] == [("word", 7)]


def test_a_comment_and_a_message_are_checked(prose, tmp_path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""Fine."""\nx = 1  # made anew\nraise ValueError(f"the run goes on {x} times")\n')
    assert [(fault.rule, fault.line) for fault in prose["faults_of"](file)] == [("word", 2), ("word", 3)]


def test_a_private_name_is_a_fault(prose, tmp_path) -> None:
    file = tmp_path / "lanes.py"
    file.write_text(
        '"""Fine."""\n\n\nclass _Crew:\n    """Fine."""\n\n\ndef f(told: int, base: int) -> None:\n    pass\n'
    )
    assert [(fault.rule, fault.line) for fault in prose["faults_of"](file)] == [
        ("name", 1),
        ("name", 4),
        ("name", 8),
    ]


@pytest.mark.parametrize("table", ["WORDS", "PATTERNS"])
def test_every_entry_is_found_where_it_stands(prose, table) -> None:
    """The first alternative of every entry, written out, is a fault: so that no entry is dead."""
    for entry in prose[table]:
        first = entry if table == "WORDS" else _first_alternative(entry)
        assert [fault.rule for fault in prose["faults"](f"So {first} it.", "page.md")][:1] == ["word"], entry


def _first_alternative(pattern: str) -> str:
    text = re.sub(r"\(\?:([^|()]*)[^()]*\)\??", r"\1", pattern)
    return re.sub(r"\w\?", "", text.split("|")[0])


def test_the_documents_and_docstrings_have_no_fault(prose) -> None:
    assert [str(fault) for path in prose["files"]() for fault in prose["faults_of"](path)] == []
