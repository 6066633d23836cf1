"""Settings: the texts and tables that a recipe is written in, before they are validated.

A setting is a key such as `prune.budget` with a value; `--set` and `--grid` give them as texts, a grid has several
values for one key. All that is here works on plain data: dicts, lists, numbers and texts, as TOML has them.

>>> whole = {"step": label_steps([{"kind": "prune"}])}
>>> assign(whole, *parse_setting("prune.budget=0.5"), "recipe")
>>> whole["step"]
[{'kind': 'prune', 'label': 'prune', 'budget': 0.5}]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.errors import RecipeError, near
from secateur.lab import grid as grids
from secateur.lab import steps as step_kinds
from secateur.lab.old_words import PresentNames
from secateur.lab.outcomes import Table
from secateur.lab.trust import code_in

__all__ = ["assign", "axes_of", "axis_values", "label_steps", "names_given", "parse_setting", "settle"]


def axes_of(
    whole: Table,
    choice: Mapping[str, Mapping[str, object]],
    grid: Sequence[str],
    now: PresentNames,
) -> tuple[Table, Table]:
    """The axes with their values, and their conditions, by present names: of the recipe's tables, which it takes out,
    and of `--grid`.
    """
    axes = now.keys(_flatten(whole.pop("grid", {})))
    axes |= {axis: list(named) for axis, named in choice.items() if axis not in axes}
    when: Table = dict(whole.pop("when", {}))
    for key, value in axes.items():
        if isinstance(value, dict):
            axes[key] = value.get("values")
            when |= {key: value["when"]} if "when" in value else {}
    when = {
        key: now.keys(some) if isinstance(some, Mapping) else some for key, some in now.keys(when).items()
    }
    for item in grid:
        text, wanted = grids.split_condition(item)
        key, value = parse_setting(text, "--grid")
        axes[key] = _several(value)
        if wanted:
            when[key] = {other: _several(_value(some)) for other, some in wanted.items()}
    return axes, when


def settle(whole: Table, axes: Table, when: Table, grid: Sequence[str], item: str, source: str) -> None:
    """Make one `--set` in the recipe; where an axis of the recipe varies that very key, the axis has this value alone.

    Args:
        whole: The recipe as plain data, its steps labelled, without grid and conditions.
        axes: Per axis its values; changed.
        when: Per axis its condition; changed.
        grid: The `--grid` texts, which made some of the axes.
        item: The `--set` text.
        source: What the recipe is called in messages.

    Raises:
        RecipeError: The value would be lost: an axis sets a part of it, or `--grid` gives the key other values.

    >>> axes = {"prune.budget": [0.5, 0.7]}
    >>> settle({"step": label_steps([{"kind": "prune"}])}, axes, {}, [], "prune.budget=0.9", "recipe")
    >>> axes
    {'prune.budget': [0.9]}
    """
    key, value = parse_setting(item, "--set")
    assign(whole, key, value, source)
    if key in axes:
        given = any(parse_setting(grids.split_condition(text)[0], "--grid")[0] == key for text in grid)
        if given and value not in axis_values(key, axes[key], source):
            raise RecipeError(
                f"{source}: --set and --grid both give {key!r}: expected one of them, got {value!r} and {axes[key]!r}; "
                "leave one out"
            )
        if not given:
            axes[key] = [value]
            when.pop(key, None)
            _narrow(axes, when, key, value)
        return
    choice = whole.get("choice", {})
    for axis in axes:
        named: object = choice.get(axis, {axis: {axis: None}})
        inside = [each for table in named.values() for each in table] if isinstance(named, Mapping) else []
        if any(_loses(each, key, value) for each in inside):
            raise RecipeError(
                f"{source}: --set {item}: the axis {axis!r} of the grid gives {key!r} other values in every trial; "
                f"give the axis one value, --set {axis}=VALUE, or take it out of the recipe"
            )


def _loses(axis: str, key: str, value: object) -> bool:
    """Whether setting `axis` after `key` replaces the value of `key`, or a part of it that was given."""
    if key == axis or key.startswith(f"{axis}."):
        return True
    if not axis.startswith(f"{key}."):
        return False
    for part in axis[len(key) + 1 :].split("."):
        if not isinstance(value, Mapping):
            return True
        if part not in value:
            return False
        value = value[part]
    return True


def _narrow(axes: Table, when: Table, key: str, value: object) -> None:
    """Conditions on an axis that has one value now: those it meets hold, and axes whose condition fails leave."""
    for other in [axis for axis, wanted in when.items() if isinstance(wanted, Mapping) and key in wanted]:
        some = when[other][key]
        if value in (some if isinstance(some, list | tuple) else [some]):
            when[other] = {**when[other], key: [value]}
            continue
        axes.pop(other, None)
        when.pop(other)
        _leave(axes, when, other)


def _leave(axes: Table, when: Table, gone: str) -> None:
    """Take out the axes that depend on one that left."""
    for other in [axis for axis, wanted in when.items() if isinstance(wanted, Mapping) and gone in wanted]:
        axes.pop(other, None)
        when.pop(other, None)
        _leave(axes, when, other)


def names_given(settings: Sequence[str], grid: Sequence[str]) -> frozenset[str]:
    """The names that may be code and that `--set` and `--grid` texts give."""
    pairs = [parse_setting(item, "--set") for item in settings]
    for item in grid:
        key, values = parse_setting(grids.split_condition(item)[0], "--grid")
        several = _several(values)
        pairs += [(key, value) for value in (several if isinstance(several, list) else [several])]
    return frozenset(name for key, value in pairs for name in code_in(key, value))


def label_steps(tables: object, source: str = "recipe") -> list[Table]:
    """The `[[step]]` tables, each with a label: its own, or its kind, with a number from the second of a kind on.

    Args:
        tables: What the recipe has.
        source: What the recipe is called in messages.

    Returns:
        Copies of the tables with their labels.

    Raises:
        RecipeError: They are no tables, lack a kind, or two have one label.

    >>> [table["label"] for table in label_steps([{"kind": "prune"}, {"kind": "prune"}])]
    ['prune', 'prune2']
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RecipeError(
            f"{source}: steps are written as [[step]] tables, each with a `kind`; got {tables!r}"
        )
    labelled, seen = [], set()
    for index, table in enumerate(tables):
        kind = table.get("kind")
        if not isinstance(kind, str):
            known = ", ".join(step_kinds.registry.names())
            raise RecipeError(f"{source}: step {index + 1} needs a `kind`, one of {known}; got {kind!r}")
        label = table.get("label")
        if not label:
            label, count = kind, 1
            while label in seen:
                count += 1
                label = f"{kind}{count}"
        if not isinstance(label, str):
            raise RecipeError(f"{source}: step {index + 1} ({kind}): expected a text as label, got {label!r}")
        if label in seen:
            raise RecipeError(
                f"{source}: step {index + 1} ({kind}): the label {label!r} is taken; give each its own"
            )
        if label in ("name", "data", "model", "lab", "grid", "step"):
            raise RecipeError(
                f"{source}: step {index + 1} ({kind}): {label!r} is a table of recipes, not a label"
            )
        seen.add(label)
        labelled.append({**table, "label": label})
    return labelled


