'''Published figures as plain data: `NAME.published.toml` beside a study, single figures and whole tables.

>>> found = parse("""
... source = "the report"
... [[figure]]
... name = "macs"
... where = {variant = "shrunk", sparsity = 0.5}
... value = 329152
... inconsistent = "784-200-18 has fewer"
... follows = 324400
... [[table]]
... name = "accuracy"
... where = {variant = "retrained"}
... rows = "sparsity"
... columns = "criterion"
... head = ["random", "snip"]
... factor = 0.01
... values = [[0.5, 86.8, 88.55]]
... """)
>>> [(one.name, one.value, dict(one.where)) for one in found][1:]  # doctest: +NORMALIZE_WHITESPACE
[('accuracy', 0.868, {'variant': 'retrained', 'sparsity': 0.5, 'criterion': 'random'}),
 ('accuracy', 0.8855, {'variant': 'retrained', 'sparsity': 0.5, 'criterion': 'snip'})]
>>> found[0].fits("macs", {"variant": "shrunk", "sparsity": 0.5, "criterion": "l1"}), found[0].sound
(True, 324400)
'''

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import RecipeError
from secateur.lab.steps import Options

__all__ = ["PublishedFigure", "alike", "parse", "published_measurements"]


class PublishedFigure(Options):
    """A published number: its measure, its settings, and why it cannot be right, if it cannot.

    `follows` is the number that does follow from the report's own model. `note` is a further remark for the reader.
    """

    name: str
    value: float | int
    where: dict[str, Any] = Field(default_factory=dict)
    inconsistent: str = ""
    follows: float | int | None = None
    note: str = ""
    source: str = ""

    @property
    def sound(self) -> float | int:
        """The number that ours is compared with: the figure, or the one that follows from the model if the figure
        does not.
        """
        return self.value if self.follows is None else self.follows

    def fits(self, name: str, context: Mapping[str, object]) -> bool:
        """Whether a number of ours is the one that this figure is about; one layer's is not the whole model's."""
        if "layer" in context and "layer" not in self.where:
            return False
        return name == self.name and all(
            key in context and alike(context[key], value) for key, value in self.where.items()
        )


class Grid(Options):
    """A table of figures: the first entry of every line is the value of `rows`, the others stand under `head`.

    `columns` is the key that the head's words are values of, or `name`, where they are measures.
    """

    name: str = ""
    where: dict[str, Any] = Field(default_factory=dict)
    rows: str
    columns: str
    head: tuple[Any, ...]
    values: tuple[tuple[Any, ...], ...]
    factor: float = 1.0
    inconsistent: str = ""

    def figures(self, source: str) -> list[PublishedFigure]:
        """Every number of the table; an empty text is a number that was not published."""
        found = []
        for first, *rest in self.values:
            if len(rest) != len(self.head):
                raise RecipeError(
                    f"published table of {self.name or self.columns}: expected {len(self.head)} numbers after "
                    f"{first!r}, got {len(rest)}"
                )
            for word, value in zip(self.head, rest):
                if value == "":
                    continue
                where = {**self.where, self.rows: first}
                name = self.name
                if self.columns == "name":
                    name = str(word)
                else:
                    where[self.columns] = word
                value = round(value * self.factor, 12) if self.factor != 1 else value
                found.append(
                    PublishedFigure(
                        name=name, value=value, where=where, inconsistent=self.inconsistent, source=source
                    )
                )
        return found


class _PublishedFile(Options):
    source: str = "the published report"
    figure: tuple[PublishedFigure, ...] = ()
    table: tuple[Grid, ...] = ()


def alike(one: object, other: object) -> bool:
    """Whether two settings are the same: numbers by value, lists as any of them.

    >>> alike(0.3, 0.1 + 0.2), alike("l1", "l2"), alike("l2", ["l1", "l2"])
    (True, False, True)
    """
    if isinstance(other, (list, tuple)) and not isinstance(one, (list, tuple)):
        return any(alike(one, some) for some in other)
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def parse(text: str, name: str = "study") -> list[PublishedFigure]:
    """The figures of a file."""
    try:
        file = _PublishedFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}.published.toml: expected TOML, but {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{name}.published.toml: {place}: {first['msg']}, got {first['input']!r}") from None
    single = [one if one.source else one.model_copy(update={"source": file.source}) for one in file.figure]
    return [*single, *(one for grid in file.table for one in grid.figures(file.source))]


def published_measurements(figures: list[PublishedFigure]) -> Measurements:
    """The figures in the form the report pairs with ours."""
    found = []
    for one in figures:
        context = {**one.where, "published": one.source}
        if one.inconsistent:
            context["inconsistent"] = one.inconsistent
        found.append(Measurement(one.name, one.value, context=context))
    return Measurements(found)
