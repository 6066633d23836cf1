"""Depth and width under one budget: how many whole layers are removed, and how much narrower the others become.

Scores of layers and of channels are sums over very different numbers of weights, so they are not compared. For every
number of layers, from none on, the widths that meet the budget are found. Of these choices, which all cost the same,
the one that changes the outputs least is taken: the shrunk model is run on the first batches of the call's data, or on
its example.

>>> from torch import nn
>>> from secateur.core.units import TensorMember, Units
>>> layers = Units("layers", 3, tuple(TensorMember(name, i, 3) for i, name in enumerate("abc")))
>>> selection = Selection(
...     (Candidates(layers, torch.tensor([3.0, 1.0, 2.0])), Candidates(Units("fc", 4, ()), torch.arange(4.0))),
...     nn.Identity(),
... )
>>> blocks, widths = depth_and_width(selection)
>>> blocks.name, [each.name for each in widths.candidates]
('layers', ['fc'])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from secateur.budget._selection import Candidates, Chosen, Selection
from secateur.errors import BudgetNotMetError, OptionError

if TYPE_CHECKING:
    from secateur.budget._cost_path import Path, Remaining

__all__ = ["ROUGH", "at_best_depth", "check_comparable", "depth_and_width"]

ROUGH = 0.1
"""How far below the limit a measured cost may be, as a share of it, while numbers of layers are compared."""

Search = Callable[["Path", bool], Chosen]
"""Finds the choice of a path that meets the budget; roughly, where the second argument is True."""


def depth_and_width(selection: Selection) -> tuple[Candidates | None, Selection]:
    """The list of whole layers, or None, and the selection of the other lists.

    Args:
        selection: All lists.
    """
    blocks = [each for each in selection.candidates if each.units.of_blocks]
    others = tuple(each for each in selection.candidates if not each.units.of_blocks)
    if len(blocks) != 1 or not others:
        return None, selection
    return blocks[0], dataclasses.replace(selection, candidates=others)


def check_comparable(budget: object, selection: Selection) -> None:
    """Raise where a budget would rank whole layers among the units of other lists.

    Args:
        budget: The budget, for the error.
        selection: All lists.
    """
    blocks, widths = depth_and_width(selection)
    if blocks is not None:
        raise OptionError(
            f"{budget} ranks all units by their scores, and those of whole layers ({blocks.name!r}) are sums over far "
            f"more weights than those of {widths.candidates[0].name!r}; take a budget on a cost, such as "
            "sc.budget.Macs(keep=0.5) or Latency(keep=0.5), which measures how many layers to remove, or isomorphic"
        )


def at_best_depth(budget: Remaining, selection: Selection, search: Search) -> Chosen:
    """The choice that meets a budget on a cost; with layers and widths, the one that changes the outputs least.

    Args:
        budget: The budget.
        selection: All lists.
        search: Finds the choice on the path of one number of layers.

    Raises:
        BudgetNotMetError: No number of layers meets the budget.
    """
    from secateur.budget._cost_path import Path, costs_of

    blocks, widths = depth_and_width(selection)
    if blocks is None:
        return search(Path(selection, budget.spread, budget.round_to), False)
    costs = costs_of(selection, budget)
    found: list[tuple[float, int]] = []
    paths: list[Path] = []
    failure: BudgetNotMetError | None = None
    for fixed in _depths(blocks):
        path = Path(widths, budget.spread, budget.round_to, {blocks.name: fixed})
        paths.append(path)
        try:
            chosen = search(path, True)
        except BudgetNotMetError as error:
            failure = error
            continue
        found.append((costs.change(chosen), len(paths) - 1))
        if all(torch.equal(chosen[name], kept) for name, kept in path.at(0).items()):
            break  # these layers alone are enough
    for _, place in sorted(found):
        try:
            return search(paths[place], False)
        except BudgetNotMetError as error:  # a rough reading was too low
            failure = error
    assert failure is not None
    raise failure


def _depths(blocks: Candidates) -> Iterator[torch.Tensor]:
    """The choices among layers, from as many as now to one, those with the lowest scores removed first."""
    for count in range(blocks.removed, max(blocks.removed, min(blocks.most, blocks.count - 1)) + 1):
        yield blocks.drop(count)
