'''`Study`: several sweeps of one model family, the scales they can be run at, and the tables they are read from.

>>> study = Study.parse("""
... title = "Small"
... [model]
... name = "fc"
... [[step]]
... kind = "train"
... epochs = 20
... [[part]]
... name = "sweep"
... [[part.step]]
... kind = "prune"
... [part.grid]
... "prune.budget" = [0.5, 0.9]
... [scale.smoke]
... about = "one epoch"
... set = {"train.epochs" = 1}
... """, "small")
>>> [(part.name, len(recipe.trials()), recipe.steps[0].epochs) for part, recipe in study.recipes("smoke")]
[('sweep', 2, 1)]
>>> study.recipes("smoke", ["train.epoch=2"])
Traceback (most recent call last):
secateur.errors.RecipeError: small/sweep: step 'train' has no key 'epoch': did you mean 'epochs'?
'''

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from secateur.errors import RecipeError, UnknownNameError, near
from secateur.lab.recipe import Recipe, assign, axis_values, label_steps, parse_setting
from secateur.lab.steps import Options
from secateur.lab.trust import code_in

__all__ = ["Part", "Picture", "Scale", "Study", "TableColumn", "TableSpec", "placed"]

_TABLES = ("data", "model", "lab")


Raw = dict[str, Any]
"""A part as a recipe's TOML would give it: tables by name."""


class Part(Options):
    """One sweep: steps after the common ones, a grid, and changes of data, model and common steps.

    `context` is added to all its measurements, as if it were a setting: `{criterion = "none"}` for a control. A part
    that is `like` an earlier one has the settings of that one, and its own on top.
    """

    name: str
    like: str | None = None
    about: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    lab: dict[str, Any] = Field(default_factory=dict)
    alone: bool = Field(False, description="without the common steps")
    step: tuple[dict[str, Any], ...] = ()
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    choice: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)

    def upon(self, base: Part) -> Part:
        """This part, with missing settings taken from another."""
        tables = ("data", "model", "lab", "set", "grid", "choice", "context")
        merged: dict[str, Any] = {name: {**getattr(base, name), **getattr(self, name)} for name in tables}
        merged |= {"step": self.step or base.step, "alone": self.alone or base.alone, "like": None}
        return self.model_copy(update=merged)


class PartScale(Options):
    """The changes of a scale in one part only."""

    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)


class Scale(Options):
    """How large a run: values set wherever they exist, axes cut, parts and steps left out. `about` describes it in a
    sentence.

    `needs` are keys that only `--set` can give, such as a file of weights.
    """

    about: str
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[str, ...] = ()
    without: tuple[str, ...] = Field((), description="labels of steps left out, in every part that has them")
    needs: tuple[str, ...] = ()
    part: dict[str, PartScale] = Field(default_factory=dict)
    beside: bool = Field(
        False, description="its section of a page stands beside the study's, in place of none"
    )


class TableColumn(Options):
    """A column of a table: a measured name, or a number derived from it.

    `variant` takes the value of that variant of the same trial. `over` divides that variant's value by this one
    (how many times less), `share` this one by that variant's. `of` takes a part of the measurement: a key of its
    spread (`variance`, `low`, `high`). `published` is the name of the published figure beside it.
    """

    name: str
    title: str = ""
    variant: str | None = None
    over: str | None = None
    share: str | None = None
    of: str | None = None
    published: str | None = None
    digits: int | None = Field(
        default=None, ge=0, description="decimals, where the usual four digits are too few"
    )

    @property
    def head(self) -> str:
        """The column's title."""
        return self.title or self.name.replace("_", " ")


class TableSpec(Options):
    """A table: one row for every combination of `rows` (keys of the context, or `layer`), a column each measure.

    `across` makes a column for every value of one more key. `where` keeps the measurements whose key has one of the
    values. Trials that fall into one cell (seeds) are averaged. The variants in `once` are the same in every trial, as
    the dense model is: they have one row, without settings.
    """

    title: str
    about: str = ""
    parts: tuple[str, ...] = ()
    rows: tuple[str, ...]
    columns: tuple[str | TableColumn, ...]
    across: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    once: tuple[str, ...] = ("dense",)

    def all_columns(self) -> list[TableColumn]:
        """The columns, each written out."""
        return [TableColumn(name=one) if isinstance(one, str) else one for one in self.columns]


