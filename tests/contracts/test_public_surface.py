"""The public surface: every name is there, typed, explained once, and enough for every guide."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import secateur as sc

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secateur"
GUIDES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]
# folders that an extension's file is put into: each imports what it needs from the front door of its own
PLUGIN_FOLDERS = {"secateur.coding", "secateur.structure.groups.rules"}


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
    allowed = {"secateur", *(f"secateur.{name}" for name in sc._PACKAGES), *PLUGIN_FOLDERS}
    deep = {name for name in imports_of(page.read_text(encoding="utf-8")) if name not in allowed}
    assert deep == set(), f"{page.name} names what is not public"


def test_the_test_of_guides_sees_deep_imports():
    assert imports_of("from secateur.core.masks import Masks\n`secateur.metrics.latency.compare`") == {
        "secateur.core.masks",
        "secateur.metrics.latency.compare",
    }


def _public_functions() -> Iterator[tuple[str, Callable[..., object], str]]:
    """(name, function, text that may describe its arguments) of every public function and of every public method."""
    for name in sc.__all__:
        value = getattr(sc, name)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
                generated = key == "__init__" and "__dataclass_fields__" in vars(value)
                own = inspect.isfunction(function) and function.__module__.startswith("secateur")
                if own and (key == "__init__" or key[0] != "_") and not generated:
                    text = inspect.getdoc(function) or ""
                    yield (
                        f"{name}.{key}",
                        function,
                        text + (inspect.getdoc(value) or "" if key == "__init__" else ""),
                    )
        elif inspect.isroutine(value):
            yield name, inspect.unwrap(value), inspect.getdoc(value) or ""


_JSON = re.compile(r"(?:Mapping|dict)\[str, Any\]|Iterable\[Any\]")  # JSON, and batches of any form


def _any_of(function: Callable[..., object]) -> list[str]:
    """The arguments, and `return`, whose type is `Any` other than as a value of JSON or as a batch."""
    types = getattr(function, "__annotations__", {})
    return [key for key, kind in types.items() if re.search(r"\bAny\b", _JSON.sub("", str(kind)))]


def _undescribed(function: Callable[..., object], text: str) -> list[str]:
    """The arguments without a line of their own; a method's only one may be described by its first sentence."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    missing = [name for name in names if not re.search(rf"^\s*\**{name}: \S", text, re.MULTILINE)]
    method = "." in function.__qualname__ and function.__name__ != "__init__"
    return [] if method and len(names) == 1 else missing


def test_no_public_signature_says_any():
    assert {name: found for name, function, _ in _public_functions() if (found := _any_of(function))} == {}


def test_every_public_argument_is_described():
    found = {name: _undescribed(function, text) for name, function, text in _public_functions()}
    assert len(found) > 100
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_the_tests_of_signatures_see_faults():
    def lazy(model: Any, table: dict[str, Any]) -> Any: ...

    lazy.__annotations__ = {"model": "Any", "table": "dict[str, Any]", "return": "Any"}
    assert _any_of(lazy) == ["model", "return"]
    lazy.__qualname__ = "lazy"
    assert _undescribed(lazy, "Args:\n    model: What is cut.\n") == ["table"]
