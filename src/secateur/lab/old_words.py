"""Old words of a recipe: options of steps that have another name now go on working, with a `DeprecationWarning`.

>>> import warnings
>>> steps = [{"kind": "measure", "label": "times", "trials": 3}]
>>> with warnings.catch_warnings():
...     warnings.simplefilter("ignore")
...     now = present_names(steps, "recipe")
...     (steps[0], now.text("times.trials=5"))
({'kind': 'measure', 'label': 'times', 'repetitions': 3}, 'times.repetitions=5')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from secateur.core.user_warnings import warn
from secateur.errors import RecipeError, UnknownNameError
from secateur.lab import steps as step_kinds
from secateur.lab.outcomes import Table

__all__ = ["PresentNames", "present_names"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class PresentNames:
    """The present keys of a recipe's options by their old ones, such as `measure.trials`.

    Attributes:
        renamed: Per old key the present one.
        source: What the recipe is called in messages.
    """

    renamed: Mapping[str, str]
    source: str

    def key(self, key: str) -> str:
        """A key by its present name; an old one is warned of.

        Args:
            key: `LABEL.option`, or any other key.
        """
        key = key.strip()
        if key not in self.renamed:
            return key
        old, new = key.rpartition(".")[2], self.renamed[key]
        _warn(f"{self.source}: {key!r}", old, new.rpartition(".")[2])
        return new

    def keys(self, table: Mapping[str, _Value]) -> dict[str, _Value]:
        """A table with its keys by their present names.

        Args:
            table: Values by keys.

        Raises:
            RecipeError: It has a key by both names.
        """
        found: dict[str, _Value] = {}
        for old, value in table.items():
            new = self.key(old) if old in self.renamed else old
            if new != old and new in table:
                raise RecipeError(f"{self.source}: {old!r} is the old name of {new!r}; give {new!r} alone")
            found[new] = value
        return found

    def text(self, item: str) -> str:
        """A `KEY=VALUE` text by the present name.

        Args:
            item: The text.
        """
        key, equals, value = item.partition("=")
        return f"{self.key(key)}={value}" if equals and key.strip() in self.renamed else item

    def grid_text(self, item: str) -> str:
        """A `KEY=VALUES when OTHER=VALUES and ...` text by the present names.

        Args:
            item: The text.
        """
        axis, when, rest = item.partition(" when ")
        conditions = " and ".join(self.text(part) for part in rest.split(" and "))
        return f"{self.text(axis)}{when}{conditions}"

    def choice(self, given: Mapping[str, Mapping[str, Table]]) -> dict[str, dict[str, Table]]:
        """The tables of `[choice]` by present names.

        Args:
            given: Per axis and name the settings that the name stands for.
        """
        return {
            axis: {name: self.keys(table) for name, table in named.items()} for axis, named in given.items()
        }


def present_names(steps: Sequence[Table], source: str) -> PresentNames:
    """Give the options of steps their present names, in place, before anything else is set in them.

    Args:
        steps: The `[[step]]` tables, labelled.
        source: What the recipe is called in messages.

    Returns:
        The names, for the keys of settings, grids and conditions.

    Raises:
        RecipeError: A step has an option by both names.
    """
    renamed = {}
    for table in steps:
        try:
            names = step_kinds.registry.get(table["kind"]).renamed
        except UnknownNameError:
            continue  # an error says so when the step is made
        where = f"{source}: step {table['label']!r}"
        for old, new in names.items():
            renamed[f"{table['label']}.{old}"] = f"{table['label']}.{new}"
            if old not in table:
                continue
            if new in table:
                raise RecipeError(f"{where}: {old!r} is the old name of {new!r}; give {new!r} alone")
            _warn(where, old, new)
            table[new] = table.pop(old)
    return PresentNames(renamed, source)


def _warn(where: str, old: str, new: str) -> None:
    warn(f"{where}: {old!r} is called {new!r} now; the old word will be removed in 1.0", DeprecationWarning)
