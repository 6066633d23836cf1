"""The blocks that masks drop whole, and the model without them.

>>> import torch
>>> from torch import nn
>>> from secateur.core.masks import Masks
>>> class Residual(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.fc = nn.Linear(4, 4)
...     def forward(self, x):
...         return x + self.fc(x)
>>> model = nn.Sequential(Residual(), Residual(), nn.Linear(4, 2))
>>> names = ["1.fc.weight", "1.fc.bias"]
>>> gone = Masks({name: torch.zeros_like(model.get_parameter(name)).bool() for name in names})
>>> left = without_blocks(model, gone, torch.zeros(1, 4))
>>> left.plan.layers, list(left.model.state_dict())
({'': ('0', '2')}, ['0.fc.weight', '0.fc.bias', '1.weight', '1.bias'])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.errors import NothingToDoError
from secateur.execution.fast_copy import copy_module
from secateur.execution.verb import verb
from secateur.structure.cut.attributes import set_attributes_
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.depth.blocks import NORMALISED, RemovableBlock, entries_of, find_blocks
from secateur.structure.depth.bypass import bypass_
from secateur.structure.depth.entries import kept_positions, name_after, name_before
from secateur.structure.hf.configs import config_with_fewer_layers

__all__ = ["FewerLayers", "bypassed", "dropped_blocks", "without_blocks"]


@dataclass(frozen=True, eq=False)
class FewerLayers:
    """A model without some of its blocks.

    Attributes:
        model: The copy without them.
        plan: The plan that removed them.
        blocks: The removed blocks.
        masks: The masks of the other tensors, under their new names; None if there are none.
        unsaid: Why the configuration of a Hugging Face model cannot describe it; empty if it can.
    """

    model: nn.Module
    plan: ShrinkPlan
    blocks: tuple[RemovableBlock, ...]
    masks: Masks | None
    unsaid: str = ""

    @property
    def bypassed(self) -> tuple[str, ...]:
        """The blocks that zeros do not replace."""
        return tuple(block.path for block in self.blocks if block.kind == NORMALISED)

    def dense_masks(self, model: nn.Module, masks: Masks) -> Masks:
        """Masks of the model without the blocks, as masks of the whole model, in which the blocks are dropped.

        Args:
            model: The whole model.
            masks: Those of the model without the blocks.
        """
        found: dict[str, torch.Tensor | Lines] = {
            name_before(name, self.plan.layers): masks.lines(name) or masks[name] for name in masks
        }
        for block in self.blocks:
            for name in block.parameters:
                found[name] = torch.zeros_like(model.get_parameter(name), dtype=torch.bool)
        return Masks(found)


def dropped_blocks(model: nn.Module, masks: Masks, example: object) -> tuple[RemovableBlock, ...]:
    """The blocks that can be removed whole and of which masks keep no parameter.

    Args:
        model: The model.
        masks: The masks.
        example: What the model is called with.
    """
    gone = {name for name in masks if _keeps_nothing(masks, name)}
    if not gone:
        return ()
    named = [name for name, _ in model.named_parameters()]
    for path in entries_of(model):
        own = [name for name in named if name.startswith(path + ".")]
        if not gone.isdisjoint(own):
            break
    else:
        return ()
    return tuple(block for block in find_blocks(model, example).found if gone.issuperset(block.parameters))


@verb
def bypassed(model: nn.Module, masks: Masks, example: object) -> nn.Module:
    """A copy of the masked model in which the blocks that the masks drop whole return their input.

    It computes what `shrink` will make of the model, under the names and shapes of the dense one, so that `compensate`
    and `hold` can work on it. If a norm follows the addition (BERT), zeros alone are not enough.

    Args:
        model: The model; it is not changed.
        masks: The masks, as `prune` with granularity "layer" gives them.
        example: What the model is called with.

    Returns:
        The copy, with hooks on these blocks.

    Raises:
        NothingToDoError: The masks drop no block that can be removed whole.
    """
    model = plain_model(model)
    masks.check(model)
    blocks = dropped_blocks(model, masks, example)
    if not blocks:
        raise NothingToDoError(
            f"the masks drop no block of {type(model).__name__} whole; prune with granularity='layer'"
        )
    made = masks.apply_(copy_module(model, {}))
    bypass_(made, [block.path for block in blocks])
    return made


def _keeps_nothing(masks: Masks, name: str) -> bool:
    lines = masks.lines(name)
    if lines is not None:
        return any(not bool(line.any()) for line in lines.axes.values())
    return not bool(masks[name].any())


def without_blocks(model: nn.Module, masks: Masks, example: object) -> FewerLayers | None:
    """A copy of the model without the blocks that masks drop whole; None where they drop none.

    Args:
        model: The model; it is not changed.
        masks: The masks.
        example: What the model is called with.
    """
    blocks = dropped_blocks(model, masks, example)
    if not blocks:
        return None
    plan = ShrinkPlan(keep={}, layers=_entries_left(model, blocks), model=type(model).__name__)
    small = plan.apply_(copy_module(model, {}))
    lengths = kept_positions(model, plan.layers)
    fields, unsaid = config_with_fewer_layers(model, small, lengths)
    if fields:
        attributes = {"": {f"config.{name}": value for name, value in fields.items()}}
        set_attributes_(small, {"": small}, attributes, lengths)
        plan = replace(plan, attributes=attributes)
    gone = {name for block in blocks for name in block.parameters}
    left: dict[str, torch.Tensor | Lines] = {}
    for name in masks:
        after = None if name in gone else name_after(name, plan.layers)
        if after is not None:
            left[after] = masks.lines(name) or masks[name]
    return FewerLayers(small, plan, blocks, Masks(left) if left else None, unsaid)


def _entries_left(model: nn.Module, blocks: Sequence[RemovableBlock]) -> dict[str, tuple[str, ...]]:
    paths = {block.path for block in blocks}
    return {
        container: tuple(
            key
            for key in model.get_submodule(container)._modules
            if (f"{container}.{key}" if container else key) not in paths
        )
        for container in dict.fromkeys(block.container for block in blocks)
    }
