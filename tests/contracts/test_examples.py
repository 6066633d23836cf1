"""Every public name has an example, in its docstring or in docs/site/examples.md, and each one prints what it says."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import re
import runpy
import sys
import types
from pathlib import Path

import pytest

import secateur as sc
from secateur.adapters import _fresh

SITE = Path(__file__).parents[2] / "docs" / "site"
EXAMPLES = runpy.run_path(str(SITE / "examples.py"), run_name="examples")
START, *SECTIONS = EXAMPLES["sections"](EXAMPLES["FILE"].read_text(encoding="utf-8"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def failures(code: str, names: dict[str, object]) -> str:
    """What differs from what the example says, as doctest tells it; empty where nothing does."""
    test = doctest.DocTestParser().get_doctest(code, names, "example", "examples.md", 0)
    out = io.StringIO()
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=out.write, clear_globs=False)
    return out.getvalue()


def example_of(name: str) -> bool:
    """Whether a public name has an example."""
    return ">>> " in (getattr(sc, name).__doc__ or "") or any(name in each.names for each in SECTIONS)


SLOW = {"save_pretrained", "smallest"}  # starts processes; searches


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(each, id=each.names[0], marks=[pytest.mark.slow] if each.names[0] in SLOW else [])
        for each in SECTIONS
    ],
)
def test_an_example_prints_what_it_says(section, tmp_path, monkeypatch) -> None:
    _fresh._declare_torchvision()  # transformers imports it, of whatever build it is
    for package in section.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    module = types.ModuleType("example")  # libraries look up the module of a class
    monkeypatch.setitem(sys.modules, "example", module)
    vars(module)["__name__"] = "example"
    with contextlib.redirect_stderr(io.StringIO()):
        assert failures(START.code + section.code, vars(module)) == ""


@pytest.mark.parametrize("name", sc.__all__)
def test_a_public_name_has_an_example(name) -> None:
    assert example_of(name), f"sc.{name} has no example: add one to its docstring or to docs/site/examples.md"


def test_a_name_without_an_example_is_found(monkeypatch) -> None:
    monkeypatch.setattr(sc, "newcomer", lambda: None, raising=False)
    assert not example_of("newcomer")


def test_every_example_is_of_public_names_and_uses_each() -> None:
    for section in SECTIONS:
        assert set(section.names) <= set(sc.__all__), section.names
        for name in section.names:
            assert f"sc.{name}" in section.code, f"the example of {name} does not use it"


def test_a_wrong_example_is_found() -> None:
    assert "Expected" in failures(">>> 1 + 1\n3\n", {})


def test_every_public_name_is_in_the_reference() -> None:
    sys.path.insert(0, str(SITE))
    try:
        page = importlib.import_module("pages").python_page()
    except ImportError as error:
        pytest.skip(f"the site's packages are not installed: {error}")
    finally:
        sys.path.remove(str(SITE))
    shown = re.findall(r"^::: secateur\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sc.__all__
    assert page.count("**Example.**") == sum(len(section.names) for section in SECTIONS)


def test_a_section_is_read_into_its_parts() -> None:
    text = "Intro\n>>> x = 1\n\n## one, two\n\nNeeds torch. Adds.\n\n>>> x + 1\n2\n"
    start, section = EXAMPLES["sections"](text)
    assert (start.names, start.code) == ((), ">>> x = 1\n")
    assert (section.names, section.needs) == (("one", "two"), ("torch",))
    assert (section.text, section.code) == ("Needs torch. Adds.", ">>> x + 1\n2\n")
