"""Parameters by name while training runs: which ones masks name now, and whether one was replaced since.

`load_state_dict(..., assign=True)`, `layer.weight = nn.Parameter(...)` and `model.head = nn.Linear(...)` put other
parameters in place of those that were there. Masks belong to names, so what holds them has to see it. Every step looks
at the places that the parameters stood in, which takes no walk over the model:

>>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
>>> places = Places(model, named_now(model, {"0.weight": (2, 2)}))
>>> places.changed()
False
>>> model[0].weight = nn.Parameter(torch.ones(2, 2))
>>> places.changed()
True
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from secateur.core.parameters import parameters_of
from secateur.core.wrapped_layers import with_earlier_names
from secateur.errors import MaskMismatchError

__all__ = ["Named", "Places", "called_with_others", "named_now"]


@dataclass(frozen=True)
class Named:
    """A parameter that a mask names, and where it stands.

    Attributes:
        parameter: The parameter.
        at: Its name, as it is before torch moves the parameter for `parametrize` or `prune`.
    """

    parameter: nn.Parameter
    at: str


class Places:
    """Where parameters stand in a model: the modules on the way to each, and its own module.

    Args:
        model: The model.
        named: What `named_now` found in it.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, Named]):
        self.named = named
        modules: dict[tuple[int, str], tuple[nn.Module, str, nn.Module]] = {}
        self._parameters: list[tuple[nn.Module, str, nn.Parameter]] = []
        for each in named.values():
            *path, leaf = each.at.split(".")
            module = model
            for key in path:
                below = module._modules.get(key)
                if below is None:  # the model names its parameters in its own way
                    break
                modules[id(module), key] = module, key, below
                module = below
            else:
                if _standing(module, leaf) is not None:
                    self._parameters.append((module, leaf, each.parameter))
        self._modules = list(modules.values())

    def changed(self) -> bool:
        """Whether another parameter or module stands in one of the places."""
        for module, key, parameter in self._parameters:
            now = _standing(module, key)  # None where it was taken out for a while, as to train codebooks
            if now is None and _split(module, key):
                return True
            if now is not None and now is not parameter and not _lent(now, parameter):
                return True
        return any(owner._modules.get(key) is not module for owner, key, module in self._modules)


def named_now(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    before: Mapping[str, Named] | None = None,
) -> dict[str, Named]:
    """The parameters that have these names now.

    Args:
        model: The model.
        shapes: The shapes of the masks, by name.
        before: What had the names before. Where a name is gone, what stands in the place of before is meant, also as
            `torch.nn.utils.parametrize` and `torch.nn.utils.prune` name it; and where nothing stands there, the
            parameter itself, by the name that it has now. It counts too where something stands in its place for a
            while only.

    Raises:
        MaskMismatchError: A name has no parameter any more, or one of another shape.
    """
    parameters = parameters_of(model)
    names = with_earlier_names({name: name for name in parameters})
    found: dict[str, Named] = {}
    for name, shape in shapes.items():
        held = (before or {}).get(name)
        now = _found(model, parameters, names, name, held)
        if now is None:
            raise MaskMismatchError(
                f"mask of {name!r}: {type(model).__name__} lost this parameter while it was held; end the hold before "
                "layers are taken out or get other names"
            )
        if held is not None and _lent(now.parameter, held.parameter):
            now = replace(now, parameter=held.parameter)
        if tuple(now.parameter.shape) != shape:
            raise MaskMismatchError(
                f"mask of {name!r}: the parameter of {type(model).__name__} was replaced while it was held: expected "
                f"shape {shape} as the mask has, got {tuple(now.parameter.shape)}; end the hold first, and hold the "
                "new one with masks that are made for it"
            )
        found[name] = now
    return found


def _found(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    names: Mapping[str, str],
    name: str,
    held: Named | None,
) -> Named | None:
    """What a name means now: by the name, else by its place of before, else by the parameter of before."""
    if name in names:
        return Named(parameters[names[name]], _before_moving(model, names[name]))
    if held is None:
        return None
    for other in _moved_to(model, held.at):
        if other in parameters:  # first: a tied parameter is elsewhere too, and that is another place
            return Named(parameters[other], held.at)
    others = [other for other, parameter in parameters.items() if parameter is held.parameter]
    if not others:
        return None
    around = [other for other in others if _wrapped_form(held.at, _before_moving(model, other))]
    return Named(held.parameter, _before_moving(model, (around or others)[0]))


