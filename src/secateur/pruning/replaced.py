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
from collections.abc import Mapping

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
            *path, leaf = names.get(name, name).split(".")
            module = model
            for key in path:
                below = module._modules.get(key)
                if below is None:  # the model names its parameters in its own way
                    break
                modules[id(module), key] = module, key, below
                module = below
            else:
                if leaf in module._parameters:
                    self._parameters.append((module, leaf, parameter))
        self._modules = list(modules.values())

    def changed(self) -> bool:
        """Whether another parameter or module stands in one of the places."""
        for module, key, parameter in self._parameters:
            now = module._parameters.get(
                key
            )  # None where it was taken out for a while, as to train codebooks
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
            has another name by now, as `torch.nn.utils.parametrize` and `torch.nn.utils.prune` give it.

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
