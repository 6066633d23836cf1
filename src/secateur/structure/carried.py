"""The optimizer of a model that was cut, made again for the smaller model, with its state cut like the weights.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> optimizer = torch.optim.Adam(model.parameters())
>>> _ = model(torch.randn(3, 4)).sum().backward(), optimizer.step()
>>> x = torch.randn(3, 4)
>>> small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
>>> carried = carry_optimizer(optimizer, model, small.model, small.plan)
>>> carried.state[small.model[0].weight]["exp_avg"].shape
torch.Size([4, 4])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.nested import map_tensors
from secateur.core.optimizers import like
from secateur.errors import OptionError, PlanError
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor

__all__ = ["carry_optimizer"]


def carry_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, plan: ShrinkPlan
) -> torch.optim.Optimizer:
    """An optimizer of the same class and options for the shrunk model, with the state cut like the weights.

    Momentum, moments and all other state of a parameter's shape are cut, and so is state in which some axes have
    length 1, as Adafactor's; single numbers are copied.

    Args:
        optimizer: The optimizer of the model before.
        model: The model before.
        small: The shrunk model.
        plan: The plan that made it.

    Returns:
        The new optimizer; the old one is not changed.

    Raises:
        PlanError: The optimizer holds a parameter that the model does not have.
        OptionError: It has state of another shape, as LBFGS has, or its class cannot be called with its options.
    """
    names = _names(optimizer, model)
    target = dict(small.named_parameters(remove_duplicate=False))
    groups = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        left = [plan.name_after(names[id(parameter)]) for parameter in group["params"]]
        groups.append({**options, "params": [target[name] for name in left if name is not None]})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    after = [plan.name_after(names[id(parameter)]) for parameter in parameters]
    whole = not any(name is None or plan.keep.get(name) for name in after)
    kind = type(optimizer).__name__
    states = {
        name: {
            key: _cut(
                value, _Place(kind, names[id(parameter)], key, parameter, plan.keep.get(name, {}), whole)
            )
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in zip(after, parameters)
        if name is not None and optimizer.state.get(parameter)
    }
    carried = _same_class(optimizer, groups)
    for name, state in states.items():
        carried.state[target[name]] = state
    return carried


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, str]:
    """The name of every parameter, the first where it has several; raises unless the optimizer's are among them."""
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    first = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    names.update(first)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise PlanError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that "
                    f"{type(model).__name__} does not have; "
                    "pass the model it was built for"
                )
    return names


def _same_class(optimizer: torch.optim.Optimizer, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """A new optimizer for these groups, or an `OptionError` where its class is not made from its options."""
    defaults = {key: value for key, value in optimizer.defaults.items() if key in optimizer.param_groups[0]}
    try:
        return like(optimizer, groups, defaults)
    except (TypeError, ValueError, AttributeError) as error:
        kind = type(optimizer).__name__
        raise OptionError(
            f"carry: calls {kind} again, with the parameters of the smaller model and the options {sorted(defaults)}, "
            f"which failed: {error}; make the optimizer yourself from small.model.parameters(), or give what it asks "
            f"for a default or a place in the defaults that {kind} passes to torch.optim.Optimizer"
        ) from error


@dataclass(frozen=True)
class _Place:
    """Where state of an optimizer belongs.

    Args:
        optimizer: The optimizer's class.
        name: The parameter's name before the cut.
        key: The state's key.
        parameter: The parameter before the cut.
        axes: The positions of it that remain, by axis.
        whole: Whether all parameters of the optimizer stay as they are.
    """

    optimizer: str
    name: str
    key: str
    parameter: torch.Tensor
    axes: Mapping[int, Sequence[int]]
    whole: bool


def _cut(value: object, place: _Place) -> object:
    """The state for the parameter after the cut; tensors in lists and the like included."""
    shape = tuple(place.parameter.shape)

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 1 or place.whole:
            return tensor.clone()
        if tensor.dim() != len(shape) or any(own not in (1, size) for own, size in zip(tensor.shape, shape)):
            raise OptionError(
                f"carry: state {place.key!r} that {place.optimizer} has of {place.name!r}: expected the parameter's "
                f"shape {shape}, where axes may have length 1, or one number, got {tuple(tensor.shape)}, which cannot "
                f"be cut like the parameter; make a new optimizer: {place.optimizer}(small.model.parameters(), ...)"
            )
        axes = {axis: kept for axis, kept in place.axes.items() if tensor.shape[axis] == shape[axis]}
        return cut_tensor(tensor, axes) if axes else tensor.clone()

    return map_tensors(cut, value)
