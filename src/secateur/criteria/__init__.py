"""Criteria: the score of each weight, one file per criterion; the file's name is the word used in recipes.

In go a model, the weights that take part and, for some, data (`Context`). Out comes a tensor of scores shaped like each
weight (`scores`), and a rule that makes one score of the scores of a unit (`reduce`). The granularity says which units
there are, the budget how many are removed.

>>> import torch
>>> from torch import nn
>>> from secateur.core.targets import select
>>> layer = nn.Linear(2, 1, bias=False)
>>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
>>> registry.make("magnitude").scores(layer, select(layer), Context())["weight"]
tensor([[3., 1.]])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.registry import Registry

__all__ = ["Criterion", "CriterionLike", "registry"]


class Criterion(ABC):
    """The base class of all criteria: a frozen value with two methods."""

    needs_data: ClassVar[bool] = False
    """Whether `Context.data` must be given; `Context.loss` may be None where the model's output holds a loss."""
    needs_loss: ClassVar[bool] = True
    """Of criteria that need data: whether they need labels and a loss too, unless the model's output holds a loss."""
    needs_example: ClassVar[bool] = False
    """Whether one input must be known: `Context.example`, or the first batch of `Context.data`."""
    of_outputs: ClassVar[bool] = False
    """Whether a score is that of an output: in a unit of several tensors only those that compute the output count."""
    of_layers: ClassVar[bool] = False
    """Whether only weights of layers can be scored, by their inputs; bare parameters take no part."""
    of_blocks: ClassVar[bool] = False
    """Whether it scores whole blocks, so that only granularity "layer" can use it."""
    among: ClassVar[bool] = False
    """Whether a unit's score depends on the other units of its list too: `reduce` compares them by their norms."""
    rescore: ClassVar[bool] = False
    """Whether a schedule's rounds need new scores: the scores depend on which weights are already removed."""

    def check_model(self, model: nn.Module) -> None:  # noqa: B027 - most refuse nothing
        """Raise where no weight of this model can be scored, seen without running it; by default nothing is refused.

        Recipes call it before any work.
        """

    @abstractmethod
    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """One score per weight. The model must be left exactly as found."""

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The score of each unit from those of its weights, [units, elements] -> [units]. By default their sum.

        The sum of half-precision scores is made and kept in float32: in half precision it would overflow, or
        round different sums to the same number.
        """
        if units.shape[1] == 1:
            return units[:, 0]
        narrow = units.dtype in (torch.float16, torch.bfloat16)
        return units.sum(dim=1, dtype=torch.float32 if narrow else None)

    def of_weights(self, units: torch.Tensor) -> torch.Tensor | None:
        """The score of each unit from its weights, [units, elements] -> [units]; None if that is not possible.

        A shortcut past `scores` for criteria that depend only on a unit's own weights. It must give
        exactly what `scores` and `reduce` would.
        """
        return None

    def of_lines(self, weight: torch.Tensor, axis: int) -> torch.Tensor | None:
        """The score of every slice along one axis of a weight; None when slices must be gathered first.

        With `joined` a shortcut for units of many tensors: no weight is moved to be scored.
        """
        return None

    def joined(self, parts: torch.Tensor) -> torch.Tensor:
        """The score of units from those of their slices, [units, slices] -> [units]."""
        return parts.sum(dim=1)


CriterionLike = str | Criterion | type[Criterion]
"""Every form in which a criterion is given: a word, a value, or a class."""

registry = Registry(
    __name__,
    __path__,
    "criterion",
    base="secateur.criteria:Criterion",
    aliases={"level": "magnitude"},
    deprecated={"thrift": "rate_distortion"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
