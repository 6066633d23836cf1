"""Widths that differ from layer to layer as a Hugging Face configuration: `per_layer_config`, and fewer layers.

transformers from 5.20 on reads `per_layer_config`: by layer, the fields that have another value there. Those fields are
found by trying, as in `structure.hf.configs`.

>>> changed_sizes({"h.1.fc.weight": (8, 4)}, {"h.1.fc.weight": (6, 4)})
{1: {(8, 6)}}
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.structure.hf.configs import describes

__all__ = ["built", "changed_sizes", "following_widths", "per_layer", "with_fewer_layers"]

Shapes = Mapping[str, tuple[int, ...]]


def built(kind: type[nn.Module], config: object) -> nn.Module:
    """A model without values, built from a configuration.

    Args:
        kind: The class of the model.
        config: The configuration; a copy of it is used.
    """
    with torch.device("meta"):
        return kind(copy.deepcopy(config))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def changed_sizes(before: Shapes, after: Shapes) -> dict[int, set[tuple[int, int]]]:
    """By layer, the pairs (size before, size after) of the axes that changed.

    Args:
        before: Shapes by name, of the original.
        after: Shapes by name, of the smaller model.
    """
    found: dict[int, set[tuple[int, int]]] = {}
    for name, shape in after.items():
        layer = re.search(r"\.(\d+)\.", name)
        if layer and len(before.get(name, ())) == len(shape):
            pairs = {(old, new) for old, new in zip(before[name], shape) if old != new}
            if pairs:
                found.setdefault(int(layer[1]), set()).update(pairs)
    return found


def per_layer(kind: type[nn.Module], model: nn.Module, config: Any) -> object | None:
    """The configuration with `per_layer_config`, where the installed transformers reads it and it says everything.

    Args:
        kind: The class that is built from it.
        model: The model to describe.
        config: The configuration to start from.
    """
    if not hasattr(type(config), "is_heterogeneous"):
        return None
    changes = changed_sizes(shapes_of(built(kind, config)), shapes_of(model))
    found: dict[int, dict[str, int]] = {}
    for name, value in list(vars(config).items()):
        if not isinstance(value, int) or isinstance(value, bool) or value < 2 or name in _NOT_BY_LAYER:
            continue
        mine = {
            layer: {name: value * new // old}
            for layer, pairs in changes.items()
            for old, new in sorted(pairs)
            if old % value == 0 and (value * new) % old == 0 and (value == old or "head" in name)
        }
        trial = {layer: {**found.get(layer, {}), **mine.get(layer, {})} for layer in {*found, *mine}}
        if mine and _wrong(kind, model, config, trial) < _wrong(kind, model, config, found):
            found = trial
    made = copy.deepcopy(config)
    try:
        made.per_layer_config = found
        return made if found and describes(model, made) else None
    except Exception as error:  # each family refuses differing layers with its own error
        raise_if_out_of_memory(error)
        return None


_NOT_BY_LAYER = ("hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings")


def _wrong(kind: type[nn.Module], model: nn.Module, config: Any, by_layer: dict[int, dict[str, int]]) -> int:
    """The number of tensors whose shape differs from the model's."""
    made = copy.deepcopy(config)
    try:
        if by_layer:
            made.per_layer_config = copy.deepcopy(by_layer)
        have = shapes_of(built(kind, made))
    except Exception as error:
        raise_if_out_of_memory(error)
        return 1 << 30
    return sum(have.get(name) != shape for name, shape in shapes_of(model).items())


def with_fewer_layers(model: nn.Module, config: Any) -> Any:
    """The configuration with as many layers as the model has, where whole layers were left out.

    Args:
        model: The model.
        config: Its configuration, which may still count the layers it had.
    """
    total = getattr(config, "num_hidden_layers", None)
    kept = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and module and len(module) < (total or 0)
    ]
    whole = any(isinstance(module, nn.ModuleList) and len(module) == total for module in model.modules())
    if not isinstance(total, int) or len(kept) != 1 or whole:
        return config
    made, layers = copy.deepcopy(config), kept[0]
    for name, value in vars(made).items():
        if isinstance(value, list) and len(value) == total:  # layer_types and its like: one entry a layer
            first = {index: getattr(layer, "layer_idx", None) for index, layer in enumerate(layers)}
            places = [index if place is None else place for index, place in first.items()]
            setattr(made, name, [value[place] for place in places])
    made.num_hidden_layers = len(layers)
    return made


def following_widths(
    kind: type[nn.Module], config: Any, attributes: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Of numbers that modules keep, those that a width of the configuration decides.

    They are found by trying: with one field twice as large, tensors have other shapes and the number is another.

    Args:
        kind: The class that is built from it.
        config: The configuration.
        attributes: The numbers, each as the path of its module and its name.
    """
    found: set[tuple[str, str]] = set()
    if not attributes:
        return found
    base = built(kind, config)
    modules, shapes = dict(base.named_modules()), shapes_of(base)
    names = {name for _, name in attributes}
    for path, field in sorted(_fields(config), key=lambda each: each[1] not in names):
        made = copy.deepcopy(config)
        owner = made
        for part in path:
            owner = getattr(owner, part)
        try:
            setattr(owner, field, 2 * getattr(owner, field))
            wider = built(kind, made)
        except Exception as error:  # each family refuses sizes that do not fit with its own error
            raise_if_out_of_memory(error)
            continue
        if shapes_of(wider) != shapes:
            others = dict(wider.named_modules())
            found |= {
                (at, name)
                for at, name in attributes
                if at in others and getattr(modules[at], name, None) != getattr(others[at], name, None)
            }
        if len(found) == len(attributes):
            break
    return found


_NO_WIDTHS = ("vocab_size", "num_hidden_layers", "num_layers", "n_layer", "max_position_embeddings")


def _fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The fields of a configuration that may be widths, with the path of the part that they are in."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _fields(value, (*path, name))
            continue
        size = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if size and name not in _NO_WIDTHS and not name.endswith("_id") and not name.startswith("_"):
            yield path, name