def _standing(module: nn.Module, key: str) -> torch.Tensor | None:
    """The parameter of this name, also where `torch.nn.utils.parametrize` or `torch.nn.utils.prune` has moved it."""
    own = module._parameters
    if (now := own.get(key)) is not None:
        return now
    if (original := _parametrized(module, key).get("original")) is not None:
        return original
    return own.get(f"{key}_orig") if _by_hook(module, key) else None


def _split(module: nn.Module, key: str) -> bool:
    """Whether a parameter was made into several, as a weight norm makes it into directions and lengths."""
    by_hook = {f"{key}_g", f"{key}_v"} <= module._parameters.keys()
    return "original0" in _parametrized(module, key) or by_hook


def _parametrized(module: nn.Module, key: str) -> Mapping[str, torch.Tensor | None]:
    """What a parametrization of this name computes from."""
    lists = module._modules.get("parametrizations")
    found = lists._modules.get(key) if lists is not None else None
    return found._parameters if found is not None else {}


def _by_hook(module: nn.Module | None, key: str) -> bool:
    """Whether a hook of `torch.nn.utils.prune`, or the older `spectral_norm`, computes this weight from `{key}_orig`.

    A module's own parameter may be called `weight_orig` as well.
    """
    return module is not None and any(
        isinstance(hook, BasePruningMethod | SpectralNorm)
        and key in (getattr(hook, "_tensor_name", None), getattr(hook, "name", None))
        for hook in module._forward_pre_hooks.values()
    )


def _before_moving(model: nn.Module, name: str) -> str:
    """The name of a parameter before `torch.nn.utils.parametrize` or `torch.nn.utils.prune` moved it.

    >>> _before_moving(nn.Identity(), "0.parametrizations.weight.original")
    '0.weight'
    """
    *path, lists, key, last = ["", "", *name.split(".")]
    if (lists, last) == ("parametrizations", "original"):
        return ".".join([*path[2:], key])
    start, leaf = _parted(name)
    plain = leaf.removesuffix("_orig")
    moved = plain != leaf and _by_hook(_module_at(model, start), plain)
    return start + plain if moved else name


def _moved_to(model: nn.Module, name: str) -> Iterator[str]:
    """The names that a parameter may have now: its own, and those that torch gives one which it moves."""
    start, leaf = _parted(name)
    yield name
    yield f"{start}parametrizations.{leaf}.original"
    if _by_hook(_module_at(model, start), leaf):
        yield f"{name}_orig"


def _parted(name: str) -> tuple[str, str]:
    """The path of a parameter's module with its last dot, and its name there."""
    path, dot, leaf = name.rpartition(".")
    return path + dot, leaf


def _module_at(model: nn.Module, start: str) -> nn.Module | None:
    """The module of a path that ends in a dot; None where the model names its parameters in its own way."""
    module: nn.Module | None = model
    for key in start.split(".")[:-1]:
        module = module._modules.get(key) if module is not None else None
    return module


def _wrapped_form(name: str, other: str) -> bool:
    """Whether a name is another with parts put in between, as a module around a layer puts them.

    >>> _wrapped_form("q.weight", "q.base.weight"), _wrapped_form("q.weight", "k.weight")
    (True, False)
    """
    parts = iter(other.split("."))
    return all(part in parts for part in name.split("."))


def _lent(now: torch.Tensor, held: nn.Parameter) -> bool:
    """Whether a tensor stands in a parameter's place for a while: what `torch.func.functional_call` computes with, or
    the whole of a parameter that fully_shard has sharded."""
    return not isinstance(now, nn.Parameter) or (
        hasattr(held, "placements") and not hasattr(now, "placements")
    )


def called_with_others() -> bool:
    """Whether `torch.func.functional_call` is calling the model, with tensors that are not the model's own."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.nn.utils.stateless":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
