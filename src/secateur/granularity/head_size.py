"""HeadSize: the heads of an attention become smaller, all alike: queries with keys, values with the layer that they
are inputs of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units
from secateur.errors import NothingToDoError
from secateur.granularity import Granularity
from secateur.granularity.channel import (
    check_scoring,
    coupled_units,
    structure_of,
    weights_beside_layers,
    written_width,
)

__all__ = ["HeadSize"]


@dataclass(frozen=True)
class HeadSize(Granularity):
    """One unit per position within a head, out of every head alike; where rotary embeddings pair them, per pair.

    Queries and keys lose the same positions, values and the layer that they are inputs of lose theirs; layers that
    share their rotary frequencies lose the same. `scored` and `combine` are as for channels.

    >>> import torch
    >>> from secateur.core.targets import select
    >>> layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    >>> units = HeadSize().units(layer, select(layer), Context(example=torch.zeros(1, 3, 12)))
    >>> [(u.name, u.count) for u in units]
    [('self_attn', 6)]
    """

    needs_example: ClassVar[bool] = True

    scored: str = "all"
    combine: str = "sum"

    def __post_init__(self) -> None:
        check_scoring(self.scored, self.combine)

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Weights that an attention keeps as parameters of its own."""
        return weights_beside_layers(model, context, sizes=True, which="sizes of heads")

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per set of positions that are removed together."""
        found = structure_of(model, context, sizes=True, which="sizes of heads")
        groups = [group for group in found.groups if group.within]
        if not groups:
            raise NothingToDoError(
                f"{type(model).__name__} has no attention heads that can become smaller{written_width(found)}; "
                "sc.explain(model, example, head_size=True) says what is locked, and granularity='head' cuts "
                "whole heads"
            )
        return coupled_units(model, found, targets, groups, self.scored, self.combine)
