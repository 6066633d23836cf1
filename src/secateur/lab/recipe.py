'''`Recipe`: which data, which model, which steps, as frozen and validated values read from TOML.

>>> recipe = Recipe.parse("""
... [data]
... name = "digits"
... [model]
... name = "resnet20"
... [[step]]
... kind = "prune"
... budget = 0.5
... """)
>>> recipe.steps[0].budget, recipe.lab.seed
(0.5, 0)
>>> Recipe.parse("[model]\\nnaem = 'resnet20'")
Traceback (most recent call last):
...
secateur.errors.RecipeError: recipe: [model] has no key 'naem': did you mean 'name'?
'''

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationError, field_validator

from secateur.errors import OptionError, RecipeError, UnknownNameError, near
from secateur.lab import grid as grids
from secateur.lab import steps as step_kinds
from secateur.lab.old_words import present_names
from secateur.lab.outcomes import MOST_LEVELS, Table, problem_of
from secateur.lab.requirements import Requirement
from secateur.lab.settings import (
    assign,
    axes_of,
    axis_values,
    label_steps,
    names_given,
    parse_setting,
    settle,
)
from secateur.lab.steps import Options, Step
from secateur.lab.trust import AllowCode, code_in, refuse_code

__all__ = [
    "DataSpec",
    "LabSpec",
    "ModelSpec",
    "Recipe",
    "assign",
    "axis_values",
    "label_steps",
    "parse_setting",
    "schema",
]

T = TypeVar("T", bound=Options)
Normalise = str | tuple[tuple[float, ...], tuple[float, ...]]


class DataSpec(Options):
    """The `[data]` table: which images or other inputs, and how they are prepared."""

    name: str = Field(
        "digits",
        description="digits (embedded), mnist, cifar10, a folder, a Hugging Face dataset, or a function of your own, "
        "package.module:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="what a function of your own is called with"
    )
    size: int | tuple[int, int] | None = Field(
        None, description="resize to this; default: the model's input size"
    )
    channels: int | None = Field(None, description="1 or 3; default: the model's input channels")
    limit: int | None = Field(None, description="keep at most this number of images (or inputs) of each part")
    validation: float = Field(
        0.1, description="share of the training images held out, where there is no such split"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="draws the validation split; apart from lab.seed, so that seeds share a split",
    )
    path: str | None = Field(None, description="the folder of mnist or cifar10")
    normalise: Normalise | None = Field(None, description="data, imagenet, none, or [means, deviations]")

    def arguments(self) -> Table:
        """The arguments of `secateur.data.load` besides the name: the keys that were given."""
        given = {key: value for key, value in self if key != "name" and value not in (None, {})}
        if self.path is not None:
            given["path"] = os.path.expanduser(self.path)
        return given


