"""The tree of errors: one root, exit codes, and the picture in the docstring is the truth."""

from __future__ import annotations

import inspect
import re

import pytest

from secateur import errors
from secateur.errors import near


def classes() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }


def test_the_picture_shows_every_class_under_its_parent():
    depth_of: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ├└─]*)([A-Z]\w+)\s", line)
        if found is None or not line.startswith("    ") or found.group(2) not in classes():
            continue
        level = len(found.group(1)) // 4
        depth_of[level:] = [found.group(2)]
        drawn[found.group(2)] = depth_of[level - 1] if level else None
    assert drawn.keys() == classes().keys()
    for name, parent in drawn.items():
        if parent is not None:
            assert classes()[parent] in classes()[name].__bases__, f"{name} is drawn under {parent}"


def test_everything_is_public_and_of_one_root():
    assert set(errors.__all__) == {*classes(), "near"}
    assert all(issubclass(kind, errors.SecateurError) for kind in classes().values())
    assert all(kind.__doc__ for kind in classes().values())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SecateurError", 1),
        ("OptionError", 2),
        ("UnknownNameError", 2),
        ("RecipeError", 2),
        ("PatternError", 2),
        ("BudgetNotMetError", 3),
        ("NothingToDoError", 4),
        ("FormatError", 1),
        ("CollapseError", 1),
        ("StructureError", 1),
    ],
)
def test_exit_codes(name, code):
    assert classes()[name]("x").exit_code == code


def test_python_callers_may_catch_the_builtin_kind():
    assert issubclass(errors.OptionError, ValueError)
    assert issubclass(errors.PatternError, LookupError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_near_names():
    assert near("fmpg", ["fpgm", "l1"]) == "did you mean 'fpgm'?"
    assert near("conv", ["conv1", "conv2", "fc"]) == "did you mean 'conv2' or 'conv1'?"
    assert near("zzz", ["b", "a", "a"]) == "known: 'a', 'b'"
    assert near("?", [f"n{i:02}" for i in range(25)]).endswith("'n19' and 5 more")


def test_every_error_says_what_cures_it():
    for name, kind in classes().items():
        meaning, _, cure = inspect.getdoc(kind).partition("\n\n")
        assert meaning.endswith("."), name
        assert cure.startswith("C"), f"{name}: expected a paragraph that begins with 'Cure:'"
        assert len(cure) > 60, name
    assert all(
        "Cure: " in inspect.getdoc(kind) for kind in classes().values() if kind is not errors.SecateurError
    )
