"""Block influence: how much a block changes its input, on data without labels; for granularity "layer".

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from secateur.compensation.batches import leading_mask, read_all
from secateur.core.context import Context
from secateur.core.nested import tensors_in
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.errors import DataError
from secateur.execution.example import Batch
from secateur.execution.undisturbed import undisturbed
from secateur.structure.depth.blocks import RemovableBlock, find_blocks
from secateur.structure.depth.bypass import stream_of

__all__ = ["BlockInfluence"]


@dataclass(frozen=True)
class BlockInfluence(Criterion):
    """1 minus the mean cosine between a block's input and its output; every weight of the block has that score.

    Tensors of two or three axes are compared along the last one, token by token, padding left out; others (images) as
    one vector for each example. A block that returns its input unchanged scores 0. Weights outside of blocks that can
    be removed whole have no score.

    >>> import secateur as sc
    >>> class Shift(nn.Module):
    ...     def __init__(self, by):
    ...         super().__init__()
    ...         self.by = nn.Linear(2, 2)
    ...         self.by.weight.data.zero_(); self.by.bias.data.copy_(torch.tensor(by))
    ...     def forward(self, x):
    ...         return x + self.by(x)
    >>> model = nn.Sequential(Shift([0.0, 1.0]), Shift([1.0, 0.0]))
    >>> scores = BlockInfluence().scores(model, sc.select(model), Context(data=[torch.tensor([[1.0, 0.0]])]))
    >>> {name: round(score.max().item(), 4) for name, score in scores.items()}  # 1 - cos 45 degrees, 1 - 3 / sqrt(10)
    {'0.by.weight': 0.2929, '1.by.weight': 0.0513}
    """

    needs_data: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    of_blocks: ClassVar[bool] = True

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The influence of the block that each weight is in."""
        found: dict[str, torch.Tensor] = {}
        with undisturbed(model, mode="eval"), torch.no_grad():
            data = read_all("block_influence", context.data if context.data is not None else (), model)
            example = context.example if context.example is not None else data[0].example
            blocks = find_blocks(model, example).found
            influence = _influences(model, blocks, data)
        for block in blocks:
            mine = set(block.parameters)
            for target in targets:
                if target.name in mine:
                    found[target.name] = influence[block.path].float().expand(target.shape)
        return Scores(found)

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The largest influence of the blocks that a unit's weights are in."""
        return units.amax(dim=1)


def _influences(
    model: nn.Module, blocks: Sequence[RemovableBlock], data: Sequence[Batch]
) -> dict[str, torch.Tensor]:
    """1 - mean cosine of each block over the data."""
    watched = {block.path: _Cosines() for block in blocks}
    handles = []
    for path, cosines in watched.items():
        block = model.get_submodule(path)
        handles.append(block.register_forward_pre_hook(cosines.before, with_kwargs=True))
        handles.append(block.register_forward_hook(cosines.after))
    try:
        for batch in data:
            for cosines in watched.values():
                cosines.batch = batch
            model(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for path, cosines in watched.items():
        if not cosines.count:
            raise DataError(
                f"block_influence: block {path!r} did not run on this data; leave it out with skip=[...]"
            )
    return {path: 1 - cosines.total / cosines.count for path, cosines in watched.items()}


class _Cosines:
    """The sum of cosines between one block's input and output, while the model runs."""

    def __init__(self) -> None:
        self.batch: Batch = Batch(())
        self.inputs: list[torch.Tensor] = []
        self.total = torch.zeros(())
        self.count = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs = [each.clone() for each in tensors_in([list(args), kwargs])]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taken, given = stream_of(self.inputs, output)
        self.inputs = []
        if taken is None or given is None:
            return
        valid = leading_mask(self.batch, taken.shape)
        rows = [
            (each.flatten(0, -2) if each.dim() < 4 else each.flatten(1)).double() for each in (taken, given)
        ]
        if valid is not None and taken.dim() == 3:
            rows = [row[valid] for row in rows]
        cosines = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=1)
        self.total = self.total.to(cosines) + cosines.sum()
        self.count += len(cosines)
