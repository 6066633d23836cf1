"""`targets_of`: the weights that take part in a call of `prune` or `scan`, from patterns and from operators.

>>> import torch
>>> from secateur import granularity
>>> class Net(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.up, self.down = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4, 3))
...     def forward(self, x):
...         return (x @ self.up).relu() @ self.down
>>> grain = granularity.registry.make("channel")
>>> [target.name for target in targets_of(Net(), grain, Context(example=torch.zeros(1, 2)))]
['up', 'down']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Pattern, Target, patterns_of, select
from secateur.core.user_warnings import warn
from secateur.errors import NothingToDoError, PatternError, SecateurError
from secateur.granularity import Granularity

__all__ = ["targets_of"]


def targets_of(
    model: nn.Module,
    granularity: Granularity,
    context: Context,
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
    of_layers: bool = False,
) -> tuple[Target, ...]:
    """The weights that take part in a call: see `select`. Without `only`, weights that modules keep as parameters of
    their own take part too, where the granularity follows the forward and finds the operators that use them.

    Args:
        model: The model.
        granularity: Divides the targets into units.
        context: The example or data of the call.
        only: Patterns of the layers to prune; None means every layer.
        skip: Patterns of the layers to leave alone.
        parameters: Patterns of parameters to prune in addition to the weights of layers.
        of_layers: Weights that modules keep as parameters of their own take no part, unless `parameters` names them.
    """
    found: tuple[Target, ...] = ()
    problem: SecateurError | None = None
    try:
        found = select(model, only, skip, parameters)
    except (NothingToDoError, PatternError) as error:
        problem = error
    seen = context.example is not None or (
        context.data is not None and not isinstance(context.data, Iterator)
    )
    own = granularity.own_weights(model, context) if only is None and seen and not of_layers else ()
    if own:
        return select(model, only, skip, (*patterns_of(parameters), *own))
    if problem is not None:
        raise problem
    computed = _computed_weights(model) if only is None and parameters is None else []
    if computed:
        warn(
            f"the weight of {', '.join(map(repr, computed[:3]))} is computed by a parametrization and takes no part; "
            "prune before it is registered, fold it with torch.nn.utils.parametrize.remove_parametrizations, or name "
            f"what it is computed from, with the option parameters={_source(model, computed[0])}",
        )
    return found


def _computed_weights(model: nn.Module) -> list[str]:
    """The layers whose `weight` a parametrization computes, so that no parameter of that name can be pruned.

    >>> _computed_weights(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))))
    ['0']
    """
    parametrized = nn.utils.parametrize.is_parametrized
    return [name for name, module in model.named_modules() if parametrized(module, "weight")]


def _source(model: nn.Module, layer: str) -> str:
    """A pattern for the largest parameter that a layer's weight is computed from, quoted; "[...]" where it has none.

    >>> _source(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "0")
    "'*original1'"
    """
    kept = model.get_submodule(f"{layer}.parametrizations.weight" if layer else "parametrizations.weight")
    found = dict(kept.named_parameters())
    if not found:
        return "[...]"
    return repr("*" + max(found, key=lambda name: found[name].numel()))
