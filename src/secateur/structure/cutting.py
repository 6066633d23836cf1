"""`cut`: a smaller copy of a model without what the masks drop, and its plan; the work of `shrink` without the proof.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
>>> cut(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x).plan.attributes
{'0': {'out_features': 4}, '2': {'in_features': 4}}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.errors import NothingToDoError
from secateur.execution.example import Training
from secateur.execution.fast_copy import collector_paused, copy_module, tensors_of
from secateur.structure.cut.attributes import set_config_field
from secateur.structure.cut.choose import dropped, dropped_lines, extended, rounded, staying
from secateur.structure.cut.fit import IN_TRAINING, fit
from secateur.structure.cut.plan import Kept, KnownIndices, ShrinkPlan, cut_tensor
from secateur.structure.depth.leaving import FewerLayers
from secateur.structure.groups.couplings import Structure, analyse, regroup
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.hf.configs import config_changes, fitted_config
from secateur.structure.trace.fixed_count_norms import COUNTED
from secateur.structure.trace.trace import Trace

__all__ = ["Cut", "CutOptions", "cut"]


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut model before its proof: `masks` are those the dense model must be masked with, `left` those that remain.

    `tried` is True where the cut forward was run and compared with the one before, operator by operator. `bypassed` are
    the blocks that are bypassed in the dense model. `recording` is the dense model's, where it was recorded whole.
    """

    model: nn.Module
    plan: ShrinkPlan
    masks: Masks
    left: Masks
    locked: tuple[Lock, ...]
    crossed: bool
    tried: bool = True
    unsaid: str = ""
    traced: str = "meta"
    macs: int = 0
    bypassed: tuple[str, ...] = ()
    recording: Trace | None = None


@dataclass(frozen=True)
class CutOptions:
    """How a model is cut: the options of `shrink`, and four more.

    `careful` runs the cut forward even where all sizes come from its tensors; `only` names the groups that may be cut.
    Without `rewrite` no forward is rewritten: channels stay that would make that necessary. `training` is what
    the cut model has to run with in training: True for the example, False for nothing.
    """

    coupling: str = "union"
    round_to: int | None = None
    at_least: int = 1
    across_norm: bool = False
    careful: bool = False
    only: Collection[str] | None = None
    rewrite: bool = True
    training: Training = True


@collector_paused()
def cut(
    model: nn.Module,
    masks: Masks,
    example: object,
    options: CutOptions | None = None,
    fewer: FewerLayers | None = None,
) -> Cut:
    """The work of `shrink` without the proof.

    Args:
        model: The model; it is not changed.
        masks: The masks.
        example: What the model is called with.
        options: How it is cut.
        fewer: The model without the blocks that the masks drop whole, where they drop any.
    """
    options = options or CutOptions()
    return (
        _cut_channels(model, masks, example, options)
        if fewer is None
        else _cut_both(model, fewer, example, options)
    )


def _cut_both(model: nn.Module, fewer: FewerLayers, example: object, options: CutOptions) -> Cut:
    """The model without some blocks, and without the channels that the masks drop in the rest."""
    done = None
    if fewer.masks is not None:
        try:
            done = _cut_channels(fewer.model, fewer.masks, example, options)
        except NothingToDoError:
            done = None
    if done is None:
        small, left = apply_plan(fewer.model, ShrinkPlan(keep={}), fewer.masks or _every_weight(fewer.model))
        masks = fewer.dense_masks(model, fewer.masks or left)
        macs = analyse(fewer.model, example, training=options.training).macs()
        return Cut(
            small, fewer.plan, masks, left, (), False, unsaid=fewer.unsaid, macs=macs, bypassed=fewer.bypassed
        )
    return replace(
        done,
        plan=fewer.plan.then(done.plan),
        masks=fewer.dense_masks(model, done.masks),
        unsaid=fewer.unsaid or done.unsaid,
        bypassed=fewer.bypassed,
        recording=None,
    )


def _every_weight(model: nn.Module) -> Masks:
    """Masks that keep all of one parameter, if no other mask remains."""
    name, parameter = next(iter(model.named_parameters()))
    return Masks({name: torch.ones_like(parameter, dtype=torch.bool)})


