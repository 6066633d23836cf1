"""Allocation: how much each layer loses, found by trying. One method a file; its name is the word.

In goes a `Space`: the lists of units that can be cut, the cost and the value of a choice, and the limit of the cost.
Out comes a choice: how many units each list loses, those with the lowest scores. A method knows nothing of models;
`sc.allocate` makes the space of a model, and turns the choice into a budget.

In reading order: `_space` (what a method may ask), `_thresholds` with `fast_nas` and `grad_nas` (one threshold for the
loss of every list), `knapsack` (the least sum of losses), `net_adapt` (small steps, the best list each time),
`annealing` and `amc` (whole choices, tried and changed). To add one, add a file with a class of its name in CamelCase.

Two lists of four units; each unit costs an eighth. Removing a unit of `a` loses its value; those of `b` have no value.

>>> space = Space(("a", "b"), (4, 4), (3, 3), lambda gone: 1 - sum(gone) / 8, lambda gone: -gone[0], limit=0.7)
>>> registry.make("net_adapt").search(space, seed=0)
(0, 3)
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from secateur.allocation._space import Gone, Space
from secateur.registry import Registry

__all__ = ["Allocator", "AllocatorLike", "Gone", "Space", "registry"]


class Allocator(ABC):
    """What every method is: a frozen value of its options, with `search`."""

    @abstractmethod
    def search(self, space: Space, seed: int) -> Gone:
        """How many units each list loses, within the space's limit.

        Args:
            space: The lists, the cost and the value of a choice, the limit.
            seed: Of what is drawn at random.

        Raises:
            BudgetNotMetError: No choice that the method may make is within the limit.
        """


AllocatorLike = str | Allocator | type[Allocator]
"""What stands for a method: a word, a value, or a class."""

registry = Registry(__name__, __path__, "allocation method", base="secateur.allocation:Allocator")


def __getattr__(name: str) -> object:
    return registry.attribute(name)
