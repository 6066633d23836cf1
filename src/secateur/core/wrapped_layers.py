"""Layers that were wrapped after a model was made, as LoRA of PEFT does: their names from before, and what was added.

The module that wraps a layer holds it as `base_layer`, and what it adds in dicts beside that, marked as adapters (see
`adapters_of`). `q_proj.weight` is `q_proj.base_layer.weight` then.

>>> class WithAdapter(nn.Module):
...     def __init__(self, layer):
...         super().__init__()
...         self.base_layer, self.lora_A = layer, nn.ModuleDict({"default": nn.Linear(4, 1, bias=False)})
>>> model = nn.Sequential(WithAdapter(nn.Linear(4, 2, bias=False)))
>>> sorted(with_earlier_names(parameters_of(model)))
['0.base_layer.weight', '0.lora_A.default.weight', '0.weight']
>>> adapters_of(model)
frozenset({'0.lora_A.default.weight'})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from secateur.core.model_kinds import inside
from secateur.core.parameters import parameters_of

__all__ = ["adapters_of", "model_with", "with_earlier_names"]

_HELD_AS = "base_layer"
T = TypeVar("T")


def with_earlier_names(named: Mapping[str, T]) -> dict[str, T]:
    """What is named as a model's parameters are, also under the names from before layers of it were wrapped.

    Args:
        named: By the names of now; these keep their meaning.
    """
    found = dict(named)
    for name, value in named.items():
        parts = name.split(".")
        if _HELD_AS in parts:
            found.setdefault(".".join(part for part in parts if part != _HELD_AS), value)
    return found


def model_with(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """The model that has a parameter of one of these names: the given one, or the one that modules around it hold.

    Args:
        model: The model; DistributedDataParallel, torch.compile, AveragedModel or a model of PEFT may be around it.
        names: Names of parameters, also from before layers were wrapped.

    Returns:
        The given model where none has any.

    >>> inner = nn.Linear(2, 2)
    >>> model_with(nn.DataParallel(inner), ["weight"]) is inner
    True
    """
    wanted, inner = list(names), model
    while True:
        known = with_earlier_names(parameters_of(inner))
        if any(name in known for name in wanted):
            return inner
        part = _wide_inside(inner)
        if part is None:
            return model
        inner = part


def _wide_inside(model: nn.Module) -> nn.Module | None:
    """The model that any module around it holds: a wrapper of torch's, one that calls it `module`, as AveragedModel
    does, or one whose only part it is; None where there is none.
    """
    if (found := inside(model)) is not None:
        return found
    if isinstance(found := getattr(model, "module", None), nn.Module):
        return found
    parts = list(model.children())
    return parts[0] if len(parts) == 1 and not any(True for _ in model.parameters(recurse=False)) else None


def adapters_of(model: nn.Module) -> frozenset[str]:
    """The parameters that were added to layers that are wrapped, such as LoRA's two small matrices.

    A part of a model that happens to have the name `base_layer` wraps nothing: it is more than one layer, or what is
    beside it is neither named `lora_...` nor of a class with `adapter_layer_names`, as PEFT's are.

    Args:
        model: The model.
    """
    found: set[str] = set()
    for path, module in model.named_modules():
        if not _wraps(module):
            continue
        start = f"{path}." if path else ""
        for name, part in module.named_children():
            if name != _HELD_AS:
                found.update(f"{start}{name}.{rest}" for rest in parameters_of(part))
        found.update(start + name for name, _ in module.named_parameters(recurse=False))
    return frozenset(found)


def _wraps(module: nn.Module) -> bool:
    """Whether a module holds one layer as `base_layer`, and beside it only dicts or what has no parameters.

    It has to be marked as well: by a class that lists its `adapter_layer_names`, as those of PEFT do, or by parts whose
    names begin with `lora_`. The heads of a model whose trunk is called `base_layer` are no adapters.
    """
    layer = module._modules.get(_HELD_AS)
    if layer is None or not _is_one_layer(layer):
        return False
    beside = {name: part for name, part in module.named_children() if name != _HELD_AS}
    with_weights = {name: part for name, part in beside.items() if _has_parameters(part)}
    if not all(isinstance(part, (nn.ModuleDict, nn.ParameterDict)) for part in with_weights.values()):
        return False
    if getattr(type(module), "adapter_layer_names", ()):
        return bool(beside)
    return bool(with_weights) and all(name.startswith("lora_") for name in with_weights)


def _is_one_layer(module: nn.Module) -> bool:
    """Whether a module is one layer: no part of it has weights, but for attention, parametrizations and adapters."""
    if isinstance(module, nn.MultiheadAttention) or _wraps(module):
        return True
    return not any(
        _has_parameters(part) for name, part in module.named_children() if name != "parametrizations"
    )


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
