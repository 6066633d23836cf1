"""`plain_model`: unwrap models that are not a plain `nn.Module`; refuse other kinds, with the next step.

>>> import warnings
>>> wrapped = nn.DataParallel(nn.Linear(2, 3))
>>> with warnings.catch_warnings(record=True):
...     plain_model(wrapped)
Linear(in_features=2, out_features=3, bias=True)
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from secateur.core.user_warnings import warn
from secateur.errors import OptionError

__all__ = [
    "HasModel",
    "check_kind",
    "check_trainer",
    "inside",
    "is_exported",
    "module_of",
    "plain_model",
    "unwrapped",
]

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


@runtime_checkable
class HasModel(Protocol):
    """A result that holds a model, such as those of `shrink`, `share` and `compensate`."""

    @property
    def model(self) -> nn.Module:
        """The model."""
        ...


def module_of(value: object, name: str = "model") -> nn.Module:
    """The model that is meant: a module itself, or the one in a result that holds one.

    Args:
        value: What was given.
        name: The argument's name.

    Raises:
        OptionError: It is neither; the text says what to do.

    >>> module_of({"weight": torch.zeros(1)})
    Traceback (most recent call last):
    secateur.errors.OptionError: model: expected a torch.nn.Module, got dict; load the state dict...
    """
    if isinstance(value, nn.Module):
        check_trainer(value, name)
        return value
    if isinstance(value, HasModel) and isinstance(value.model, nn.Module):
        return value.model
    hint = "pass the model"
    if isinstance(value, type):
        hint = f"make one first: {value.__name__}(...)"
    elif isinstance(value, dict):
        hint = "load the state dict into its model first: model.load_state_dict(...)"
    kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    raise OptionError(f"{name}: expected a torch.nn.Module, got {kind}; {hint}")


def plain_model(model: nn.Module, *, refuse: bool = True) -> nn.Module:
    """The model to work on: the one inside torch.compile, DataParallel or DistributedDataParallel, else itself.

    Args:
        model: The model.
        refuse: Refuse kinds that cannot be worked on, as `check_kind` does.

    Raises:
        OptionError: The model is of such a kind; the text says what to do.
    """
    inner = unwrapped(model)
    check_trainer(inner)
    if inner is not model:
        warn(
            f"{type(model).__name__} is a wrapper: the {type(inner).__name__} inside is worked on, and names and "
            "results are of that; wrap or compile the result again",
        )
        model = inner
    if refuse and isinstance(model, nn.Module):
        check_kind(model)
    return model


def check_trainer(model: nn.Module, argument: str = "model") -> None:
    """Raise for a tool around a model that is a module too, and whose `train()` starts a training: ultralytics' YOLO.

    Args:
        model: The model.
        argument: The argument's name.

    Raises:
        OptionError: It is one; the text names the model inside.
    """
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("ultralytics.engine")]
    if kinds:
        name = type(model).__name__
        raise OptionError(
            f"{argument}: {name} is ultralytics' tool around a model, and its train() starts a training; give the "
            f"model inside: {name.lower()}.model for {name.lower()} = {name}(...)"
        )


def check_kind(model: nn.Module, *, hooks: bool = True) -> None:
    """Raise for a model that cannot be worked on.

    Args:
        model: The model.
        hooks: Refuse weights that a hook computes before each call (torch.nn.utils.prune, weight_norm).

    Raises:
        OptionError: A ScriptModule, an int8 layer, or a weight that a hook computes; the text says what to do.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise OptionError(
            f"model: {type(model).__name__} is compiled by TorchScript, and its code cannot be followed or changed; "
            "pass the Python model it was made from, and script the result: torch.jit.script(small.model)"
        )
    for path, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTIZED) and callable(getattr(module, "weight", None)):
            raise OptionError(
                f"model: {path or type(model).__name__!r} is an int8 layer ({type(module).__name__}), whose weights "
                "are packed; prune and shrink the float model first, and quantize the result"
            )
        problem = _hooked(path, module) if hooks else ""
        if problem:
            raise OptionError(f"model: {problem}")


def is_exported(model: nn.Module) -> bool:
    """Whether a model was made by torch.export: a graph of operators, in which no layer is called as a module.

    Args:
        model: The model.
    """
    return any(kind.__module__.startswith("torch.export") for kind in type(model).__mro__)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel or DistributedDataParallel, else itself.

    Args:
        model: The model.
    """
    while (inner := inside(model)) is not None:
        model = inner
    return model


def inside(model: nn.Module) -> nn.Module | None:
    """The model that torch.compile, DataParallel or DistributedDataParallel holds; None where it is none of these.

    Args:
        model: The model.

    >>> inside(nn.DataParallel(nn.Linear(2, 3))), inside(nn.Sequential(nn.Linear(2, 3)))
    (Linear(in_features=2, out_features=3, bias=True), None)
    """
    if isinstance(model, _WRAPPERS):
        inner: nn.Module = model.module
        return inner
    compiled = getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None
    return compiled if isinstance(compiled, nn.Module) else None


def _hooked(path: str, module: nn.Module) -> str:
    """Why a module's weights cannot be changed: a hook computes one of them; empty where none does."""
    names = module._parameters
    where = f"{path}." if path else ""
    for name in names:
        leaf = name.removesuffix("_orig")
        if name.endswith("_orig") and leaf not in names:
            if f"{leaf}_mask" in module._buffers:
                return (
                    f"torch.nn.utils.prune holds {where + name!r} in the weight's place; read its masks with "
                    "sc.Masks.from_torch_prune(model), then make it permanent with torch.nn.utils.prune.remove"
                )
            return (
                f"{where + leaf!r} is computed from {where + name!r} before each call by torch.nn.utils.spectral_norm; "
                f"fold it with torch.nn.utils.remove_spectral_norm(model.get_submodule({path!r})) first"
            )
        leaf = name.removesuffix("_g")
        if name.endswith("_g") and f"{leaf}_v" in names and leaf not in names:
            return (
                f"{where + leaf!r} is computed from {where + name!r} before each call by torch.nn.utils.weight_norm; "
                f"fold it with torch.nn.utils.remove_weight_norm(model.get_submodule({path!r})) first, or use "
                "torch.nn.utils.parametrizations.weight_norm"
            )
    return ""
