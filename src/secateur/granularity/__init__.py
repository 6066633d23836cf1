"""Granularities: what is removed as one unit. One file per granularity; the file name is the word used in recipes.

| layer                  | weight                    | kernel                       | filter               |
|------------------------|---------------------------|------------------------------|----------------------|
| Conv1d, 2d, 3d         | [out, in / groups, k ...] | k taps of one (out, in) pair | all of one output    |
| depthwise convolution  | [out, 1, k ...]           | the same as its filter       | all of one output    |
| ConvTranspose1d, 2d, 3d| [in, out / groups, k ...] | k taps of one (in, out) pair | one output, over the |
|                        |                           |                              | inputs of its group  |
| Linear                 | [out, in]                 | one weight                   | one row              |
| Conv1D (transformers)  | [in, out]                 | one weight                   | one column           |
| Embedding              | [words, width]            | one weight                   | one word             |
| a bare parameter       | [a, b, rest ...]          | `rest` of one (a, b) pair    | one slice of axis 0  |

`element` is one weight of any tensor. `block(h, w)` sees each tensor as a table of outputs by everything else, and
takes h outputs by w neighbouring weights. Biases and norms are cut only when named with `parameters=`, or by the
granularities that follow channels through the model. Several granularities, as `["layer", "channel"]`, share one
budget.

>>> from secateur.core.targets import select
>>> layer = nn.Conv2d(3, 8, 5)
>>> {word: registry.make(word).units(layer, select(layer), Context())[0].count for word in ("kernel", "filter")}
{'kernel': 24, 'filter': 8}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target
from secateur.core.units import Units, one_of_each
from secateur.errors import OptionError
from secateur.registry import Registry

__all__ = ["Granularity", "GranularityLike", "Mixed", "needs_example", "registry"]


class Granularity(ABC):
    """The base class of all granularities: a frozen value that cuts targets into units."""

    needs_example: ClassVar[bool] = False
    """Whether the units are read off the forward, so that one input must be known."""

    @abstractmethod
    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """The lists of competing units, in the model's order."""

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Parameters to prune in addition to the weights of layers: those that an operator of the forward takes as a
        weight.

        Args:
            model: The model.
            context: Has the example that the forward is followed on.
        """
        return ()

    def left_out(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[str, ...]:
        """Parameters that this granularity could cut, of no layer, which the targets do not name.

        Args:
            model: The model.
            targets: The weights that take part.
            context: Has the example that the forward is followed on.
        """
        return ()

    def held_back(self, model: nn.Module, context: Context) -> str:
        """What cannot be removed, and why, as part of the error of a call that removes nothing; empty for nothing.

        Args:
            model: The model.
            context: Has the example that the forward is followed on.
        """
        return ""


@dataclass(frozen=True)
class Mixed(Granularity):
    """The lists of several granularities, one after the other, such as whole layers and channels.

    >>> registry.make(["filter", "kernel"]).parts
    (Filter(), Kernel())
    """

    parts: tuple[Granularity, ...]

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Those that any of the granularities names."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.own_weights(model, context)))

    def left_out(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[str, ...]:
        """Those that any of the granularities leaves out."""
        found = (name for part in self.parts for name in part.left_out(model, targets, context))
        return tuple(dict.fromkeys(found))

    def held_back(self, model: nn.Module, context: Context) -> str:
        """What each of the granularities cannot remove."""
        return "; ".join(filter(None, (part.held_back(model, context) for part in self.parts)))

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """The lists of all granularities; a list that two of them give is taken once."""
        parts = one_of_each(part.units(model, targets, context) for part in self.parts)
        return tuple(units for part in parts for units in part)

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


def needs_example(granularity: Granularity) -> bool:
    """Whether a granularity, or one of several, reads its units off the forward.

    Args:
        granularity: One granularity, or several as one.

    >>> needs_example(registry.make(["filter", "layer"])), needs_example(registry.make("filter"))
    (True, False)
    """
    parts = granularity.parts if isinstance(granularity, Mixed) else (granularity,)
    return any(part.needs_example for part in parts)


GranularityLike = str | Granularity | type[Granularity] | Sequence[str | Granularity | type[Granularity]]
"""Every form in which a granularity is given: a word, a value, or a class; or several of them, which share a budget."""


class _Granularities(Registry):
    """The words of this folder; a list of them is one granularity, whose lists of units are those of all."""

    def make(self, value: Any, **options: Any) -> Any:
        """A granularity from a word, a class or a value, or from a list of them."""
        if not isinstance(value, (list, tuple)):
            return super().make(value, **options)
        if not value:
            raise OptionError("granularity: expected at least one of a list, got an empty list")
        parts = tuple(super(_Granularities, self).make(each) for each in value)
        return parts[0] if len(parts) == 1 else Mixed(parts)


registry = _Granularities(__name__, __path__, "granularity")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
