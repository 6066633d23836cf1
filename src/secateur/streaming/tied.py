"""Tied tensors: one tensor under several names, of which a checkpoint holds one.

transformers writes a head that is tied to its embedding under the name of the embedding alone. A model on the meta
device may have lost the tie: moving it there makes two tensors of the one.

>>> net = nn.ModuleDict({"embed": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
>>> net["head"].weight = net["embed"].weight
>>> names_of(net)["head.weight"]
('embed.weight', 'head.weight')
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from secateur.core.parameters import parameters_of

__all__ = ["leading", "names_of", "with_ties"]


def with_ties(model: nn.Module) -> nn.Module:
    """The model, or a copy whose tensors are tied again where it has a `tie_weights`, as models of transformers do.

    Args:
        model: A model on the meta device; it is not changed.
    """
    tie = getattr(type(model), "tie_weights", None)
    if tie is None or not all(parameter.is_meta for parameter in model.parameters()):
        return model
    model = copy.deepcopy(model)
    tie(model)
    return model


def names_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every name of a parameter all names that it has.

    Args:
        model: The model.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in parameters_of(model).items():
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(found) for found in names.values() for name in found}


def leading(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """For every one of these names the first of them that means the same tensor.

    Args:
        model: The model.
        names: Names of parameters, of which several may mean one tensor.

    >>> net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    >>> net["b"].weight = net["a"].weight
    >>> leading(net, ["b.weight", "a.weight"])
    {'b.weight': 'b.weight', 'a.weight': 'b.weight'}
    """
    shared = names_of(model)
    first: dict[tuple[str, ...], str] = {}
    return {name: first.setdefault(shared.get(name, (name,)), name) for name in names}
