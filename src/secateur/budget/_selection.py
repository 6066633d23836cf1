"""The input of a budget: a `Selection` of `Candidates`, one for each list of competing units.

>>> import torch
>>> from secateur.core.units import Units
>>> candidates = Candidates(Units("fc.weight", 4, ()), scores=torch.tensor([3.0, 1.0, 1.0, 2.0]))
>>> candidates.drop(2)
tensor([ True, False, False,  True])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, TypeVar

import torch
from torch import nn

from secateur.budget._select import keep_highest
from secateur.core.context import Context
from secateur.core.masks import count_true
from secateur.core.targets import Pattern, Target, matches
from secateur.core.units import Units
from secateur.errors import BudgetNotMetError, OptionError, PatternError, near

__all__ = ["Candidates", "Chosen", "Compare", "Costs", "FileOptions", "Selection", "check_share", "share_of"]

T = TypeVar("T")

Compare = Callable[[Any, Any], Any]
"""What of a model's output is compared: a function of the output and of the inputs."""

Chosen = dict[str, torch.Tensor]
"""The result of a budget: by the list's name one bit per unit, True for those that remain."""


def check_share(what: str, value: object) -> float:
    """The share removed as a float.

    Args:
        what: The option's name, for the error.
        value: The value given for it.

    Raises:
        OptionError: The value is not a number with 0 <= share < 1.

    >>> check_share("sparsity", 50)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: sparsity is the share removed: expected a number with 0 <= sparsity < 1,
    got 50; for 50 % write 0.5
    """
    wanted = f"{what} is the share removed: expected a number with 0 <= {what} < 1, got {value!r}"
    if isinstance(value, str):
        raise OptionError(f"{wanted}, which is text; write the number without quotes")
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise OptionError(f"{wanted} of type {type(value).__name__}") from None
    if isinstance(value, bool) or math.isnan(share):
        raise OptionError(wanted)
    if share == 1.0:
        raise OptionError(f"{wanted}; that would remove everything")
    if 1.0 < share < 100.0:
        raise OptionError(f"{wanted}; for {share:g} % write {share / 100:g}")
    if not 0.0 <= share < 1.0:
        raise OptionError(wanted)
    return share


def share_of(share: float, count: int) -> int:
    """How many of `count` units a share is, rounded half to even. Every budget counts with this.

    >>> share_of(0.5, 5), share_of(0.5, 7), share_of(0.9, 4)
    (2, 4, 4)
    """
    return round(share * count)


@dataclass(frozen=True, eq=False)
class Candidates:
    """One list of competing units: the score of each, which are already removed, how many must remain.

    Args:
        units: The units and the tensors they cut.
        scores: The score of each unit, [units], finite.
        gone: [units], True where an earlier round removed the unit; None if none is removed.
        least: The floor: never fewer units than this remain.
        shapes: The shapes of the members' tensors, by name.
    """

    units: Units
    scores: torch.Tensor
    gone: torch.Tensor | None = None
    least: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the list: the parameter's, or the coupled group's."""
        return self.units.name

    @property
    def count(self) -> int:
        """How many units compete."""
        return self.units.count

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid that the units form; one line if nothing is known of it."""
        return self.units.grid or (self.count,)

    @property
    def removed(self) -> int:
        """How many of them are already removed."""
        return 0 if self.gone is None else count_true(self.gone)

    @property
    def most(self) -> int:
        """How many may be removed in total, above the floor."""
        return max(0, self.count - self.least)

    def going(self, share: float) -> int:
        """How many units a share of the list is. Of channels and heads one stays, as `explain` says and `shrink` does.

        Args:
            share: The share to remove.

        >>> from secateur.core.units import AxisMember
        >>> rows = AxisMember("fc.weight", axis=0, indices=torch.tensor([[0], [1]]))
        >>> Candidates(Units("fc", 2, (rows,)), torch.ones(2)).going(0.9)
        1
        """
        asked = share_of(share, self.count)
        return min(asked, self.count - 1) if self.units.of_channels else asked

    @property
    def ranked(self) -> torch.Tensor:
        """The scores, with the units already removed ordered before all others."""
        return self.scores if self.gone is None else self.scores.masked_fill(self.gone, -math.inf)

    def sizes(self) -> torch.Tensor:
        """How many weights each unit has, over all tensors it cuts."""
        total = torch.zeros(self.count, dtype=torch.int64)
        for member in self.units.members:
            shape = self.shapes[member.name]
            exact = getattr(member, "sizes", None)
            if exact is not None:
                total += exact(shape)
            else:
                total += member.gather(torch.empty(shape, device="meta")).shape[1]
        return total

    def drop(self, count: int) -> torch.Tensor:
        """True for all units but the `count` with the lowest scores; respects the floor and brings none back."""
        removed = self.removed
        return keep_highest([self.ranked], max(removed, min(count, self.most)))[0]

    def floored(self, keep: torch.Tensor) -> torch.Tensor:
        """A choice made by threshold, without the units already removed and with at least the floor."""
        if self.gone is not None:
            keep = keep & ~self.gone
        removed = self.count - count_true(keep)
        return keep if removed <= self.most else self.drop(self.most)