class ModelSpec(Options):
    """The `[model]` table: which network, with which options and weights."""

    name: str = Field(
        "resnet20",
        description="one of ours, timm/NAME, torchvision/NAME, hf/NAME, ultralytics/NAME, package.module:function",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of the model")
    weights: str | None = Field(None, description="a .safetensors, .pt or .sct file to start from")


class LabSpec(Options):
    """The `[lab]` table: seed, device, threads."""

    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    threads: int = Field(
        0, ge=0, description="torch's threads; 0: every core this process may use, shared by --jobs"
    )


class Recipe(Options):
    """A recipe.

    `steps` are the `[[step]]` tables in order. `grid` has axes and their values, `when` the conditions of axes.
    `choice` makes an axis of several settings at once: each of its values is the name of a table of settings.
    """

    name: str = "recipe"
    data: DataSpec = DataSpec.model_validate({})
    model: ModelSpec = ModelSpec.model_validate({})
    lab: LabSpec = LabSpec.model_validate({})
    teacher: ModelSpec | None = Field(
        None, description="another network, which steps are distilled from with `teacher = 'teacher'`"
    )
    require: tuple[str, ...] = Field(
        (),
        description="limits that the measurements must hold: 'accuracy >= 0.97', 'small.file_bytes <= 40000'",
    )
    steps: tuple[SerializeAsAny[Step], ...] = Field(alias="step")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    when: dict[str, dict[str, tuple[Any, ...]]] = Field(default_factory=dict)
    choice: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    _allowed_code: bool | frozenset[str] = PrivateAttr(default=frozenset())

    @field_validator("require")
    @classmethod
    def _limits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for text in value:
                Requirement.of(text)
        except OptionError as error:
            raise ValueError(str(error).removeprefix("require: ")) from None
        return value

    @field_validator("steps")
    @classmethod
    def _some(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        if not value:
            raise ValueError("a recipe needs at least one [[step]]")
        return value

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        settings: Sequence[str] = (),
        grid: Sequence[str] = (),
        *,
        allow_code: AllowCode = False,
    ) -> Recipe:
        """A recipe from a file.

        Args:
            path: A TOML file.
            settings: `KEY=VALUE` texts, as `--set` takes them.
            grid: `KEY=VALUES` texts, as `--grid` takes them.
            allow_code: As in `Recipe.of`.

        Returns:
            The recipe, validated.

        Raises:
            RecipeError: There is no such file, or it is no valid recipe.
        """
        where = Path(path)
        try:
            text = where.read_text(encoding="utf-8")
        except FileNotFoundError:
            others = [item.name for item in where.parent.glob("*.toml")] if where.parent.is_dir() else []
            hint = near(where.name, others) if others else f"there is no .toml file in {where.parent}"
            raise RecipeError(f"{path}: no such recipe; {hint}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path}: expected a recipe in TOML, but it cannot be read ({error})"
            ) from error
        return cls.parse(text, settings, grid, source=where.name, name=where.stem, allow_code=allow_code)

    @classmethod
    def parse(
        cls,
        text: str,
        settings: Sequence[str] = (),
        grid: Sequence[str] = (),
        *,
        source: str = "recipe",
        name: str = "recipe",
        allow_code: AllowCode = False,
    ) -> Recipe:
        """A recipe from TOML text.

        Args:
            text: The TOML.
            settings: `KEY=VALUE` texts, as `--set` takes them.
            grid: `KEY=VALUES` texts, as `--grid` takes them.
            source: What the text is called in messages.
            name: The recipe's name where the text has none.
            allow_code: As in `Recipe.of`.

        Returns:
            The recipe, validated.

        Raises:
            RecipeError: It is no valid recipe.
        """
        try:
            raw = tomllib.loads(text)
        except ValueError as error:  # of TOML, and of numbers with thousands of digits
            raise RecipeError(f"{source}: expected TOML, but {error}") from error
        except RecursionError as error:
            raise RecipeError(
                f"{source}: expected TOML with at most {MOST_LEVELS} tables or lists in one another, got more"
            ) from error
        raw.setdefault("name", name)
        return cls.of(raw, settings, grid, source=source, allow_code=allow_code)

    @classmethod
    def of(
        cls,
        raw: Mapping[str, Any],
        settings: Sequence[str] = (),
        grid: Sequence[str] = (),
        *,
        source: str = "recipe",
        allow_code: AllowCode = False,
    ) -> Recipe:
        """A recipe from plain data, as TOML or JSON have it.

        Args:
            raw: The tables.
            settings: `KEY=VALUE` texts, as `--set` takes them.
            grid: `KEY=VALUES` texts, as `--grid` takes them.
            source: What the recipe is called in messages.
            allow_code: Whether models, data, judgements and criteria named `package.module:function` may be imported
                and called: True, False, or the names that may. Those that `settings` and `grid` name may, as the user
                gave them.

        Returns:
            The recipe, validated.

        Raises:
            RecipeError: It is no valid recipe, or names code that is not allowed.
        """
        problem = problem_of(dict(raw))
        if problem:
            raise RecipeError(f"{source}: expected words, numbers, lists and tables alone, got {problem}")
        whole = copy.deepcopy(dict(raw))
        for name in ("data", "model", "lab", "teacher", "grid", "when", "choice"):
            if (
                name in whole
                and not isinstance(whole[name], dict)
                and (name, whole[name]) != ("teacher", None)
            ):
                raise RecipeError(f"{source}: expected a table [{name}], got {whole[name]!r}")
        _known_keys(cls, whole, source, "a recipe", aliases={"steps": "step"})
        whole["step"] = label_steps(whole.get("step", []), source)
        if whole.get("teacher") is not None and any(table["label"] == "teacher" for table in whole["step"]):
            raise RecipeError(
                f"{source}: 'teacher' is both a table and the label of a step; give the step another label"
            )
        now = present_names(whole["step"], source)
        settings, grid = [now.text(item) for item in settings], [now.grid_text(item) for item in grid]
        choice = whole["choice"] = now.choice(grids.choices(whole.get("choice", {}), source))
        axes, when = axes_of(whole, choice, grid, now)
        for item in settings:
            settle(whole, axes, when, grid, item, source)
        whole["grid"] = {key: axis_values(key, values, source) for key, values in axes.items()}
        whole["when"] = grids.conditions(when, whole["grid"], source)
        # A value that cannot be set is refused now, not when its trial begins.
        for key, values in whole["grid"].items():
            for value in values if key in choice else values[:1]:
                assign(copy.deepcopy(whole), key, value, source)
        allowed = allow_code is True or names_given(settings, grid) | frozenset(allow_code or ())
        refuse_code(whole, allowed, source)
        whole["step"] = tuple(_step(table, source, index) for index, table in enumerate(whole["step"]))
        recipe = _validate(cls, whole, source)
        recipe._allowed_code = allowed  # noqa: SLF001 - a constructor
        return recipe

    @property
    def allowed_code(self) -> AllowCode:
        """What is named `package.module:function` and may be called: all (True), or these names."""
        return self._allowed_code

    def allowing(self, *names: str | None) -> Recipe:
        """The same recipe, in which these names of code are allowed besides; None is no name."""
        recipe = self.model_copy()
        if not isinstance(self._allowed_code, bool):
            recipe._allowed_code = self._allowed_code | {name for name in names if name is not None}  # noqa: SLF001
        return recipe

    def plain(self) -> Table:
        """The recipe as plain data, with every option, given or default; `Recipe.of` reads it."""
        whole = self.model_dump(mode="json", by_alias=True, exclude={"steps"})
        whole["step"] = [{"kind": step.kind(), **step.model_dump(mode="json")} for step in self.steps]
        for name in ("when", "choice", "teacher", "require"):
            if not whole[name]:
                del whole[name]
        return whole

    def refuse(self, kinds: Sequence[str], why: str) -> None:
        """Raise if there is a step of one of these kinds.

        Args:
            kinds: The kinds of step that are refused.
            why: The end of the error message.
        """
        for step in self.steps:
            if step.kind() in kinds:
                raise RecipeError(f"{self.name}: step {step.label!r}: {why}")

    def trials(self) -> list[tuple[Table, Recipe]]:
        """Settings, and the recipe without a grid, of every combination of the grid's values, the last axis fastest."""
        combinations = grids.combinations(self.grid, self.when)
        if combinations == [{}]:
            return [({}, self)]
        return [(settings, self.with_settings(settings)) for settings in combinations]

    def with_settings(self, settings: Mapping[str, object]) -> Recipe:
        """The same recipe without its grid and with these values, by their keys."""
        whole = self.plain()
        whole["grid"] = {}
        whole.pop("when", None)
        now = present_names(whole["step"], self.name)
        for key, value in settings.items():
            assign(whole, now.key(key), value, self.name)
        whole.pop("choice", None)
        # The values of a grid were checked when it was read; others come from the caller.
        allowed = self._allowed_code
        if not isinstance(allowed, bool):
            allowed |= {name for key, value in settings.items() for name in code_in(key, value)}
        return Recipe.of(whole, source=self.name, allow_code=allowed)


def _step(table: Table, source: str, index: int) -> Step:
    kind = table["kind"]
    try:
        cls = step_kinds.registry.get(kind)
    except UnknownNameError:
        known = step_kinds.registry.names()
        raise RecipeError(f"{source}: step {index + 1}: unknown kind {kind!r}: {near(kind, known)}") from None
    options = {key: value for key, value in table.items() if key != "kind"}
    where = f"step {table['label']!r}" if table["label"] != kind else f"step {kind!r}"
    _known_keys(cls, options, source, where)
    return _validate(cls, options, f"{source}: {where}")


def _known_keys(
    cls: type[Options],
    table: Mapping[str, object],
    source: str,
    where: str,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Refuse a key that the table does not have, with the nearest known one."""
    known = [(aliases or {}).get(name, name) for name in cls.model_fields]
    for key in table:
        if key not in known:
            raise RecipeError(f"{source}: {where} has no key {key!r}: {near(key, known)}")


def _validate(cls: type[T], table: Mapping[str, object], source: str) -> T:
    """Validate; the error is one sentence about the first thing that is wrong."""
    try:
        return cls.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier()]
        if first["type"] == "extra_forbidden":
            where, key = (place[0] if len(place) > 1 else "recipe"), place[-1]
            inner: Any = cls.model_fields[place[0]].annotation if len(place) > 1 else cls
            # Of "a table or none", the table.
            inner = next((kind for kind in get_args(inner) if kind is not type(None)), inner)
            raise RecipeError(
                f"{source}: [{where}] has no key {key!r}: {near(key, inner.model_fields)}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        got = f", got {first['input']!r}" if first["type"] not in ("missing", "value_error") else ""
        raise RecipeError(f"{source}: {'.'.join(place) or 'recipe'}: {message}{got}") from None


def schema() -> Table:
    """The JSON Schema of recipes, for editors: `secateur schema > recipe.schema.json`.

    >>> sorted(schema()["properties"])
    ['choice', 'data', 'grid', 'lab', 'model', 'name', 'require', 'step', 'teacher', 'when']
    """
    definitions: Table = {}

    def table(cls: type[Options]) -> Table:
        found = cls.model_json_schema()
        definitions.update(found.pop("$defs", {}))
        return found

    kinds = []
    for kind in step_kinds.registry.names():
        one = table(step_kinds.registry.get(kind))
        one["properties"] = {"kind": {"const": kind}, **one.get("properties", {})}
        one["required"] = ["kind", *one.get("required", [])]
        kinds.append(one)
    tables: Iterable[tuple[str, type[Options]]] = (
        ("data", DataSpec),
        ("model", ModelSpec),
        ("lab", LabSpec),
        ("teacher", ModelSpec),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "secateur recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["step"],
        "properties": {
            "name": {"type": "string"},
            **{name: table(cls) for name, cls in tables},
            "require": {
                "type": "array",
                "items": {"type": "string"},
                "description": "limits that the measurements must hold: 'accuracy >= 0.97'",
            },
            "step": {"type": "array", "minItems": 1, "items": {"oneOf": kinds}},
            "grid": {
                "type": "object",
                "description": "LABEL.option = a list of values, 'first:last:step', or {values, when}",
            },
            "choice": {
                "type": "object",
                "description": "AXIS = {NAME = {LABEL.option = value}}: an axis whose values set several keys",
            },
            "when": {
                "type": "object",
                "description": "AXIS = {OTHER_AXIS = values}: the axis takes part only with these values of the other",
            },
        },
        "$defs": definitions,
    }