def parse_setting(text: str, flag: str = "--set") -> tuple[str, Any]:
    """`a.b=c` as key and value; the value is read as TOML, and as text where that fails.

    Args:
        text: `KEY=VALUE`.
        flag: The option that it was given with, for the message.

    Returns:
        The key and the value.

    Raises:
        RecipeError: It is not `KEY=VALUE`.

    >>> parse_setting("prune.budget=0.5"), parse_setting("model.name=vgg12")
    (('prune.budget', 0.5), ('model.name', 'vgg12'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{flag} {text}: expected key=value, for example {flag} prune.budget=0.5")
    return key.strip(), _value(value.strip())


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _several(value: object) -> object:
    """The values of an axis as the command line gives them: `a,b,c` is a list, `0:1:0.1` stays a text."""
    if isinstance(value, str):
        between = value.count(":") == 2 and "," not in value  # names of code have colons too: mine:a,mine:b
        if re.fullmatch(r"\s*[-+.\d]+\s*:\s*[-+.\d]+\s*", value):
            raise RecipeError(
                f"expected first:last:step, such as {value.strip()}:1, or values with commas, got {value!r}; the text "
                f'itself is ["{value.strip()}"]'
            )
        return value if between else [_value(part.strip()) for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def _flatten(tables: Mapping[str, object], prefix: str = "") -> Table:
    """`[grid]` with dotted keys, which TOML reads as tables in tables where they have no quotes."""
    flat: Table = {}
    for key, value in tables.items():
        if isinstance(value, dict) and "values" not in value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def axis_values(key: str, values: object, source: str) -> tuple[Any, ...]:
    """The values of one axis of a grid.

    Args:
        key: The axis.
        values: A list, or `first:last:step`.
        source: What the recipe is called in messages.

    Returns:
        The values.

    Raises:
        RecipeError: There are none.

    >>> axis_values("prune.budget", "0.5:0.7:0.1", "recipe")
    (0.5, 0.6, 0.7)
    """
    if isinstance(values, str) and values.count(":") == 2:
        try:
            between = grids.span(values)
        except RecipeError as error:
            raise RecipeError(f"{source}: grid axis {key!r}: {error}") from None
        if between is None:
            raise RecipeError(f"{source}: grid axis {key!r}: expected first:last:step, got {values!r}")
        return between
    if not isinstance(values, list | tuple) or not values:
        raise RecipeError(
            f"{source}: grid axis {key!r}: expected a list of values or 'first:last:step', got {values!r}"
        )
    return tuple(values)


def assign(whole: Table, key: str, value: object, source: str) -> None:
    """Set one value of a recipe, in place.

    Args:
        whole: The recipe as plain data, its steps labelled.
        key: `data.size`, `lab.seed`, `name`, or `LABEL.option` of a step; the key of a `choice` sets all settings of
            the table that the value names.
        value: The value.
        source: What the recipe is called in messages.

    Raises:
        RecipeError: The recipe has no such key.

    An option of a plug-in that so far is a name alone joins the name:

    >>> whole = {"step": [{"kind": "prune", "label": "prune", "criterion": "taylor"}]}
    >>> assign(whole, "prune.criterion.mode", "train", "recipe")
    >>> whole["step"][0]["criterion"]
    {'name': 'taylor', 'mode': 'train'}
    """
    if key in whole.get("choice", {}):
        for inner, meant in grids.chosen(whole["choice"], key, value, source).items():
            assign(whole, inner, meant, source)
        return
    first, _, rest = key.partition(".")
    labels = {table["label"]: table for table in whole["step"]}
    if first == "name" and not rest:
        whole["name"] = value
        return
    if first in ("data", "model", "lab") or (first == "teacher" and first not in labels):
        table = whole.setdefault(first, {})
    elif first in labels:
        table = labels[first]
    else:
        known = ["data", "model", "lab", *labels]
        raise RecipeError(f"{source}: nothing called {first!r} to set (in {key!r}): {near(first, known)}")
    parts = rest.split(".")
    if not all(parts):
        raise RecipeError(f"{source}: {key!r} names a table; name the value in it, as in {first}.KEY=VALUE")
    if parts == ["kind"] and first in labels:
        raise RecipeError(f"{source}: {key!r}: the kind of a step cannot be set; write another recipe")
    for part in parts[:-1]:
        inner = table.get(part)
        if isinstance(inner, str) and first in labels:  # the name of a plug-in, which its options join
            table[part] = {"name": inner}
        else:
            table[part] = dict(inner) if isinstance(inner, dict) else {}
        table = table[part]
    table[parts[-1]] = value