class Picture(Options):
    """A trial whose models are drawn and printed: of `part`, the first that has all of `where`.

    `steps` are the labels of the steps after which it is drawn; `printed` of them, two, are printed side by side
    as print(model).
    """

    part: str
    where: dict[str, Any] = Field(default_factory=dict)
    steps: tuple[str, ...] = ()
    printed: tuple[str, ...] = ()
    name: str = Field("", description="put before the steps' labels, where several trials are drawn")


class Study(Options):
    """A whole study."""

    name: str = "study"
    title: str
    about: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    lab: dict[str, Any] = Field(default_factory=dict)
    step: tuple[dict[str, Any], ...] = ()
    part: tuple[Part, ...]
    names: dict[str, str] = Field(default_factory=dict, description="the names of settings in tables")
    scale: dict[str, Scale]
    table: tuple[TableSpec, ...] = ()
    picture: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = Field((), description="remarks for readers of the tables")

    @classmethod
    def parse(cls, text: str, name: str = "study") -> Study:
        """A study from TOML."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"study {name}: expected TOML, but {error}") from error
        try:
            study = cls.model_validate({"name": name, **raw})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"study {name}: {place}: {first['msg']}, got {first['input']!r}") from None
        own = tuple(study._own(part) for part in study.part)  # noqa: SLF001 - a constructor
        study = study.model_copy(update={"part": own})
        study._check()  # noqa: SLF001 - a constructor
        return study

    def _own(self, part: Part) -> Part:
        """A part with the settings of the part it is like."""
        if part.like is None:
            return part
        before = {one.name: one for one in self.part[: self.part.index(part)]}
        if part.like not in before:
            raise RecipeError(
                f"study {self.name}: part {part.name!r} is like {part.like!r}, which is not an earlier part: "
                f"{near(part.like, before)}"
            )
        return part.upon(self._own(before[part.like]))

    def _check(self) -> None:
        parts = [part.name for part in self.part]
        wanted = [name for table in self.table for name in table.parts]
        wanted += [picture.part for picture in self.picture]
        for scale in self.scale.values():
            wanted += [*scale.skip, *scale.part]
        for name in wanted:
            if name not in parts:
                raise RecipeError(f"study {self.name}: there is no part {name!r}: {near(name, parts)}")

    def at(self, scale: str) -> Scale:
        """A scale by its name."""
        if scale not in self.scale:
            raise UnknownNameError(f"study {self.name} has no scale {scale!r}: {near(scale, self.scale)}")
        return self.scale[scale]

    def recipes(
        self, scale: str, settings: Sequence[str] = (), data: str | None = None
    ) -> list[tuple[Part, Recipe]]:
        """Every part as a recipe with its grid, at a scale, with `--set` texts and `--data` applied.

        Args:
            scale: The scale, such as "smoke" or "full".
            settings: Texts of the form KEY=VALUE, as `--set` takes them.
            data: A dataset's name, its folder, or the folder that holds it by name.
        """
        size = self.at(scale)
        asked = dict(parse_setting(text) for text in settings)
        raws = [(part, self._raw(part)) for part in self.part]
        self._check_scale(scale, size, asked, [raw for _, raw in raws])
        found = []
        for part, raw in raws:
            if part.name not in size.skip:
                raw["step"] = [step for step in raw["step"] if step["label"] not in size.without]
                found.append((part, self._recipe(part, raw, size, asked, data)))
        return found

    def _check_scale(self, scale: str, size: Scale, asked: Mapping[str, object], raws: Sequence[Raw]) -> None:
        """Refuse settings that are missing, and steps, keys and axes that no part has."""
        for key in size.needs:
            if key not in asked:
                raise RecipeError(
                    f"study {self.name}: scale {scale} needs {key}: give it with --set {key}=VALUE"
                )
        labels = {label for raw in raws for label in _labels(raw)}
        for label in size.without:
            if label not in labels:
                raise RecipeError(
                    f"study {self.name}: scale {scale}: there is no step {label!r} to leave out: {near(label, labels)}"
                )
        known = {*_TABLES, *(labels - set(size.without))}
        for changes, where in ((size.set, f"scale {scale}"), (asked, "--set")):
            for key in changes:
                word = key.partition(".")[0]
                if word not in known:
                    raise RecipeError(
                        f"study {self.name}: {where}: nothing called {word!r} to set (in {key!r}): "
                        f"{near(word, sorted(known))}"
                    )
        axes = {axis for raw in raws for axis in [*raw["grid"], *raw["choice"]]}
        for axis in size.grid:
            if axis not in axes:
                raise RecipeError(
                    f"study {self.name}: scale {scale}: no part has the axis {axis!r}: {near(axis, sorted(axes))}"
                )

    def _recipe(
        self, part: Part, raw: Raw, size: Scale, asked: Mapping[str, object], data: str | None
    ) -> Recipe:
        """One part with the changes of the scale, of the data given and of `--set`, in this order."""
        own = size.part.get(part.name, PartScale())
        for axis, values in {**_shared(size.grid, raw), **own.grid}.items():
            _cut(raw, axis, values)
        source = f"{self.name}/{part.name}"
        for key, value in {**_shared_settings(size.set, raw), **own.set}.items():
            assign(raw, key, value, source)
        # A part that names its data keeps it: its counts depend on no data.
        if data is not None and "name" not in part.data and "data.name" not in part.set:
            raw["data"] = placed(raw["data"], data)
        for key, value in asked.items():
            if _has(raw, key):
                assign(raw, key, value, source)
            if key in raw["grid"]:  # what the command line gives stands, in every trial
                _cut(raw, key, [value])
        allowed = {name for key, value in asked.items() for name in code_in(key, value)}
        allowed |= {data} if data is not None else set()
        return Recipe.of(raw, source=source, allow_code=allowed)

    def _raw(self, part: Part) -> Raw:
        """One part as the plain data of a recipe."""
        steps = [*(() if part.alone else self.step), *part.step]
        raw: Raw = {name: {**getattr(self, name), **getattr(part, name)} for name in _TABLES}
        raw["name"] = f"{self.name}/{part.name}"
        raw["step"] = label_steps([dict(step) for step in steps], raw["name"])
        raw["grid"], raw["choice"] = dict(part.grid), dict(part.choice)
        for key, value in part.set.items():
            assign(raw, key, value, raw["name"])
        return raw


def _labels(raw: Raw) -> list[str]:
    return [step["label"] for step in raw["step"]]


def _has(raw: Raw, key: str) -> bool:
    """Whether a part has the setting of a dotted key."""
    return key.partition(".")[0] in (*_TABLES, *_labels(raw))


def _shared_settings(settings: Mapping[str, object], raw: Raw) -> Raw:
    return {key: value for key, value in settings.items() if _has(raw, key)}


def _shared(grid: Mapping[str, object], raw: Raw) -> Raw:
    return {axis: values for axis, values in grid.items() if axis in raw["grid"] or axis in raw["choice"]}


def _cut(raw: Raw, axis: str, values: object) -> None:
    """An axis with other values; an empty list removes it."""
    before = raw["grid"].get(axis)
    if isinstance(values, list) and not values:
        raw["grid"].pop(axis, None)
        raw["choice"].pop(axis, None)
    elif isinstance(before, dict):
        raw["grid"][axis] = {**before, "values": list(axis_values(axis, values, raw["name"]))}
    else:
        raw["grid"][axis] = list(axis_values(axis, values, raw["name"]))


def placed(data: Mapping[str, object], given: str) -> Raw:
    """The `[data]` table with `--data` applied: a dataset's name, its folder, or the folder that holds it by name.

    >>> placed({"name": "mnist", "limit": 100}, "cifar10")
    {'name': 'cifar10', 'limit': 100}
    """
    folder = Path(given).expanduser()
    name = str(data.get("name", "digits"))
    if not folder.is_dir() or given in ("digits", "mnist", "cifar10"):
        return {**data, "name": given}
    if name in ("mnist", "cifar10"):
        return {**data, "path": str(folder / name if (folder / name).is_dir() else folder)}
    return {**data, "name": str(folder)}
