"""`with_own_forwards`: a cut model, somewhat wider, whose forwards are those of its classes and not rewritten.

Where a forward has a hard-coded width, `shrink` gives that module a class of secateur's. A file that another library
reads without secateur cannot name such a class. The channels that made the rewrite necessary come back as zeros: the
tensors of the small model are put into a dense one at the places that the plan kept, and that is cut again, without
rewrites.

>>> import torch
>>> import secateur as sc
>>> class Folded(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
...     def forward(self, x):
...         x = self.a(x)
...         return self.c(torch.relu(self.b(x).flatten(2).reshape(x.shape)))
>>> dense, x = Folded().eval(), torch.randn(2, 3, 4, 4)
>>> masks = {name: torch.ones_like(dense.get_parameter(name), dtype=torch.bool) for name in ("a.weight", "b.weight")}
>>> masks["a.weight"][5:] = masks["b.weight"][6:] = False
>>> small = sc.shrink(dense, sc.Masks(masks), x)
>>> list(small.plan.rewrites)
['']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.errors import PlanError
from secateur.execution.example import Example
from secateur.execution.fast_copy import is_atom, modules_of, tensors_of
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor
from secateur.structure.cutting import CutOptions, cut
from secateur.structure.proof import ProofOptions
from secateur.structure.proving import prove

__all__ = ["OwnForwards", "rewritten_modules", "with_own_forwards"]

_OWN = frozenset(vars(nn.Module()))


@dataclass(frozen=True, eq=False)
class OwnForwards:
    """A cut model whose forwards are its classes' own, its plan, and the masks that were given, for its widths."""

    model: nn.Module
    plan: ShrinkPlan
    masks: Masks | None


def rewritten_modules(model: nn.Module) -> dict[str, str]:
    """The modules of a cut model whose forward was rewritten, each with the name of its class.

    Args:
        model: The model.
    """
    return {
        path: type(module).__name__ for path, module in modules_of(model).items() if _is_rewritten(module)
    }


def _is_rewritten(module: nn.Module) -> bool:
    return hasattr(type(module), "_secateur_base")


@torch.no_grad()
def with_own_forwards(
    small: nn.Module, plan: ShrinkPlan, dense: nn.Module, example: Example, masks: Masks | None = None
) -> OwnForwards:
    """The cut model with those channels, as zeros, without which forwards would have to be rewritten.

    Args:
        small: The cut model; it is not changed.
        plan: The plan that made it.
        dense: A model of the class and widths from before; its tensors are overwritten.
        example: What it is called with.
        masks: Masks of the cut model; they are given back for the wider one.

    Raises:
        PlanError: The dense model is not the one that the plan cuts.
        ProofError: The wider model computes something else.
    """
    if plan.layers or plan.factors:
        raise PlanError("the plan removes whole layers, or makes two of one")
    plan.check(dense)
    _fill(dense, small, plan)
    given = {
        name: _spread(torch.ones(plan.shape_after(name), dtype=torch.bool), plan, name) for name in plan.keep
    }
    parameters = dict(dense.named_parameters())
    cutting = Masks({name: mask for name, mask in given.items() if name in parameters})
    done = cut(dense, cutting, example, CutOptions(rewrite=False))
    if done.plan.rewrites:
        raise PlanError(f"the forward of {next(iter(done.plan.rewrites))!r} runs at the dense widths alone")
    once = ProofOptions(("no_grad",), training=False, other_shapes=False)
    prove(dense, small, cutting, example, once)
    prove(dense, done.model, done.masks, example, once)
    return OwnForwards(done.model, done.plan, None if masks is None else _masks_for(masks, plan, done.plan))


def _fill(dense: nn.Module, small: nn.Module, plan: ShrinkPlan) -> None:
    """Give a dense model the tensors and plain values of a cut one; what was removed is 0, and 1 in variances."""
    modules, theirs = modules_of(dense), modules_of(small)
    for path, module in modules.items():
        kept = plan.attributes.get(path, {})
        for key, value in vars(theirs[path]).items():
            if key not in _OWN and key not in kept and is_atom(value):
                vars(module)[key] = value
    tensors = tensors_of(small)
    for name, tensor in tensors_of(dense).items():
        value = tensors[name].to(tensor.device)
        if name in plan.keep:
            value = _spread(value, plan, name, 1.0 if name.endswith("running_var") else 0.0)
        if value.shape == tensor.shape:
            tensor.copy_(value)


def _spread(tensor: torch.Tensor, plan: ShrinkPlan, name: str, fill: float = 0.0) -> torch.Tensor:
    """The values of a cut tensor at the places that they had before, and `fill` elsewhere."""
    shape, axes = plan.shapes[name], plan.keep[name]
    whole = torch.full(shape, fill, dtype=tensor.dtype, device=tensor.device)
    places = [np.asarray(axes.get(axis, range(size))) for axis, size in enumerate(shape)]
    whole[tuple(torch.from_numpy(place) for place in np.ix_(*places))] = tensor
    return whole


def _masks_for(masks: Masks, before: ShrinkPlan, after: ShrinkPlan) -> Masks:
    """Masks of the model that one plan leaves, for the one that another leaves; what came back is free."""
    found: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        whole = _spread(mask, before, name, True) if name in before.keep else mask
        axes: Mapping[int, object] = after.keep.get(name, {})
        found[name] = cut_tensor(whole, axes) if axes else whole  # type: ignore[arg-type]
    return Masks(found)
