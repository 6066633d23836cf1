"""Grids: the combinations of values that a sweep tries, with conditions on axes.

A grid has axes in order, each a key of the recipe with its values. An axis with a condition takes part only in
combinations in which the axes that the condition names have one of the values it names.

>>> axes = {"prune.criterion": ("magnitude", "snip"), "prune.images": (1, 10)}
>>> only = {"prune.images": {"prune.criterion": ("snip",)}}
>>> for one in combinations(axes, only):
...     print(one)
{'prune.criterion': 'magnitude'}
{'prune.criterion': 'snip', 'prune.images': 1}
{'prune.criterion': 'snip', 'prune.images': 10}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from secateur.errors import RecipeError, near
from secateur.lab.outcomes import Table

__all__ = ["choices", "chosen", "combinations", "conditions", "seeds", "span", "split_condition"]

MOST_TRIALS = 100_000
"""The most combinations of a grid."""

Axes = Mapping[str, Sequence[object]]
Conditions = Mapping[str, Mapping[str, Sequence[object]]]


def combinations(axes: Axes, when: Conditions) -> list[Table]:
    """Every combination of the axes' values, the last axis fastest, each once.

    Args:
        axes: Per axis its values.
        when: Per axis its condition.

    Returns:
        The combinations.

    >>> combinations({"a.x": (1, 2), "a.y": (3,)}, {})
    [{'a.x': 1, 'a.y': 3}, {'a.x': 2, 'a.y': 3}]
    """
    found: list[Table] = [{}]
    for key, values in axes.items():
        wanted = when.get(key, {})
        longer: list[Table] = []
        for one in found:
            # An axis left out by its own condition meets no condition either.
            if all(other in one and one[other] in allowed for other, allowed in wanted.items()):
                longer += [{**one, key: value} for value in values]
            else:
                longer.append(one)
        if len(longer) > MOST_TRIALS:
            raise RecipeError(
                f"the grid has more than {MOST_TRIALS:,} combinations from axis {key!r} on; give fewer values, or "
                "search with `secateur search`"
            )
        found = longer
    return found


def conditions(
    when: Mapping[str, object], axes: Axes, source: str
) -> dict[str, dict[str, tuple[object, ...]]]:
    """The conditions of a grid, checked: each names an axis before it, and values of that axis.

    Args:
        when: What the recipe says.
        axes: Per axis its values.
        source: What the recipe is called in messages.

    Returns:
        Per axis the other axes and the values they must have.

    Raises:
        RecipeError: A condition that can never hold.

    >>> conditions({"a.y": {"a.x": 1}}, {"a.x": (1, 2), "a.y": (3,)}, "recipe")
    {'a.y': {'a.x': (1,)}}
    >>> conditions({"a.x": {"a.y": 3}}, {"a.x": (1, 2), "a.y": (3,)}, "recipe")
    Traceback (most recent call last):
    secateur.errors.RecipeError: recipe: grid axis 'a.x' depends on 'a.y', which comes after it; put 'a.y' first
    """
    found: dict[str, dict[str, tuple[object, ...]]] = {}
    for key, wanted in when.items():
        if key not in axes:
            raise RecipeError(
                f"{source}: a condition on {key!r}, which is no axis of the grid: {near(key, list(axes))}"
            )
        if not isinstance(wanted, Mapping) or not wanted:
            raise RecipeError(
                f"{source}: grid axis {key!r}: expected when = {{OTHER_AXIS = VALUES}}, got {wanted!r}"
            )
        found[key] = {other: _condition(key, other, values, axes, source) for other, values in wanted.items()}
    return found


def _condition(key: str, other: str, values: object, axes: Axes, source: str) -> tuple[object, ...]:
    """The values of another axis that an axis depends on, checked."""
    order = list(axes)
    if other not in axes:
        raise RecipeError(
            f"{source}: grid axis {key!r} depends on {other!r}, which is no axis: {near(other, order)}"
        )
    if order.index(other) >= order.index(key):
        raise RecipeError(
            f"{source}: grid axis {key!r} depends on {other!r}, which comes after it; put {other!r} first"
        )
    some = tuple(values) if isinstance(values, list | tuple) else (values,)
    never = [value for value in some if value not in axes[other]]
    if never:
        raise RecipeError(
            f"{source}: grid axis {key!r} depends on {other!r} being {never[0]!r}, which it never is; "
            f"its values are {', '.join(repr(value) for value in axes[other])}"
        )
    return some


def choices(given: Mapping[str, Any], source: str) -> dict[str, dict[str, Table]]:
    """The `[choice]` tables of a recipe, checked.

    Args:
        given: What the recipe says.
        source: What the recipe is called in messages.

    Returns:
        Per axis and name the settings that the name stands for.

    Raises:
        RecipeError: They are no tables of settings.

    >>> choices({"method": {"snip": {"prune.criterion": "snip"}}}, "recipe")
    {'method': {'snip': {'prune.criterion': 'snip'}}}
    >>> choices({"prune.method": {}}, "recipe")
    Traceback (most recent call last):
    secateur.errors.RecipeError: recipe: choice 'prune.method': expected a plain word as the axis's name, without dots
    """
    for axis, named in given.items():
        if "." in axis or axis in ("name", "data", "model", "lab", "grid", "step"):
            raise RecipeError(
                f"{source}: choice {axis!r}: expected a plain word as the axis's name, without dots"
            )
        tables = isinstance(named, Mapping) and all(isinstance(table, Mapping) for table in named.values())
        if not tables or not named:
            raise RecipeError(
                f"{source}: choice {axis!r}: expected tables of settings by name, as in [choice.{axis}.NAME], "
                f"got {named!r}"
            )
        inner = next((key for table in named.values() for key in _dotted(table) if key in given), None)
        if inner is not None:
            raise RecipeError(
                f"{source}: choice {axis!r} sets the choice {inner!r}; name the values that it stands for"
            )
    return {
        axis: {str(name): _dotted(table) for name, table in named.items()} for axis, named in given.items()
    }


def _dotted(table: Mapping[str, object], prefix: str = "") -> Table:
    """Settings by dotted key: TOML reads `prune.budget = 0.5` as a table in a table."""
    found: Table = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and not prefix and "." not in key:
            found |= _dotted(value, f"{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def chosen(given: Mapping[str, Mapping[str, Table]], axis: str, value: object, source: str) -> Table:
    """The settings that a value of a choice stands for.

    Args:
        given: The choices.
        axis: Which of them.
        value: The name of one of its tables.
        source: What the recipe is called in messages.

    Returns:
        The settings by key.

    Raises:
        RecipeError: There is no such name.

    >>> chosen({"method": {"snip": {"prune.criterion": "snip"}}}, "method", "snip", "recipe")
    {'prune.criterion': 'snip'}
    """
    if not isinstance(value, str) or value not in given[axis]:
        raise RecipeError(f"{source}: choice {axis!r} has no {value!r}: {near(str(value), given[axis])}")
    return given[axis][value]


def split_condition(text: str) -> tuple[str, dict[str, str]]:
    """Values and conditions of `VALUES when KEY=A,B and KEY=C`, as the command line has it.

    Args:
        text: The text.

    Returns:
        The values, and per key the text of its values.

    Raises:
        RecipeError: A condition that is not KEY=VALUES.

    >>> split_condition("1,10 when prune.criterion=snip,grasp")
    ('1,10', {'prune.criterion': 'snip,grasp'})
    >>> split_condition("0.1:0.9:0.1")
    ('0.1:0.9:0.1', {})
    """
    values, when, rest = text.partition(" when ")
    found = {}
    for part in rest.split(" and ") if when else []:
        key, equals, wanted = part.partition("=")
        if not equals or not key.strip() or not wanted.strip():
            raise RecipeError(
                f"--grid ... when {rest}: expected when KEY=VALUE, or KEY=A,B for several values"
            )
        found[key.strip()] = wanted.strip()
    return values.strip(), found


def span(text: str) -> tuple[float | int, ...] | None:
    """`first:last:step` as numbers.

    Args:
        text: The text.

    Returns:
        The numbers, integers where all three are; None for a text of another form.

    Raises:
        RecipeError: The last is below the first, or the step is not above 0.

    >>> span("0.1:0.5:0.2"), span("0:4:2"), span("hf:x:y")
    ((0.1, 0.3, 0.5), (0, 2, 4), None)
    """
    try:
        first, last, step = (Decimal(part) for part in text.split(":"))
        finite = first.is_finite() and last.is_finite() and step.is_finite()
    except (InvalidOperation, ValueError):
        return None
    if not finite or step <= 0 or last < first:
        raise RecipeError(f"expected first <= last and step > 0, got {text!r}")
    if (last - first) / step >= MOST_TRIALS:
        raise RecipeError(f"expected at most {MOST_TRIALS:,} values, got {text!r}; take a larger step")
    kind = int if all(part.strip().lstrip("+-").isdigit() for part in text.split(":")) else float
    return tuple(kind(first + step * index) for index in range(int((last - first) / step) + 1))


def seeds(first: int, count: int) -> str:
    """A grid axis over seeds, as `--grid` takes it.

    Args:
        first: The first seed.
        count: How many seeds.

    Returns:
        The text.

    >>> seeds(3, 2)
    'lab.seed=3:4:1'
    """
    return f"lab.seed={first}:{first + count - 1}:1"
