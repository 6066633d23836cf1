"""Which attributes a plan may set, and how: widths of modules, and the fields of a configuration.

A plan may come from an untrusted file. It can decrease integers that a module already holds under a public name, and
nothing else: no name with an underscore in front, no dotted path, no class, method, tensor or module. Of a
configuration it can set the fields that the configuration itself has. Layers of torch have a closed list of widths.

>>> layer = nn.Linear(4, 3)
>>> check_attribute("fc", layer, "out_features", 2)
>>> check_attribute("fc", layer, "__class__.forward", None)
Traceback (most recent call last):
...
secateur.errors.PlanError: the plan sets '__class__.forward' of 'fc', which is no width of Linear; ...
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from secateur.core.json_text import is_count
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import PlanError

__all__ = ["AttributeValue", "check_attribute", "cut_lists", "set_attributes_", "set_config_field"]

AttributeValue: TypeAlias = "int | tuple[int, ...] | dict[str, object]"

# The widths of torch's own layers.
_TORCH_WIDTHS = frozenset(
    {
        "in_channels",
        "out_channels",
        "groups",
        "in_features",
        "out_features",
        "in1_features",
        "in2_features",
        "num_features",
        "num_channels",
        "num_groups",
        "normalized_shape",
        "num_embeddings",
        "embedding_dim",
        "num_parameters",
        "input_size",
        "hidden_size",
        "proj_size",
        "embed_dim",
        "kdim",
        "vdim",
        "num_heads",
        "head_dim",
        "d_model",
        "nhead",
    }
)
_CONFIG = "config."
_LONGEST = 1 << 16  # numbers in a list of rotary factors
_ROTARY = frozenset(
    {
        "rope_theta",
        "partial_rotary_factor",
        "rope_type",
        "short_factor",
        "long_factor",
        "factor",
        "attention_factor",
        "original_max_position_embeddings",
    }
)


def check_attribute(path: str, module: nn.Module, key: str, value: object) -> None:
    """Raise a `PlanError` unless a plan may set this attribute to this value.

    Args:
        path: The module's name in the model.
        module: The module.
        key: The attribute's name; `config.FIELD` for a field of the model's configuration.
        value: The value to set.
    """
    if not path and key.startswith(_CONFIG):
        _check_field(module, key, value)
        return
    old = vars(module).get(key) if _is_public(key) else None
    if isinstance(old, int) and not isinstance(old, bool):
        fits = is_count(value, old)
    elif isinstance(old, tuple) and old and all(map(is_count, old)):
        fits = isinstance(value, tuple) and len(value) == len(old) and all(map(is_count, value, old))
    else:
        old = None
        fits = False
    if old is None or (_is_torchs(module) and key not in _TORCH_WIDTHS):
        raise PlanError(
            f"the plan sets {_shown(key)} of {_shown(path)}, which is no width of {type(module).__name__}; "
            "a plan may only make widths smaller that the module has"
        )
    if not fits:
        raise PlanError(
            f"the plan sets {_shown(key)} of {_shown(path)} to {_shown(value)}: expected a width of at most {old}"
        )


def set_attributes_(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    wanted: _Wanted,
    layers: Mapping[int, Sequence[int] | None] | None = None,
) -> None:
    """Set attributes that have been checked, in place.

    The fields of a configuration are set on a copy of it, which takes its place in every module of the model: the
    object itself may serve other models too. Where a field counted layers of which some are removed, the lists beside
    it with one entry a layer (`layer_types`) keep the entries of the remaining ones.

    Args:
        model: The model.
        modules: Its modules by name.
        wanted: The attributes by module.
        layers: By the number of layers of a container the positions of those that remain.
    """
    fields = {key: value for key, value in wanted.get("", {}).items() if key.startswith(_CONFIG)}
    if fields:
        config = _own_config(model)
        for key, value in fields.items():
            try:
                _cut_lists(config, key.removeprefix(_CONFIG), layers or {})
                set_config_field(config, key.removeprefix(_CONFIG), value)
            except Exception as error:  # configurations check their fields, each family in its own way
                raise_if_out_of_memory(error)
                raise PlanError(
                    f"the plan sets {_shown(key)}, which the configuration refuses: {str(error)[:200]}"
                ) from error
    for path, values in wanted.items():
        for key, value in values.items():
            if key not in fields:
                vars(modules[path])[key] = value


def set_config_field(config: object, name: str, value: object) -> None:
    """Set a field of a configuration, `a`, or `a.b` of the configuration `a` inside it."""
    *path, leaf = name.split(".")
    for part in path:
        config = vars(config)[part]
    setattr(config, leaf, value)


def _cut_lists(config: object, name: str, layers: Mapping[int, Sequence[int] | None]) -> None:
    """Cut the lists beside a field that counts layers, where it counts layers of which some are removed."""
    *path, leaf = name.split(".")
    for part in path:
        config = vars(config)[part]
    before = vars(config)[leaf]
    kept = layers.get(before) if isinstance(before, int) else None
    if kept is not None:
        cut_lists(config, before, kept)


def cut_lists(config: object, length: int, kept: Sequence[int]) -> None:
    """Cut lists of a configuration that have one entry a layer to those of the remaining layers.

    Args:
        config: The configuration; it is changed.
        length: The number of layers before.
        kept: The positions of those that remain.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == length and not name.startswith("_"):
            vars(config)[name] = [value[place] for place in kept]


