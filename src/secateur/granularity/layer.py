"""Layer: a whole block is removed, a residual branch or a transformer layer, so that the model gets fewer layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target, select
from secateur.core.units import TensorMember, Units
from secateur.errors import DataError, NothingToDoError
from secateur.execution.example import first_example
from secateur.granularity import Granularity
from secateur.structure.depth.blocks import RemovableBlock, RemovableBlocks, find_blocks

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer(Granularity):
    """One unit per block that can be removed whole: an entry of a container whose branches are added to its input.

    All blocks of the model compete in one list. A block takes part where the call allows all of its layers' weights;
    `shrink` removes it. See `secateur.structure.depth`.

    Where a weight norm computes weights, masks name their scales and not their directions. These leave with the block,
    but what is counted by the masks (`Masks.sparsity`, `Overall(by="weights")`) does not count them.

    >>> import torch
    >>> from secateur import models
    >>> from secateur.core.targets import select
    >>> model = models.build("resnet20").eval()
    >>> units = Layer().units(model, select(model), Context(example=torch.zeros(1, 3, 32, 32)))
    >>> [(u.name, u.count) for u in units], units[0].members[0].name
    ([('layers', 7)], 'layer1.0.conv1.weight')
    """

    needs_example: ClassVar[bool] = True

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Matrices that a block keeps as parameters of its own, such as those of `nn.MultiheadAttention`."""
        known = _layer_weights(model)
        return tuple(
            name
            for block in blocks_of(model, context).found
            for name in block.parameters
            if name not in known and model.get_parameter(name).dim() > 1
        )

    def held_back(self, model: nn.Module, context: Context) -> str:
        """The blocks that cannot be removed, and why."""
        found = blocks_of(model, context)
        if not found.refused:
            return ""
        count = len(found.found)
        why = "; ".join(f"{each.path}: {each.reason}" for each in found.refused[:3])
        return f"of {count + len(found.refused)} blocks {count} can be removed whole ({why})"

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list of all blocks that the targets allow."""
        found = blocks_of(model, context)
        names = {target.name for target in targets}
        known = _layer_weights(model)
        blocks = [block for block in found.found if _allowed(block, names, known)]
        if not blocks:
            raise NothingToDoError(_no_block(model, found))
        members = tuple(
            TensorMember(name, index, len(blocks), scored=name in names)
            for index, block in enumerate(blocks)
            for name in block.parameters
        )
        return (Units("layers", len(blocks), members),)


def blocks_of(model: nn.Module, context: Context) -> RemovableBlocks:
    """The blocks of a model, found on the call's example or on the first batch of its data.

    Args:
        model: The model.
        context: Has the example or the data.

    Raises:
        DataError: There is no example.
    """
    example = context.example if context.example is not None else first_example(context.data, model=model)
    if example is None:
        raise DataError("granularity layer follows the forward through the blocks: pass example= (one input)")
    return find_blocks(model, example)


def _layer_weights(model: nn.Module) -> frozenset[str]:
    """The weights that a call which names none would prune."""
    try:
        return frozenset(target.name for target in select(model))
    except NothingToDoError:
        return frozenset()


def _allowed(block: RemovableBlock, names: set[str], known: frozenset[str]) -> bool:
    """Whether a call takes part with all weights of a block's layers."""
    mine = [name for name in block.parameters if name in known]
    return all(name in names for name in mine) and any(name in names for name in block.parameters)


def _no_block(model: nn.Module, found: RemovableBlocks) -> str:
    if found.found:
        why = f"the call leaves out layers of {', '.join(repr(block.path) for block in found.found[:4])}"
    elif found.refused:
        why = "; ".join(f"{each.path}: {each.reason}" for each in found.refused[:3])
    else:
        why = "no entry of an nn.Sequential or nn.ModuleList adds its branches to its input"
    name = type(model).__name__
    return (
        f"no block of {name} can be removed whole: {why}; granularity='channel' makes layers narrower instead"
    )
