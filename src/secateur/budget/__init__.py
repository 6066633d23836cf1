"""Who competes with whom, and how many go? One file per budget; the file name is the word used in recipes.

A budget sees a `Selection`: one `Candidates` of competing units per tensor (or per coupled group), each with the
worth of its units. It answers with one boolean tensor per pool, True for the units that stay.

>>> import torch
>>> from torch import nn
>>> from secateur.core.units import Units
>>> pool = Candidates(Units("fc.weight", 4, ()), torch.tensor([3.0, 1.0, 4.0, 2.0]))
>>> registry.make(0.5).choose(Selection((pool,), nn.Identity()))
{'fc.weight': tensor([ True, False,  True, False])}
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from secateur.budget._contest import Candidates, Selection, check_share, share_of
from secateur.core.schedule import OneShot, Schedule
from secateur.errors import OptionError
from secateur.registry import Registry

__all__ = ["Budget", "Candidates", "Selection", "check_share", "registry", "share_of"]


class Budget(ABC):
    """What every budget is: a frozen value that turns the worth of units into which of them stay."""

    measured: ClassVar[bool] = False
    """Whether every decision writes real files or reads real times, and so takes long or depends on the machine."""

    @abstractmethod
    def choose(self, contest: Selection) -> dict[str, torch.Tensor]:
        """One boolean tensor per pool, by its name: True for the units that stay.

        A choice must leave the units `gone` gone and keep at least `least` of each pool; `Candidates.drop` does
        both.
        """

    @classmethod
    @abstractmethod
    def at(cls, share: float) -> Budget:
        """A budget of this kind that removes about this share: what sweeps over one number use."""

    def steps(self, schedule: Schedule) -> tuple[Budget, ...]:
        """The budgets of a schedule's rounds, the last of them this one."""
        if isinstance(schedule, OneShot):
            return (self,)
        if not dataclasses.is_dataclass(self) or "sparsity" not in {f.name for f in dataclasses.fields(self)}:
            raise OptionError(
                f"{self} names no sparsity a schedule could approach in rounds; leave schedule= out, or use "
                "PerTensor, Overall or PerLayer"
            )
        levels = schedule.levels(self.sparsity)  # type: ignore[attr-defined]
        return tuple(dataclasses.replace(self, sparsity=level) for level in levels)  # type: ignore[misc]


registry = Registry(__name__, __path__, "budget", base="secateur.budget:Budget", number="per_tensor")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)
