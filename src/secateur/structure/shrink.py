"""`shrink`: channels that were pruned really leave the model, and the proof says that it computes the same.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)).eval()
>>> x = torch.randn(2, 3, 4, 4)
>>> masks = sc.prune(model, granularity="channel", budget=0.5, example=x)
>>> small = sc.shrink(model, masks, x)
>>> small.model[0], small.proof.holds
(Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), True)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.errors import NothingToDoError, OptionError, ProofError
from secateur.execution.fast_copy import collector_paused, copy_module, tensors_of
from secateur.structure.cut.choose import dropped, dropped_lines, extended, rounded
from secateur.structure.cut.fit import fit
from secateur.structure.cut.fixed_count_norms import COUNTED
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor, set_attribute
from secateur.structure.explain import Explanation, explained
from secateur.structure.groups.couplings import Structure, analyse, regroup
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.hf.configs import config_changes, fitted_config
from secateur.structure.proof import Proof, prove
from secateur.structure.shrunk_files import carry_optimizer, load_shrunk, reestimate_batch_norm, save_shrunk

__all__ = ["Shrunk", "explain", "load_shrunk", "reestimate_batch_norm", "shrink"]


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller model, the proof that it computes what the masked one did, and the plan that made it.

    `masks` are what is left of the masks on the smaller tensors: zeros that no channel took along. `locked` says what
    was asked to leave and could not, and why. `unsaid` says why the configuration of a Hugging Face model cannot tell
    what left: such a model is loaded with its plan, not with `from_pretrained`.
    """

    model: nn.Module
    proof: Proof
    plan: ShrinkPlan
    masks: Masks
    locked: tuple[Lock, ...] = ()
    unsaid: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights and the plan as one safetensors file; `load_shrunk(path, into=fresh_model)` reads it."""
        save_shrunk(self.model, self.plan, path)

    def carry(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model before, for this one, with its state cut alike."""
        return carry_optimizer(optimizer, model, self.model, self.plan)

    def __str__(self) -> str:
        before = sum(int(np.prod(shape)) for shape in self.plan.shapes.values())
        lines = [
            f"{type(self.model).__name__}: {self.proof}",
            f"{len(self.plan.keep)} tensors cut ({before:,} elements before)",
        ]
        lines += [
            f"kept whole at {lock.path or 'the model'}: {lock.reason} [{lock.operator}]"
            for lock in self.locked
        ]
        if self.unsaid:
            lines.append(f"not for from_pretrained: {self.unsaid}; use save() and load_shrunk()")
        return "\n".join(lines)


def explain(
    model: nn.Module,
    example: Any,
    budget: float | None = None,
    *,
    across_norm: bool = False,
    head_size: bool = False,
) -> Explanation:
    """Every group that can be cut, every locked axis and why, and what a budget would remove. Nothing is touched.

    With `head_size` attention heads are seen as becoming smaller, not fewer, as granularity "head_size" cuts them.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = explain(model, torch.zeros(1, 4), budget=0.5)
    >>> [(row.name, row.count) for row in found.groups]
    [('0', 8)]
    """
    return explained(analyse(model, example, across_norm=across_norm, sizes=head_size), model, budget)


def shrink(
    model: nn.Module,
    masks: Masks,
    example: Any,
    *,
    coupling: str = "union",
    round_to: int | None = None,
    at_least: int = 1,
    tolerance: float = 1e-9,
    across_norm: bool = False,
) -> Shrunk:
    """Cut out of a copy of the model what the masks remove from every tensor that knows of it.

    `coupling="union"` takes masks chosen in any way: a channel leaves when all layers that put it out dropped it (or
    all that take it in); the other zeros stay as zeros. `coupling="coupled"` expects masks that agree on every member
    of a group, as granularity "channel" makes them, and raises where they do not. `round_to` keeps widths at a
    multiple, `at_least` is the least number of units of a group that stay. The model itself is never changed.
    """
    _check_options(coupling, round_to, at_least, tolerance)
    masks.check(model)

    def proven(careful: bool, only: Collection[str] | None = None) -> tuple[Cut, Proof]:
        done = cut(model, masks, example, coupling, round_to, at_least, across_norm, careful, only)
        try:
            return done, prove(model, done.model, done.masks, example, tolerance, not done.crossed, done.plan)
        except ProofError:
            if done.tried:
                raise
        return proven(True, only)  # the forward was not as plain as it looked

    try:
        done, proof = proven(careful=False)
    except ProofError as failure:
        raise ProofError(f"{failure}{_culprits(model, example, across_norm, proven)}") from failure
    return Shrunk(done.model, proof, done.plan, done.left, done.locked, done.unsaid)