_Wanted: TypeAlias = "Mapping[str, Mapping[str, AttributeValue]]"


def _check_field(model: nn.Module, key: str, value: object) -> None:
    *path, leaf = key.split(".")
    owner: object = model
    for part in path:
        owner = vars(owner).get(part) if _is_public(part) else None
        if not _is_config(owner):
            raise PlanError(
                f"the plan sets {_shown(key)}, and {type(model).__name__} has no such configuration"
            )
    fields = vars(owner)
    old = fields.get(leaf)
    if not _is_public(leaf):
        fits = False
    elif leaf == "head_dim" and old is None:
        fits = is_count(value, 1 << 20)
    elif leaf == "rope_parameters":
        fits = isinstance(old, dict) and _is_rotary(value)
    else:
        fits = isinstance(old, int) and not isinstance(old, bool) and is_count(value, old)
    if not fits:
        raise PlanError(
            f"the plan sets {_shown(key)} to {_shown(value)}: expected a width that the configuration has, made "
            "smaller"
        )


def _is_rotary(value: object) -> bool:
    """Whether a value describes rotary frequencies as a shrunk model's configuration does."""
    if not isinstance(value, dict) or not set(value) <= _ROTARY or value.get("rope_type") != "longrope":
        return False
    for name, each in value.items():
        numbers = each if name in ("short_factor", "long_factor") else [each]
        if name == "rope_type":
            continue
        if not isinstance(numbers, list) or len(numbers) > _LONGEST or not all(map(_is_number, numbers)):
            return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"


def _is_config(value: object) -> bool:
    """Whether a value is a configuration: a plain object with a `to_dict`."""
    return (
        not isinstance(value, (type, nn.Module))
        and callable(getattr(type(value), "to_dict", None))
        and hasattr(value, "__dict__")
    )


def _own_config(model: nn.Module) -> object:
    """Give the model a copy of its configuration, in every module that holds it; returns the copy."""
    old = vars(model)["config"]
    new = copy.deepcopy(old)
    copies = dict(_pairs(old, new))
    for module in model.modules():
        for name, value in vars(module).items():
            if id(value) in copies:
                vars(module)[name] = copies[id(value)]
    return new


def _pairs(old: object, new: object) -> list[tuple[int, object]]:
    """The identity of a configuration and of those inside it, with the copy of each."""
    found = [(id(old), new)]
    for name, value in vars(old).items():
        if _is_config(value):
            found += _pairs(value, vars(new)[name])
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
