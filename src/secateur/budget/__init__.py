"""The budgets: how many units are removed, and which lists of units compete. One file each; its name is the word in
recipes.

In goes a `Selection`: one `Candidates` for each list of competing units (of a tensor, or of a group of coupled
channels) with the score of every unit. Out comes, for every list, one boolean tensor: True for the units that remain. A
budget knows neither criteria nor layers: `pruning.selection` makes the selection and `pruning.unit_masks` the masks.

In reading order: `_selection` (what a budget sees), `_floors` (the least number of units that remain), `_select`
(exact selection of the lowest of many numbers); then `per_tensor`, `per_layer`, `overall`, `isomorphic`, `erdos_renyi`,
`n_of_m`, `percentile` and `std_dev`, which say how many are removed, and `least_change`, which measures which; then
`_cost_path` with `macs`, `params`, `size` and `latency`, which say how much remains, `_depth`, by which these choose
between whole layers and channels, and `latency_table`, the same by a table of times. To add one, add a file with a
class of its name in CamelCase.

>>> import torch
>>> from torch import nn
>>> from secateur.core.units import Units
>>> candidates = Candidates(Units("fc.weight", 4, ()), torch.tensor([3.0, 1.0, 4.0, 2.0]))
>>> registry.make(0.5).choose(Selection((candidates,), nn.Identity()))
{'fc.weight': tensor([ True, False,  True, False])}
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from secateur.budget._floors import Limits, floors
from secateur.budget._selection import (
    Candidates,
    Chosen,
    Compare,
    Costs,
    FileOptions,
    Selection,
    check_share,
    share_of,
)
from secateur.core.schedule import OneShot, Schedule
from secateur.errors import OptionError
from secateur.registry import Registry

__all__ = [
    "Budget",
    "BudgetLike",
    "Candidates",
    "Chosen",
    "Compare",
    "Costs",
    "FileOptions",
    "Limits",
    "Selection",
    "check_share",
    "floors",
    "registry",
    "share_of",
]


class Budget(ABC):
    """The base class of all budgets: a frozen value that decides from the scores of units which of them remain."""

    measured: ClassVar[bool] = False
    """Whether a decision writes files or reads times, and so takes long or depends on the machine."""

    @abstractmethod
    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """One boolean tensor per list, by its name: True for the units that remain. A choice must not bring back the
        units `gone`, and must keep at least `least` of each list; `Candidates.drop` does both.
        """

    @classmethod
    @abstractmethod
    def at(cls, share: float) -> Budget:
        """A budget of this kind that removes about this share, for sweeps over one number."""

    def apart(self, selection: Selection) -> dict[str, Budget] | None:
        """For each list, by its name, the budget that decides about it alone; None where lists compete.

        A list that is not named does not change. Scores are not read: they may be on the meta device. So a
        checkpoint can be pruned with one tensor in memory at a time.
        """
        return None

    def steps(self, schedule: Schedule) -> tuple[Budget, ...]:
        """The budgets of a schedule's rounds, the last of them this one."""
        if isinstance(schedule, OneShot):
            return (self,)
        if not dataclasses.is_dataclass(self) or "sparsity" not in {f.name for f in dataclasses.fields(self)}:
            raise OptionError(
                f"{self} names no sparsity a schedule could approach in rounds; leave schedule= out, or use "
                "PerTensor, Overall or PerLayer"
            )
        levels = schedule.levels(self.sparsity)
        return tuple(dataclasses.replace(self, sparsity=level) for level in levels)


BudgetLike = float | str | Budget | type[Budget]
"""Every form in which a budget is given: the share removed of every tensor, a word, a value, or a class."""

registry = Registry(__name__, __path__, "budget", base="secateur.budget:Budget", number="per_tensor")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