class FileOptions(TypedDict, total=False):
    """How a file is written whose bytes are counted: `bits` of `share`, `precision` and `batch_norm` of `save`."""

    bits: int | None
    precision: str | None
    batch_norm: str | int | None


class Costs(Protocol):
    """The costs that a budget may ask for; the verb that makes the selection provides them."""

    def dense(self, of: str) -> float:
        """The cost of the whole model: "macs", "params", or the "bytes" of its tensors."""
        ...

    def remaining(self, of: str, chosen: Mapping[str, torch.Tensor]) -> float:
        """The remaining "macs" or "params" under a choice."""
        ...

    def change(self, chosen: Mapping[str, torch.Tensor], compare: Compare | None = None) -> float:
        """How far the outputs of the shrunk model are from the dense model's: the error's share of their squares."""
        ...

    def coded_bytes(self, chosen: Mapping[str, torch.Tensor], options: FileOptions) -> int:
        """Bytes of the file really written for the model under a choice."""
        ...

    def time(
        self, chosen: Mapping[str, torch.Tensor], repetitions: int, threads: int | None, again: bool = False
    ) -> tuple[float, float]:
        """(milliseconds, share of the dense model's time) of the shrunk model, both measured in turns."""
        ...


@dataclass(frozen=True, eq=False)
class Selection:
    """Everything that a budget may read: the lists of candidates, and the model they are cut from.

    Args:
        candidates: The lists of competing units, in the model's order.
        model: The model, unchanged.
        targets: The weights that take part.
        context: The data, loss, example and seed of the call.
        costs: Makes the costs of choices, for budgets on a remaining cost.
    """

    candidates: tuple[Candidates, ...]
    model: nn.Module
    targets: Sequence[Target] = ()
    context: Context = field(default_factory=Context)
    costs: Callable[[], Costs] | None = None

    @property
    def count(self) -> int:
        """How many units compete in all."""
        return sum(candidates.count for candidates in self.candidates)

    def weights(self, candidates: Candidates) -> torch.Tensor:
        """The weights a list scores, as one flat tensor."""
        names = [member.name for member in candidates.units.members if member.scored]
        flat = [self.model.get_parameter(name).detach().reshape(-1) for name in dict.fromkeys(names)]
        return flat[0] if len(flat) == 1 else torch.cat([part.to(flat[0].device) for part in flat])

    def matching(self, pattern: Pattern, option: str) -> list[Candidates]:
        """The lists that a pattern matches, by layer, parameter, module type or group; raises if there is none."""
        found = [candidates for candidates in self.candidates if self._means(pattern, candidates)]
        if found:
            return found
        shown = pattern.__name__ if isinstance(pattern, type) else str(pattern)
        known = {candidates.name for candidates in self.candidates}
        known |= {
            name.rpartition(".")[0] for candidates in self.candidates for name in self._owners(candidates)
        }
        raise PatternError(
            f"{option}: pattern {shown!r} matches no layer that is being pruned: "
            f"{near(shown.removeprefix('type:'), known - {''})}"
        )

    def table(self, values: Sequence[tuple[Pattern, T]], option: str) -> dict[str, T]:
        """The value of each list that a table of patterns matches; of two matches, the later holds."""
        found: dict[str, T] = {}
        for pattern, value in values:
            for candidates in self.matching(pattern, option):
                found[candidates.name] = value
        return found

    def _means(self, pattern: Pattern, candidates: Candidates) -> bool:
        if pattern == candidates.name:
            return True
        for name in self._owners(candidates):
            layer = name.rpartition(".")[0]
            if matches(pattern, layer, name, self.model.get_submodule(layer)):
                return True
        return False

    def check_not_past(self, candidates: Candidates, asked: int, budget: object) -> None:
        """Raise if more units than asked for are already removed: masks only grow."""
        if candidates.removed > asked:
            raise BudgetNotMetError(
                f"{budget} removes {asked} of the {candidates.count} units of {candidates.name!r}, but the masks given "
                f"have already removed {candidates.removed} and masks only grow; ask for a sparsity of at least "
                f"{candidates.removed / candidates.count:.4g}, or pass regrow=True"
            )

    def _owners(self, candidates: Candidates) -> list[str]:
        """The parameters by which a list is named: those it cuts along their outputs, else all it scores."""
        outputs = {target.name: target.out_axis for target in self.targets}
        scored = [member for member in candidates.units.members if member.scored]
        own = [m.name for m in scored if getattr(m, "axis", None) == outputs.get(m.name, 0)]
        return own or [member.name for member in scored]