def _cut_channels(model: nn.Module, masks: Masks, example: object, options: CutOptions) -> Cut:
    """The model without the channels that the masks drop."""
    structure = analyse(model, example, across_norm=options.across_norm, training=options.training)
    lines = dropped_lines(structure, masks)
    if any(op.name in _ATTENTION for op in structure.trace.ops):
        structure = _structure_for_heads(structure, masks, model, example, options, lines)
    locks: list[Lock] = []
    alike: set[str] = set()
    uncut: set[str] = set()
    while True:
        gone = dropped(structure, masks, model, options.coupling, lines)
        gone = rounded(structure, gone, options.round_to, options.at_least)
        if options.only is not None:
            gone = {
                index: bits for index, bits in gone.items() if structure.groups[index].name in options.only
            }
        gone = staying(structure, gone, alike, uncut)
        if not any(bits.any() for bits in gone.values()):
            raise NothingToDoError(_nothing(structure, model, locks))
        alive = structure.alive({index: ~bits for index, bits in gone.items() if bits.any()})
        fitted = fit(structure, model, example, alive, options.careful, options.training)
        if not fitted.locks:
            rewritten = set() if options.rewrite else set(fitted.plan.rewrites)
            if not rewritten - uncut:
                break
            uncut |= rewritten & alike
            alike |= rewritten
            continue
        locks += fitted.locks
        structure = regroup(structure, fitted.locks)
    whole = extended(structure, masks, alive, model, lines)
    plan = fitted.plan
    small, left = apply_plan(model, plan, whole)
    unsaid = ""
    counts = any(item.function in COUNTED for items in plan.rewrites.values() for item in items)
    if hasattr(model, "save_pretrained") and counts:
        unsaid = "its configuration has no field for means with a fixed count"
    elif hasattr(model, "save_pretrained"):
        plan, unsaid = with_config(structure, model, small, plan, alive)
    crossed = bool(structure.follower.crossed)
    recorded = structure.trace
    return Cut(
        small,
        plan,
        whole,
        left,
        tuple(locks),
        crossed,
        fitted.tried,
        unsaid,
        recorded.mode,
        structure.macs(),
        recording=recorded,
    )


_ATTENTION = frozenset({*FUSED, "bmm", "baddbmm"})


def _structure_for_heads(
    structure: Structure,
    masks: Masks,
    model: nn.Module,
    example: object,
    options: CutOptions,
    lines: Mapping[tuple[str, int], np.ndarray],
) -> Structure:
    """The structure in which heads become smaller, if the masks drop positions within heads and no whole head. Both
    together are two cuts, heads first. If every line that the masks drop whole is removed already, smaller heads
    explain nothing more, and the model is not analysed again.
    """
    fewer = dropped(structure, masks, model, "union", lines)
    alive = structure.alive({index: ~bits for index, bits in fewer.items() if bits.any()})
    if not any((line & alive[structure.slots[place]]).any() for place, line in lines.items()):
        return structure
    sized = analyse(model, example, across_norm=options.across_norm, training=options.training, sizes=True)
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
        set_config_field(own, name, value)
    merged = {**plan.attributes.get("", {}), **{f"config.{name}": value for name, value in changes.items()}}
    return (replace(plan, attributes={**plan.attributes, "": merged}) if changes else plan), ""


def _nothing(structure: Structure, model: nn.Module, locks: list[Lock]) -> str:
    text = f"no channel of {type(model).__name__} can be removed: "
    if locks:
        text += "; ".join(lock.text() for lock in locks[:3])
        if any(lock.reason.startswith(IN_TRAINING) for lock in locks):
            text += "; a model that is never trained is cut with proof=sc.ProofOptions(training=False)"
        return text
    if not structure.groups:
        return text + "every axis is locked; sc.explain(model, example) says where and why"
    return text + (
        "none of its groups is dropped by all the layers that share it; prune with granularity='channel', which "
        "removes channels of a group together, or see sc.explain(model, example)"
    )


@torch.no_grad()
def apply_plan(model: nn.Module, plan: ShrinkPlan, masks: Masks) -> tuple[nn.Module, Masks]:
    """A copy of the model cut by the plan, with its remaining zeros masked, and the masks of the cut tensors."""
    memo: dict[int, object] = {}
    left: dict[str, torch.Tensor] = {}
    tensors = tensors_of(model)
    known: KnownIndices = {}
    for name, axes in plan.keep.items():
        memo[id(tensors[name])] = cut_tensor(tensors[name], axes, known)
    small = copy_module(model, memo)
    bare = replace(plan, keep={}, shapes={})
    bare.apply_(small)
    for name in masks:
        axes, lines = plan.keep.get(name, {}), masks.lines(name)
        if lines is not None and _leaves_whole(lines.axes, axes, known):
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


def _leaves_whole(lines: Mapping[int, torch.Tensor], axes: Mapping[int, Kept], known: KnownIndices) -> bool:
    """Whether everything that a mask drops is removed: nothing is masked on the kept positions of any axis."""
    return all(
        bool((cut_tensor(line, {0: axes[axis]}, known) if axis in axes else line).all())
        for axis, line in lines.items()
    )
