"""`benchmarks/mutants.py`: which bugs it plants, worked out by hand on small sources."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "mutants.py"
_SPEC = importlib.util.spec_from_file_location("mutants", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
mutants = sys.modules.setdefault("mutants", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(mutants)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", {"(a <= b)"}),
        ("a and b", {"(a or b)"}),
        ("not a", {"a"}),
        ("a + b", {"(a - b)"}),
        ("'a' + b", set()),
        ("f(x, k=y)", {"f(x)", "pass"}),
        ("x = True", {"x = False"}),
        ("x = 1e-16", {"x = 2e-16"}),
        ("x: int = 3", {"x: int = 4"}),
        ("raise E(f'{a + 1}', b < c)", set()),
        ("f'{a < b}'", set()),
        ("ä = 'ä'; b > c", {"ä = 'ä'; (b >= c)"}),
    ],
)
def test_bugs_of_a_line(before: str, after: set[str]) -> None:
    source = before.encode()
    found = {each.planted(source).decode() for each in mutants.mutants_of("x.py", source)}
    assert found == after


SOURCE = b"""LIMIT = 3

@cached
def outer(x, y=1):
    def inner():
        return x + 1
    return inner

class C:
    def m(self):
        if self.a < 2:
            return (1 +
                    2)
        return 1
"""


def only(before: str, function: str) -> object:
    found = [e for e in mutants.mutants_of("x.py", SOURCE) if e.before == before and e.function == function]
    assert found
    return found[0]


@pytest.mark.parametrize(
    ("before", "function", "lines"),
    [
        ("3", "", set()),  # outside of functions
        ("1", "outer", set()),  # a default: evaluated when the file is loaded
        ("x + 1", "outer.inner", {6}),
        ("self.a < 2", "C.m", {11}),  # the condition, without what it guards
        ("2", "C.m", {11}),
        ("1 +\n                    2", "C.m", {12, 13}),
    ],
)
def test_lines_of_the_changed_statement(before: str, function: str, lines: set[int]) -> None:
    assert mutants._lines(only(before, function), SOURCE) == lines


def test_tests_that_run_the_line_killers_first_then_the_quickest() -> None:
    mutant = only("self.a < 2", "C.m")
    tests = {
        "slow": (9.0, {"x.py": [11]}),
        "quick": (1.0, {"x.py": [10, 11]}),
        "killer": (2.0, {"x.py": [11]}),
        "elsewhere": (0.1, {"x.py": [12], "y.py": [11]}),
    }
    killers = mutants.Counter({"killer": 1})
    assert mutants.chosen(mutant, SOURCE, tests, killers, 20) == (["killer", "quick", "slow"], 12.0)
    assert mutants.chosen(mutant, SOURCE, tests, killers, 5) == (["killer", "quick"], 3.0)


def test_names_and_the_draw_stay_after_a_change_elsewhere() -> None:
    one = {each.name: each.lot(0) for each in mutants.mutants_of("x.py", SOURCE)}
    other = {each.name: each.lot(0) for each in mutants.mutants_of("x.py", b"# more\n\n" + SOURCE)}
    assert one == other
    assert len(one) == len(mutants.mutants_of("x.py", SOURCE))  # no two have the same name


def test_the_changed_code_of_a_function_takes_the_place_of_the_loaded_one(tmp_path: Path) -> None:
    path = tmp_path / "loaded.py"
    path.write_text(
        "def f(x):\n    return x < 2\n\ndef made():\n    return lambda x: x + 1\nh = made()\nk = 5\n"
    )
    source = path.read_bytes()
    loaded: dict[str, object] = {}
    exec(compile(source, path, "exec"), loaded)
    of = {each.before: each for each in mutants.mutants_of("loaded.py", source)}
    assert mutants.changed_functions(*codes(path, source, of["5"])) is None  # no function
    for before in ("x < 2", "x + 1"):
        fresh = mutants.changed_functions(*codes(path, source, of[before]))
        assert mutants.replaced(path, fresh)
    assert loaded["f"](2) is True  # x <= 2
    assert loaded["h"](3) == 2  # x - 1, although it was made before


def codes(path: Path, source: bytes, mutant: object) -> list[object]:
    return [compile(text, path, "exec") for text in (source, mutant.planted(source))]


def test_a_forked_run_says_what_it_returned_or_that_it_took_too_long() -> None:
    assert mutants.forked(lambda: 5, 10) == 5
    assert mutants.forked(lambda: mutants.time.sleep(30) or 0, 0.2) is None
