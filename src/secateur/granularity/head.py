"""Head: an attention head is cut as one unit from queries, keys, values and the layer that it is an input of."""

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

__all__ = ["Head"]


@dataclass(frozen=True)
class Head(Granularity):
    """One unit per attention head; where query heads share a key-value head, they are removed with it.

    `scored` and `combine` are as for channels: the weights that score a head, and how several tensors give one score.

    >>> import torch
    >>> from secateur.core.targets import select
    >>> layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
    >>> units = Head().units(layer, select(layer), Context(example=torch.zeros(1, 3, 12)))
    >>> [(u.name, u.count) for u in units]
    [('self_attn', 4)]
    """

    needs_example: ClassVar[bool] = True

    scored: str = "all"
    combine: str = "sum"

    def __post_init__(self) -> None:
        check_scoring(self.scored, self.combine)

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Weights that an attention keeps as parameters of its own."""
        return weights_beside_layers(model, context, which="heads")

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per attention layer."""
        found = structure_of(model, context, which="heads")
        heads = [group for group in found.groups if group.heads]
        if not heads:
            raise NothingToDoError(
                f"{type(model).__name__} has no attention heads that can be cut{written_width(found)}; "
                "sc.explain(model, example) says what is "
                "locked, and granularity='channel' cuts everything else"
            )
        return coupled_units(model, found, targets, heads, self.scored, self.combine)
