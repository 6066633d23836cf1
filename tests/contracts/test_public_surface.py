"""The public surface: every name is there, typed, explained once, and enough for every guide."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import secateur as sc

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secateur"
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


def _typed() -> dict[str, str]:
    """name -> module, as a type checker reads them."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            assert name.name == name.asname, f"{name.name}: `import x as x` is what makes a name public"
            found[name.name] = node.module if node.module != "secateur" else f"secateur.{name.name}"
    return found


def test_what_a_type_checker_sees_is_what_is_imported():
    imported = {**sc._NAMES, **{name: f"secateur.{name}" for name in sc._PACKAGES}}
    assert _typed() == imported
    assert sorted(imported) == sc.__all__


@pytest.mark.parametrize("name", sc.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert getattr(sc, name).__doc__


def test_an_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'prunes'; public names: .*prune"):
        sc.prunes  # noqa: B018


def test_importing_secateur_imports_no_torch():
    code = "import secateur, sys; assert 'torch' not in sys.modules; secateur.Masks; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_in_the_glossary_once():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z].*\.) \|$", text, re.MULTILINE)
    assert Counter(name for name, _ in rows) == Counter(sc.__all__)


def test_every_row_of_the_glossary_is_one_sentence():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| .*$", text, re.MULTILINE):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        if cells[0] in ("word", "name"):
            continue
        assert len(cells) == 2, row
        assert re.fullmatch(r"[A-Z.].*[^.]\.", cells[1].replace(".sct", "sct").replace(".pt", "pt")), row
        assert ". " not in cells[1], f"more than one sentence: {row}"


def _public(path: Path) -> bool:
    return not any(part.startswith("_") for part in (*path.parent.parts, path.stem) if part != "__init__")


def test_no_two_public_classes_share_a_name():
    homes: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if not _public(place):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(place))
    assert len(homes) > 100
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def imports_of(text: str) -> set[str]:
    """The modules of secateur that a page's text or examples name."""
    return set(re.findall(r"(?:from|import) (secateur[\w.]*)", text)) | set(
        re.findall(r"`(secateur(?:\.\w+)+)", text)
    )


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_guides_import_public_names_only(page):
    allowed = {"secateur", *(f"secateur.{name}" for name in sc._PACKAGES)}
    deep = {name for name in imports_of(page.read_text(encoding="utf-8")) if name not in allowed}
    assert deep == set(), f"{page.name} names what is not public"


def test_the_test_of_guides_sees_deep_imports():
    assert imports_of("from secateur.core.masks import Masks\n`secateur.metrics.latency.compare`") == {
        "secateur.core.masks",
        "secateur.metrics.latency.compare",
    }
