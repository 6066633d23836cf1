"""`say_left_alone`: name the weights that belong to no layer, as those of an LSTM, and so take no part in a call.

>>> from secateur.core.targets import select
>>> model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.GRUCell(2, 4, bias=False))
>>> left_alone(model, select(model))
(0.9, ('1.weight_ih', '1.weight_hh'))
>>> patterns_for(model, ("1.weight_ih", "1.weight_hh"))
['*weight_[ih]h*']
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from torch import nn

from secateur.core.parameters import parameters_of
from secateur.core.targets import Pattern, Target, matches, patterns_of, select
from secateur.core.user_warnings import warn
from secateur.core.wrapped_layers import adapters_of
from secateur.errors import NothingToDoError

__all__ = ["left_alone", "patterns_for", "say_left_alone"]

_WORTH_SAYING = 0.05
_SHOWN = 4


def say_left_alone(
    who: str,
    model: nn.Module,
    targets: Sequence[Target],
    skip: Pattern | Sequence[Pattern] | None = None,
    how: str = "",
    among: Collection[str] | None = None,
) -> None:
    """Warn where a twentieth of the weights or more belongs to no layer and takes no part.

    Args:
        who: The verb, and what it makes of the weights that take part.
        model: The model.
        targets: The weights that take part.
        skip: Patterns of the layers that the user left out.
        how: Where `parameters` are given; the list of them follows.
        among: The parameters that can take part; None means all.
    """
    share, names = left_alone(model, targets, skip, among)
    if share < _WORTH_SAYING:
        return
    found = patterns_for(model, names)
    listed = ", ".join(f'"{each}"' for each in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    warn(
        f"{who}: {share:.0%} of the weights take no part, as {names[0]!r} is of no convolution, linear or embedding "
        f"layer; to take them in: {how}parameters=[{listed}]" + (")" * how.count("("))
    )


def left_alone(
    model: nn.Module,
    targets: Sequence[Target],
    skip: Pattern | Sequence[Pattern] | None = None,
    among: Collection[str] | None = None,
) -> tuple[float, tuple[str, ...]]:
    """The share of a model's weights that belong to no layer and are not among the targets, and their names.

    Weights that a parametrization computes others from do not count: those have a message of their own. Nor do adapters
    that were added to a layer, as LoRA's.

    Args:
        model: The model.
        targets: The weights that take part.
        skip: Patterns of what was left out on purpose.
        among: The parameters that count; None means all.
    """
    try:
        layers = {target.name for target in select(model)}
    except NothingToDoError:
        layers = set()
    taken, modules, patterns = (
        {target.name for target in targets},
        dict(model.named_modules()),
        patterns_of(skip),
    )
    named, adapters = dict(model.named_parameters()), adapters_of(model)
    whole = sum(value.numel() for value in named.values())
    names = tuple(
        name
        for name, value in named.items()
        if value.dim() > 1
        and (among is None or name in among)
        and name not in layers | taken | adapters
        and "parametrizations." not in name
        and not name.endswith("weight_orig")
        and not any(
            matches(each, (layer := name.rpartition(".")[0]), name, modules[layer]) for each in patterns
        )
    )
    return sum(named[name].numel() for name in names) / max(1, whole), names


def patterns_for(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The shortest patterns that match these parameters and no other.

    Args:
        model: The model.
        names: The parameters.
    """
    every = [*parameters_of(model), *(name for name, _ in model.named_modules())]
    found: dict[str, None] = {}
    for name in names:
        leaf = name.rpartition(".")[2]
        recurrent = leaf.startswith(("weight_ih", "weight_hh"))
        pattern = "*weight_[ih]h*" if recurrent else f"*.{leaf}"
        matched = set(fnmatch.filter(every, pattern))
        found[pattern if matched and matched <= set(names) else name] = None
    return list(found)
