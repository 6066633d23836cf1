"""Channel: a channel is cut as one unit from every tensor it is in, so that `shrink` can remove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from secateur.core.context import Context
from secateur.core.targets import Target, select
from secateur.core.units import AxisMember, Units
from secateur.core.wrapped_layers import adapters_of
from secateur.errors import DataError, NothingToDoError, OptionError
from secateur.execution.example import first_example
from secateur.granularity import Granularity
from secateur.structure.cut.trial import without_locked
from secateur.structure.explain import layer_names, own_weights
from secateur.structure.groups.couplings import Group, Structure, analyse
from secateur.structure.groups.labels import Lock, fold_first
from secateur.structure.groups.rules import LAYERS
from secateur.structure.groups.rules.conv import TAPS

__all__ = ["Channel", "coupled_units"]


@dataclass(frozen=True)
class Channel(Granularity):
    """One unit per coupled channel: filters, biases, norms and the slices of the layers that it is an input of.

    Attributes:
        scored: The weights that score a channel: "all" tensors of the group, or only those that it is an "out"put of.
        across_norm: Cut through layer norms as well, after which no equality holds.
        combine: How several tensors give one score: "sum" takes all their weights as one unit, "mean" and "max" those
            of the scores in each tensor by itself.
        heads: Whether attention heads are cut as well.

    >>> from secateur.core.targets import select
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    >>> units = Channel().units(model, select(model), Context(example=torch.zeros(1, 3, 3, 3)))
    >>> [(u.name, u.count, [m.name for m in u.members]) for u in units]
    [('0', 8, ['0.weight', '0.bias', '1.weight', '1.bias', '3.weight'])]
    """

    needs_example: ClassVar[bool] = True

    scored: str = "all"
    across_norm: bool = False
    combine: str = "sum"
    heads: bool = True

    def __post_init__(self) -> None:
        check_scoring(self.scored, self.combine)

    @property
    def _which(self) -> str:
        return "all" if self.heads else "all but heads"

    def own_weights(self, model: nn.Module, context: Context) -> tuple[str, ...]:
        """Weights that a module keeps as parameters of its own."""
        return weights_beside_layers(model, context, self.across_norm, which=self._which)

    def left_out(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[str, ...]:
        """Matrices that can be cut and are parameters of a module of its own, such as those of experts."""
        found = structure_of(model, context, self.across_norm, which=self._which)
        aliases, added = found.trace.aliases, adapters_of(model)
        names = {aliases.get(target.name, target.name) for target in targets}
        bare = {
            slot.name
            for group in found.groups
            if group.count > 1
            and _CHOICES[self._which](group)
            and not any(s.name in names for s in group.slots)
            for slot in group.slots
            if found.trace.parameters[slot.name].role == "parameter"
        }
        return tuple(name for name in found.trace.parameters if name in bare and name not in added)

    def units(self, model: nn.Module, targets: Sequence[Target], context: Context) -> tuple[Units, ...]:
        """One list per group of channels that choose together."""
        which = self._which
        found = structure_of(model, context, self.across_norm, which=which)
        groups = [group for group in found.groups if _CHOICES[which](group)]
        units = coupled_units(model, found, targets, groups, self.scored, self.combine)
        if not units:
            first = _foremost(found.locked())
            raise NothingToDoError(
                f"no channel of {type(model).__name__} can be removed: {first}; sc.explain(model, example) says where "
                "every axis is locked and why"
            )
        return units


def _foremost(locks: Sequence[Lock]) -> str:
    """The reason to name first: one from inside the model before those of its inputs and outputs."""
    by_kind: dict[int, str] = {}
    for lock in locks:
        if lock.reason == TAPS:
            continue
        text = (
            f"{lock.reason} ({lock.operator} in {lock.path or 'the model'}){fold_first(lock.path)}"
            if lock.operator
            else lock.reason
        )
        meets = "cannot be cut" in lock.reason
        # an input has no channels to remove
        edge = lock.operator == "output" or (meets and lock.operator in LAYERS)
        by_kind.setdefault(2 if edge else int(meets), text)
    return by_kind[min(by_kind)] if by_kind else "no layer of the targets takes its channels from another"


def weights_beside_layers(
    model: nn.Module, context: Context, across_norm: bool = False, sizes: bool = False, which: str = "all"
) -> tuple[str, ...]:
    """The parameters that operators take as weights, in groups of which no layer is known; see `structure_of`.

    Args:
        model: The model.
        context: Has the example or the data.
        across_norm: Follow channels through normalisations that mix them.
        sizes: Attention heads become smaller instead of fewer.
        which: The groups that are asked for, by a name of `_CHOICES`.
    """
    found = structure_of(model, context, across_norm, sizes, which)
    groups = [group for group in found.groups if _CHOICES[which](group)]
    own = own_weights(found, groups, layer_names(found, model), adapters_of(model))
    return tuple(name for name in found.trace.parameters if name in own)


def check_scoring(scored: str, combine: str) -> None:
    """Raise an `OptionError` where an option of how units are scored is unknown."""
    if scored not in ("all", "out"):
        raise OptionError(f"scored: expected 'all' or 'out', got {scored!r}")
    if combine not in ("sum", "mean", "max"):
        raise OptionError(f"combine: expected 'sum', 'mean' or 'max', got {combine!r}")


_CHOICES: dict[str, Callable[[Group], bool]] = {
    "all": lambda group: True,
    "all but heads": lambda group: not group.heads,
    "heads": lambda group: group.heads,
    "sizes of heads": lambda group: bool(group.within),
}


def structure_of(
    model: nn.Module,
    context: Context,
    across_norm: bool = False,
    sizes: bool = False,
    which: str = "all",
) -> Structure:
    """Follow the model on the call's example, or on the first batch of its data, and lock axes that cannot be cut.

    Args:
        model: The model.
        context: Has the example or the data.
        across_norm: Follow channels through normalisations that mix them.
        sizes: Attention heads become smaller instead of fewer.
        which: The groups that are asked for, by a name of `_CHOICES`.

    Raises:
        DataError: There is no example.
    """
    key = ("structure", across_norm, sizes, which)
    of, known = context.memory.get(key, (None, None))
    if of is model:
        return known
    example = context.example
    if example is None:
        example = first_example(context.data, model=model)
    if example is None:
        raise DataError(
            "granularity channel follows the channels through the model: pass example= (one input)"
        )
    training = context.training
    found = analyse(model, example, across_norm=across_norm, training=training, sizes=sizes)
    found = without_locked(found, model, example, _CHOICES[which], which, training)
    context.memory[key] = model, found
    return found


def written_width(found: Structure) -> str:
    """Why the cut forward of the first group did not run, as part of an error's text; empty where all of them ran."""
    reasons = [lock.reason for lock in found.labels.locks if lock.reason.startswith("the forward ")]
    return f": {reasons[0]}" if reasons else ""