def _culprits(
    model: nn.Module, example: Any, across_norm: bool, proven: Callable[[bool, Collection[str]], Any]
) -> str:
    """Which group breaks the proof when it is cut alone, as the end of an error's text."""

    def breaks(names: Sequence[str]) -> bool:
        try:
            proven(False, frozenset(names))
        except ProofError:
            return True
        except NothingToDoError:
            pass
        return False

    groups = analyse(model, example, across_norm=across_norm).groups
    suspects = list(dict.fromkeys(group.name for group in groups))
    while len(suspects) > 1:
        half = len(suspects) // 2
        part = next((part for part in (suspects[:half], suspects[half:]) if breaks(part)), None)
        if part is None:
            return f" No half of the groups {', '.join(map(repr, suspects[:8]))} breaks it by itself"
        suspects = part
    slots = [slot for group in groups if group.name in suspects for slot in group.slots]
    layers = dict.fromkeys(slot.name.rpartition(".")[0] or slot.name for slot in slots)
    return f" Cut alone, group {suspects[0]!r} breaks it: its channels are shared by {', '.join(layers)}"


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut model before its proof: `masks` are those the dense model must be masked with, `left` those that remain.

    `tried` says that the cut forward was run and compared with the one before, operator by operator.
    """

    model: nn.Module
    plan: ShrinkPlan
    masks: Masks
    left: Masks
    locked: tuple[Lock, ...]
    crossed: bool
    tried: bool = True
    unsaid: str = ""


@collector_paused()
def cut(
    model: nn.Module,
    masks: Masks,
    example: Any,
    coupling: str = "union",
    round_to: int | None = None,
    at_least: int = 1,
    across_norm: bool = False,
    careful: bool = False,
    only: Collection[str] | None = None,
) -> Cut:
    """Everything `shrink` does but the proof.

    `careful` runs the cut forward even where nothing could upset it; `only` names the groups that may be cut.
    """
    structure = analyse(model, example, across_norm=across_norm)
    lines = dropped_lines(structure, masks)
    if any(op.name in _ATTENTION for op in structure.trace.ops):
        structure = _heads_as_meant(structure, masks, model, example, across_norm, lines)
    locks: list[Lock] = []
    while True:
        gone = dropped(structure, masks, model, coupling, lines)
        gone = rounded(structure, gone, round_to, at_least)
        if only is not None:
            gone = {index: bits for index, bits in gone.items() if structure.groups[index].name in only}
        if not any(bits.any() for bits in gone.values()):
            raise NothingToDoError(_nothing(structure, model, locks))
        alive = structure.alive({index: ~bits for index, bits in gone.items() if bits.any()})
        fitted = fit(structure, model, example, alive, careful)
        if not fitted.locks:
            break
        locks += fitted.locks
        structure = regroup(structure, fitted.locks)
    whole = extended(structure, masks, alive, model, lines)
    plan = fitted.plan
    small, left = apply_plan(model, plan, whole)
    unsaid = ""
    counts = any(item.function in COUNTED for items in plan.rewrites.values() for item in items)
    if hasattr(model, "save_pretrained") and counts:
        unsaid = "its configuration has no field for means that count what left"
    elif hasattr(model, "save_pretrained"):
        plan, unsaid = with_config(structure, model, small, plan, alive)
    crossed = bool(structure.follower.crossed)
    return Cut(small, plan, whole, left, tuple(locks), crossed, fitted.tried, unsaid)


_ATTENTION = frozenset({*FUSED, "bmm", "baddbmm"})


def _heads_as_meant(
    structure: Structure,
    masks: Masks,
    model: nn.Module,
    example: Any,
    across_norm: bool,
    lines: Mapping[tuple[str, int], np.ndarray],
) -> Structure:
    """The structure in which heads become smaller, where the masks mean that and no head leaves.

    Both together are two cuts, heads first. Where no line that the masks drop whole would stay, there is nothing
    that smaller heads could explain, and the model is not analysed again.
    """
    fewer = dropped(structure, masks, model, "union", lines)
    alive = structure.alive({index: ~bits for index, bits in fewer.items() if bits.any()})
    if not any((line & alive[structure.slots[place]]).any() for place, line in lines.items()):
        return structure
    sized = analyse(model, example, across_norm=across_norm, sizes=True)
    smaller = dropped(sized, masks, model, "union", lines)
    meant = any(smaller[group.index].any() for group in sized.groups if group.within)
    heads_leave = any(fewer[group.index].any() for group in structure.groups if group.heads)
    return sized if meant and not heads_leave else structure


def with_config(
    structure: Structure, model: nn.Module, small: nn.Module, plan: ShrinkPlan, alive: np.ndarray
) -> tuple[ShrinkPlan, str]:
    """Set the shrunk model's configuration where one describes it, and put that into the plan; else why not."""
    widths = set()
    for group in structure.groups:
        left = int(alive[group.classes].sum())
        if left < group.count:
            times = max(1, group.within)
            widths |= {(group.count, left), (group.count * times, left * times)}
            widths |= {(slot.positions.size, left * slot.positions.shape[1]) for slot in group.slots}
            queries = {slot.positions.shape[1] for slot in group.slots}
            widths |= {(group.count * a // b, left * a // b) for a in queries for b in queries if a > b}
    config, unsaid = fitted_config(model, small, widths)
    if config is None:
        return plan, unsaid
    changes = config_changes(model.config, config)
    own: Any = small.config
    # One object may serve all modules of a model, which was copied with it.
    for name, value in changes.items():
        set_attribute(own, name, value)
    merged = {**plan.attributes.get("", {}), **{f"config.{name}": value for name, value in changes.items()}}
    return (replace(plan, attributes={**plan.attributes, "": merged}) if changes else plan), ""


def _check_options(coupling: str, round_to: int | None, at_least: int, tolerance: float) -> None:
    if coupling not in ("union", "coupled"):
        raise OptionError(f"coupling: expected 'union' or 'coupled', got {coupling!r}")
    if round_to is not None and round_to < 1:
        raise OptionError(f"round_to: expected a positive multiple such as 8, got {round_to!r}")
    if at_least < 1:
        raise OptionError(f"at_least: expected at least 1 unit a group, got {at_least!r}")
    if not tolerance > 0:
        raise OptionError(f"tolerance: expected a positive number, got {tolerance!r}")


def _nothing(structure: Structure, model: nn.Module, locks: list[Lock]) -> str:
    text = f"no channel of {type(model).__name__} can leave: "
    if locks:
        return text + "; ".join(f"{lock.path or 'the model'}: {lock.reason}" for lock in locks[:3])
    if not structure.groups:
        return text + "every axis is locked; sc.explain(model, example) says where and why"
    return text + (
        "none of its groups is dropped by all the layers that share it; prune with "
        "granularity='channel', which lets groups "
        "choose together, or look at sc.explain(model, example)"
    )


@torch.no_grad()
def apply_plan(model: nn.Module, plan: ShrinkPlan, masks: Masks) -> tuple[nn.Module, Masks]:
    """A copy of the model cut by the plan and masked where zeros stay, and the masks of what is left."""
    memo: dict[int, Any] = {}
    left: dict[str, torch.Tensor] = {}
    tensors = tensors_of(model)
    known: dict[Any, torch.Tensor] = {}
    for name, axes in plan.keep.items():
        memo[id(tensors[name])] = cut_tensor(tensors[name], axes, known)
    small = copy_module(model, memo)
    bare = replace(plan, keep={}, shapes={})
    bare.apply_(small)
    for name in masks:
        axes, told = plan.keep.get(name, {}), masks.lines(name)
        if told is not None and _leaves_whole(told.axes, axes, known):
            continue
        rest = cut_tensor(masks[name], axes, known) if axes else masks[name]
        if not bool(rest.all()):
            left[name] = rest
            target = small.get_parameter(name)
            target.masked_fill_(~rest.to(target.device), 0.0)
    if not left:
        name = next(iter(masks))
        left[name] = torch.ones_like(small.get_parameter(name), dtype=torch.bool)
    return small, Masks(left)


def _leaves_whole(
    lines: Mapping[int, torch.Tensor], axes: Mapping[int, Any], known: dict[Any, torch.Tensor]
) -> bool:
    """Whether all that a mask drops leaves: nothing is masked on the kept positions of any axis."""
    return all(
        bool((cut_tensor(line, {0: axes[axis]}, known) if axis in axes else line).all())
        for axis, line in lines.items()
    )
