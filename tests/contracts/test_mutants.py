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


def test_a_line_belongs_to_its_innermost_function_from_its_decorator_on() -> None:
    source = b"@cached\ndef outer():\n    def inner():\n        return 1\n    return inner\nx = 2\n"
    assert mutants.function_at(source, 4) == (3, 1)
    assert mutants.function_at(source, 5) == (1,)
    assert mutants.function_at(source, 6) == ()


def test_a_forked_run_says_what_it_returned_or_that_it_took_too_long() -> None:
    assert mutants.forked(lambda: 5, 10) == 5
    assert mutants.forked(lambda: mutants.time.sleep(30) or 0, 0.2) is None
