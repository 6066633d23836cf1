"""A trial cut: it finds, before anything is chosen, the groups that a cut would lock. Some widths are hard-coded in a
forward in a way that no attribute and no rewrite can repair, which shows only when the cut forward is recorded. The
trial cuts half of every group, as `shrink` would, and locks whole groups where that does not run. The remaining groups
are those that `prune` offers, `explain` reports, and `shrink` cuts.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.groups.couplings import analyse
>>> model, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(1, 2)
>>> [group.name for group in without_locked(analyse(model, x), model, x).groups]
['0']
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from secateur.execution.example import Training, own_call
from secateur.execution.fast_copy import collector_paused
from secateur.structure.cut.branches import training_branch
from secateur.structure.cut.fit import fit
from secateur.structure.cut.needs_rerun import runs_unchanged
from secateur.structure.groups.couplings import Structure, regroup
from secateur.structure.groups.grouping import Group
from secateur.structure.groups.labels import Lock

__all__ = ["without_locked"]

_ROUNDS = 20
_KNOWN: weakref.WeakKeyDictionary[Structure, dict[tuple[str, object], Structure]] = (
    weakref.WeakKeyDictionary()
)


def without_locked(
    structure: Structure,
    model: nn.Module,
    example: object,
    wanted: Callable[[Group], bool] = lambda group: True,
    which: str = "all",
    training: Training = True,
) -> Structure:
    """The structure with those groups locked that a cut could not take.

    Args:
        structure: The groups and locks that the labels give.
        model: The model; it is not changed.
        example: The input that its forward is recorded on.
        wanted: Which groups to cut in the trial.
        which: The name of this choice; one trial is made for each name.
        training: What the model is called with in training, where the cut one has to run too; False for never.

    Returns:
        The same structure where nothing is locked, else one with more locks and fewer groups.
    """
    known = _KNOWN.setdefault(structure, {})
    key = which, "own call" if own_call(training) else training
    if key not in known:
        with collector_paused():
            found = _tried(structure, model, example, wanted, training)
        known[key] = found
    return known[key]


def _tried(
    structure: Structure,
    model: nn.Module,
    example: object,
    wanted: Callable[[Group], bool],
    training: Training,
) -> Structure:
    for _ in range(_ROUNDS):
        halves = {
            group.index: _half(group) for group in structure.groups if group.count > 1 and wanted(group)
        }
        if not halves:
            break
        alive = structure.alive(halves)
        heads = any(group.heads for group in structure.groups)  # their layers are rewritten by the plan
        trains = training_branch(structure.trace, model, example, training) is None
        if trains and not heads and runs_unchanged(structure, model, alive):
            break
        fitted = fit(structure, model, example, alive, False, training)
        if not fitted.locks:
            break
        structure = regroup(structure, [_whole(structure, lock) for lock in fitted.locks])
    return structure


def _half(group: Group) -> np.ndarray:
    """One flag per unit: as many remain as a budget of a half keeps, in places without a pattern, as those of masks."""
    left = group.count - min(round(group.count / 2), group.count - 1)
    return np.random.default_rng((group.count, group.index)).permutation(group.count) < left


def _whole(structure: Structure, lock: Lock) -> Lock:
    """The lock for all units of the groups that it holds units of."""
    classes = np.unique(structure.classes[lock.labels])
    held = [group.classes for group in structure.groups if np.isin(group.classes, classes).any()]
    return replace(lock, labels=np.unique(np.concatenate([lock.labels, *held])))
