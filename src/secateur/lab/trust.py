"""`refuse_code`: refuse code that a recipe or a store read from a file names.

A model, data, an `evaluate`, a criterion, a granularity or a budget named `package.module:function` is imported and
called. The user may name one on the command line or in Python; one that a recipe or a store names (`[model]`,
`[teacher]`, `[data]`, any option of a step that is written so, a grid or a choice of these) is refused unless the user
allows it with `--allow-code` (`allow_code=True`). Whether code of the model hub is trusted (`trust_remote_code`) is
never taken from a file.

>>> refuse_code({"model": {"name": "resnet20"}}, frozenset(), "recipe")
>>> refuse_code({"model": {"name": "os:system"}}, frozenset(), "recipe")
Traceback (most recent call last):
secateur.errors.RecipeError: recipe: model.name is 'os:system': this would import os and call system, and a file may ...
>>> refuse_code({"model": {"name": "os:system"}}, frozenset({"os:system"}), "recipe")
>>> refuse_code({"step": [{"kind": "measure", "evaluate": "os:system"}]}, frozenset(), "recipe")
Traceback (most recent call last):
secateur.errors.RecipeError: recipe: measure.evaluate is 'os:system': this would import os and call system, and a ...
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from secateur.errors import RecipeError
from secateur.lab.outcomes import Table

__all__ = ["AllowCode", "code_in", "named_in", "refuse_code"]

AllowCode = bool | Collection[str]
"""Whether what is named `package.module:function` may be imported and called: True, False, or the names that may."""

_NAMES = ("model.name", "teacher.name", "data.name")

# Options of steps that are never imported: patterns of layers are written `type:Conv2d`.
_PATTERNS = ("only", "skip", "parameters", "kind", "label", "note")
_CODE = re.compile(r"\s*[^\W\d][\w.]*\s*:\s*[^\W\d][\w.]*\s*")

# Options of other libraries' models by which a file could have code imported, a pickle read, or files written
# elsewhere. One that begins with an underscore is refused as well: transformers takes some for its own attributes.
_REFUSED = (
    "trust_remote_code",
    "code_revision",
    "checkpoint_path",
    "pretrained_cfg",  # of timm: may name a file of weights, a hub's, or a loader of another format
    "pretrained_cfg_overlay",
    "custom_load",
    "attn_implementation",  # may name a kernel on the hub, which is code
    "experts_implementation",
    "use_kernels",
    "allow_all_kernels",
    "kernel_config",
    "weights_only",
    "adapter_kwargs",
    "cache_dir",
    "offload_folder",
)


def code_in(key: str, value: object) -> frozenset[str]:
    """The names of code that a setting gives: of a model, a teacher, the data, a judgement, a plug-in of a step.

    In the options of a step every text of the form `module:name` counts, at any depth and whatever the option is
    called, since a plug-in may have options that are plug-ins; patterns of layers do not.

    Args:
        key: The setting's dotted key.
        value: Its value.

    >>> sorted(code_in("prune.criterion", {"name": "mine:Score"})), sorted(code_in("prune.skip", ["type:Conv2d"]))
    (['mine:Score'], [])
    >>> sorted(code_in("data.name", "mine:rows")), sorted(code_in("measure2.evaluate", "mine"))
    (['mine:rows'], ['mine'])
    """
    if key in _NAMES or key.endswith(".evaluate"):
        return frozenset([str(value)])
    table, _, rest = key.partition(".")
    if not rest or table in ("data", "model", "lab"):  # a step may be labelled teacher, but not these
        return frozenset()
    return named_in(value, key.rpartition(".")[2])


def named_in(value: object, key: str = "") -> frozenset[str]:
    """Every text `module:name` in an option of a step, but for patterns of layers.

    Args:
        value: The option's value.
        key: The option.

    >>> sorted(named_in({"name": "overall", "only": "type:Linear", "more": [{"name": "a.b:C"}]}))
    ['a.b:C']
    """
    if key in _PATTERNS:
        return frozenset()
    if isinstance(value, str):
        return frozenset([value]) if _CODE.fullmatch(value) else frozenset()
    found: frozenset[str] = frozenset()
    if isinstance(value, Mapping):
        for inner, item in value.items():
            found |= named_in(item, str(inner))
    elif isinstance(value, list | tuple):
        for item in value:
            found |= named_in(item, key)
    return found


def refuse_code(whole: Table, allowed: bool | frozenset[str], source: str) -> None:
    """Refuse a recipe that names code which is not allowed, or options that would run code from outside.

    Args:
        whole: The recipe as plain data, with its grid and choices.
        allowed: True, or the names that may be imported and called.
        source: What the recipe is called in messages.

    Raises:
        RecipeError: The recipe names such code or options.
    """
    for key, name in _names(whole):
        if (
            isinstance(name, str)
            and _runs_code(key, name)
            and allowed is not True
            and name not in (allowed or ())
        ):
            module, _, function = name.partition(":")
            raise RecipeError(
                f"{source}: {key} is {name!r}: this would import {module} and call {function}, and a file "
                "may name code only where you allow it; if you trust this file, say --allow-code (in Python: "
                "allow_code=True)"
            )
    for key, options in _options(whole):
        found = next((word for word in _words(options) if word in _REFUSED or word.startswith("_")), None)
        if found is not None:
            raise RecipeError(
                f"{source}: {key} has {found!r}, which a recipe may not set, since it can run code that a file names; "
                "leave it out (weights are given as model.weights), or build the model in Python"
            )


def _runs_code(key: str, name: str) -> bool:
    if key.endswith(".evaluate"):
        return True
    if ":" not in name:
        return False
    if key not in _NAMES:
        return True
    from secateur import data, models  # they import torch, which most recipes need not for this check

    return data.runs_code(name) if key == "data.name" else models.runs_code(name)


def _settings(whole: Table) -> Iterator[tuple[str, object]]:
    """Every setting by its dotted key that a grid or a choice of the recipe may make."""
    grid = whole.get("grid")
    for key, values in grid.items() if isinstance(grid, Mapping) else ():
        for value in values if isinstance(values, list | tuple) else ():
            yield str(key), value
    choice = whole.get("choice")
    for named in choice.values() if isinstance(choice, Mapping) else ():
        for settings in named.values() if isinstance(named, Mapping) else ():
            if isinstance(settings, Mapping):
                yield from ((str(key), value) for key, value in settings.items())


def _names(whole: Table) -> Iterator[tuple[str, object]]:
    """Everything in the recipe that can name code, with its key."""
    for key in _NAMES:
        table = whole.get(key.partition(".")[0])
        if isinstance(table, Mapping):
            yield key, table.get("name")
    steps = whole.get("step")
    for step in steps if isinstance(steps, list | tuple) else ():
        if not isinstance(step, Mapping):
            continue
        label = step.get("label") or step.get("kind")
        if step.get("evaluate") is not None:
            yield f"{label}.evaluate", step["evaluate"]
        for option, value in step.items():
            yield from ((f"{label}.{option}", name) for name in sorted(named_in(value, str(option))))
    for key, value in _settings(whole):
        if key in _NAMES or key.endswith(".evaluate"):
            yield key, value
        else:
            yield from ((key, name) for name in sorted(code_in(key, value)))


def _options(whole: Table) -> Iterator[tuple[str, object]]:
    """All that may become options of a model, with its key."""
    for word in ("model", "teacher"):
        table = whole.get(word)
        if isinstance(table, Mapping):
            yield f"{word}.options", table.get("options")
    for key, value in _settings(whole):
        table, _, rest = key.partition(".")
        if table in ("model", "teacher") and rest.startswith("options"):
            yield key, [*({word: None} for word in rest.split(".")), value]


def _words(value: object, depth: int = 0) -> Iterator[str]:
    """The keys of tables in tables."""
    if depth > 32 or not isinstance(value, Mapping | list | tuple):
        return
    for item in value:
        if isinstance(value, Mapping):
            yield str(item)
            yield from _words(value[item], depth + 1)
        else:
            yield from _words(item, depth + 1)
