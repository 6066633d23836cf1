"""`parameters_of`: every parameter by every name it has, in less time than `nn.Module.named_parameters` takes.

>>> shared = nn.Linear(2, 2, bias=False)
>>> list(parameters_of(nn.Sequential(shared, nn.ReLU(), shared)))
['0.weight', '2.weight']
"""

from __future__ import annotations

from torch import nn

__all__ = ["parameters_of"]


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The same as `dict(model.named_parameters(remove_duplicate=False))`.

    Args:
        model: The model. One of a class with a `named_parameters` of its own is asked by that.
    """
    if type(model).named_parameters is not nn.Module.named_parameters:
        return dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, nn.Parameter] = {}

    def walk(module: nn.Module, start: str) -> None:
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found[start + key] = parameter
        for key, child in module._modules.items():
            if child is not None:
                walk(child, f"{start}{key}.")

    walk(model, "")
    return found
