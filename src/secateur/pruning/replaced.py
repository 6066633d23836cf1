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

import torch
from torch import nn

from secateur.core.parameters import parameters_of
from secateur.core.wrapped_layers import with_earlier_names
from secateur.errors import MaskMismatchError

__all__ = ["Places", "called_with_others", "named_now"]


class Places:
    """Where parameters stand in a model: the modules on the way to each, and its own module.

    Args:
        model: The model.
        parameters: Parameters of it by name, also by names from before layers were wrapped.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        self.parameters = parameters
        names = with_earlier_names({name: name for name in parameters_of(model)})
        modules: dict[tuple[int, str], tuple[nn.Module, str, nn.Module]] = {}
        self._parameters: list[tuple[nn.Module, str, nn.Parameter]] = []
        for name, parameter in parameters.items():
            *path, leaf = _before_moving(names.get(name, name)).split(".")
            module = model
            for key in path:
                below = module._modules.get(key)
                if below is None:  # the model names its parameters in its own way
                    break
                modules[id(module), key] = module, key, below
                module = below
            else:
                plain = leaf.removesuffix("_orig")
                if not (leaf in module._parameters and plain in module._parameters):
                    leaf = plain
                if _standing(module, leaf) is not None:
                    self._parameters.append((module, leaf, parameter))
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
    before: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, nn.Parameter]:
    """The parameters that have these names now.

    Args:
        model: The model.
        shapes: The shapes of the masks, by name.
        before: What had the names before. It counts where something stands in its place for a while only, and where it
            has another name by now, as `torch.nn.utils.parametrize` and `torch.nn.utils.prune` give it. What was put in
            its place under that name is found as well.

    Raises:
        MaskMismatchError: A name has no parameter any more, or one of another shape.
    """
    parameters = with_earlier_names(parameters_of(model))
    known = {id(parameter) for parameter in parameters.values()}
    found: dict[str, nn.Parameter] = {}
    for name, shape in shapes.items():
        now, held = parameters.get(name), (before or {}).get(name)
        if held is not None and (id(held) in known if now is None else _lent(now, held)):
            now = held
        if now is None and held is not None:
            now = next((parameters[other] for other in _moved_to(name) if other in parameters), None)
        if now is None:
            raise MaskMismatchError(
                f"mask of {name!r}: {type(model).__name__} lost this parameter while it was held; end the hold before "
                "layers are taken out or get other names"
            )
        if tuple(now.shape) != shape:
            raise MaskMismatchError(
                f"mask of {name!r}: the parameter of {type(model).__name__} was replaced while it was held: expected "
                f"shape {shape} as the mask has, got {tuple(now.shape)}; end the hold first, and hold the new one with "
                "masks that are made for it"
            )
        found[name] = now
    return found


def _standing(module: nn.Module, key: str) -> torch.Tensor | None:
    """The parameter of this name, also where `torch.nn.utils.parametrize` or `torch.nn.utils.prune` has moved it."""
    own = module._parameters
    if (now := own.get(key)) is not None:
        return now
    return _parametrized(module, key).get("original", own.get(f"{key}_orig"))


def _split(module: nn.Module, key: str) -> bool:
    """Whether a parameter was made into several, as a weight norm makes it into directions and lengths."""
    by_hook = {f"{key}_g", f"{key}_v"} <= module._parameters.keys()
    return "original0" in _parametrized(module, key) or by_hook


def _parametrized(module: nn.Module, key: str) -> Mapping[str, torch.Tensor | None]:
    """What a parametrization of this name computes from."""
    lists = module._modules.get("parametrizations")
    found = lists._modules.get(key) if lists is not None else None
    return found._parameters if found is not None else {}


def _before_moving(name: str) -> str:
    """The name of a parameter that `torch.nn.utils.parametrize` moved.

    >>> _before_moving("0.parametrizations.weight.original")
    '0.weight'
    """
    *path, lists, key, last = ["", "", *name.split(".")]
    return ".".join([*path[2:], key]) if (lists, last) == ("parametrizations", "original") else name


def _moved_to(name: str) -> Iterator[str]:
    """The other names that torch gives a parameter which it moves, and the name that it gives back."""
    path, dot, leaf = _before_moving(name).rpartition(".")
    leaf = leaf.removesuffix("_orig")
    yield from (
        f"{path}{dot}{other}" for other in (leaf, f"parametrizations.{leaf}.original", f"{leaf}_orig")
    )


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