def coupled_units(
    model: nn.Module,
    found: Structure,
    targets: Sequence[Target],
    groups: Sequence[Group],
    scored: str = "all",
    combine: str = "sum",
) -> tuple[Units, ...]:
    """Turn groups into lists of units, where the targets name every layer whose outputs the channels are.

    Args:
        model: The model.
        found: Its structure.
        targets: The parameters that may be cut.
        groups: The groups of the structure to take.
        scored: The weights that a unit is scored by: "all" tensors of the group, or only those that it is an "out"put
            of.
        combine: How the scores of several tensors become one: "sum", "mean" or "max".

    Returns:
        One list of units for each group that the targets ask for and allow.
    """
    aliases = found.trace.aliases
    names = {aliases.get(target.name, target.name) for target in targets}
    every = _EveryTarget(model, aliases)
    units: list[Units] = []
    taken: dict[str, int] = {}
    for group in groups:
        if group.count < 2 or not _asked_for(group, names, every):
            continue
        number = taken[group.name] = taken.get(group.name, -1) + 1
        name = f"{group.name}#{number}" if number else group.name
        units.append(Units(name, group.count, _members(found, group, names, scored), combine=combine))
    return tuple(units)


class _EveryTarget:
    """The parameters that a call which names none would cut; looked up only where a group needs it."""

    def __init__(self, model: nn.Module, aliases: Mapping[str, str]):
        self.model, self.aliases = model, aliases

    @cached_property
    def names(self) -> set[str]:
        """Their names, tied parameters under their first one."""
        try:
            targets = select(self.model)
        except NothingToDoError:
            return set()
        return {self.aliases.get(target.name, target.name) for target in targets}


def _asked_for(group: Group, names: set[str], every: _EveryTarget) -> bool:
    """Whether the targets hold all layers whose outputs are the group's channels, except those never cut by default."""
    producers = [slot for slot in group.slots if slot.role == "out"]
    missing = [slot for slot in producers if slot.name not in names]
    if missing and any(slot.name in every.names for slot in missing):
        return False
    present = [slot for slot in producers if slot.name in names]
    return any(slot.name in names for slot in present or group.slots)


def _members(found: Structure, group: Group, names: set[str], scored: str) -> tuple[AxisMember, ...]:
    """The slices of a group, parameter by parameter."""
    return tuple(
        AxisMember(
            slot.name,
            slot.axis,
            torch.from_numpy(slot.positions.copy()),
            scored=slot.name in names and (scored == "all" or slot.role == "out"),
        )
        for slot in group.slots
        if found.trace.parameters[slot.name].role == "parameter"
        and (slot.name, slot.axis) not in found.follower.unmasked
    )
