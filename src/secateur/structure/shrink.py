"""`shrink`: remove pruned channels from a model and prove the result equal; `explain`: list what it can remove.

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.errors import NothingToDoError, OptionError, ProofError
from secateur.execution.fast_copy import collector_paused, copy_module, tensors_of
from secateur.execution.verb import verb
from secateur.structure.cut.attributes import set_config_field
from secateur.structure.cut.choose import dropped, dropped_lines, extended, rounded
from secateur.structure.cut.fit import fit
from secateur.structure.cut.plan import Kept, KnownIndices, ShrinkPlan, cut_tensor
from secateur.structure.cut.trial import without_locked
from secateur.structure.depth.leaving import FewerLayers, without_blocks
from secateur.structure.explain import cut_by_default, default_names, explained, layer_rows
from secateur.structure.explanation import Explanation
from secateur.structure.groups.couplings import Structure, analyse, regroup
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.hf.configs import config_changes, fitted_config
from secateur.structure.proof import Proof, ProofLike, ProofOptions, as_proof_options
from secateur.structure.proving import DenseRun, ShapeProofError, prove
from secateur.structure.shrunk_files import carry_optimizer, load_shrunk, reestimate_batch_norm, save_shrunk
from secateur.structure.trace.fixed_count_norms import COUNTED
from secateur.structure.trace.trace import trace

__all__ = ["Shrunk", "explain", "load_shrunk", "reestimate_batch_norm", "shrink"]


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller model, the proof that it computes what the masked one did, and the plan that made it.

    Attributes:
        model: The smaller model, of the same class.
        proof: How far its outputs are from those of the masked model.
        plan: The cut as plain data; it cuts any freshly built model of the same class. masks: The masks of the smaller
            tensors: zeros within the remaining channels. locked: Channels that the masks drop and the structure keeps,
            and why.
        unsaid: Why the configuration of a Hugging Face model cannot describe the new widths; empty where it can. Such
            a model is loaded with its plan, not with `from_pretrained`.
    """

    model: nn.Module
    proof: Proof
    plan: ShrinkPlan
    masks: Masks
    locked: tuple[Lock, ...] = ()
    unsaid: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights and the plan as one safetensors file; `load_shrunk(path, into=fresh_model)` reads it.

        Args:
            path: The file to write.
        """
        save_shrunk(self.model, self.plan, path)

    def carry(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer for the smaller model, with the state of the previous one, cut like the weights.

        Args:
            optimizer: The optimizer of the model before.
            model: That model.

        Returns:
            A new optimizer of the same class and options.
        """
        return carry_optimizer(optimizer, model, self.model, self.plan)

    def __str__(self) -> str:
        before = sum(int(np.prod(shape)) for shape in self.plan.shapes.values())
        lines = [
            f"{type(self.model).__name__}: {self.proof}",
            f"{len(self.plan.keep)} tensors cut ({before:,} elements before)",
        ]
        lines += [
            f"layers kept of {container or 'the model'}: {', '.join(keys) or 'none'}"
            for container, keys in self.plan.layers.items()
        ]
        lines += [
            f"kept whole at {lock.path or 'the model'}: {lock.reason} [{lock.operator}]"
            for lock in self.locked
        ]
        if self.unsaid:
            lines.append(f"not for from_pretrained: {self.unsaid}; use save() and load_shrunk()")
        return "\n".join(lines)


@verb
def explain(
    model: nn.Module,
    example: object,
    budget: float | None = None,
    *,
    across_norm: bool = False,
    head_size: bool = False,
) -> Explanation:
    """Report what can be cut: groups and whole blocks, what is locked and why, and what a budget would remove.

    It counts the units that `prune` with granularity "channel" would choose from and `shrink` would cut: a trial cut of
    half of every group finds the locks that only `shrink` meets. It does not raise if there is nothing to remove.

    Args:
        model: The model; it is not changed.
        example: What the model is called with: one value, a tuple of arguments, or a dict of keywords.
        budget: The share of each group to remove, 0 <= budget < 1; None leaves this part out.
        across_norm: Cut through normalisations as well, as the same option of `shrink` does.
        head_size: Attention heads become smaller instead of fewer, as granularity "head_size" cuts them.

    Returns:
        Groups, locks and totals; it prints as a table.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = explain(model, torch.zeros(1, 4), budget=0.5)
    >>> [(row.name, row.count) for row in found.groups]
    [('0', 8)]
    """
    model = plain_model(model)
    structure = analyse(model, example, across_norm=across_norm, sizes=head_size)
    names = default_names(structure, model)
    wanted, which = (lambda group: cut_by_default(group, names)), "by default"
    found = explained(without_locked(structure, model, example, wanted, which), model, budget, names)
    return replace(found, layers=layer_rows(model, example))


@verb
def shrink(
    model: nn.Module,
    masks: Masks,
    example: object,
    *,
    coupling: str = "union",
    round_to: int | None = None,
    at_least: int = 1,
    across_norm: bool = False,
    proof: ProofLike = None,
) -> Shrunk:
    """Remove the channels and whole blocks that the masks drop from a copy of the model, and prove the result.

    Args:
        model: The model; it is never changed.
        masks: The masks, as `prune` gives them.
        example: What the model is called with: one value, a tuple of arguments, or a dict of keywords.
        coupling: "union" takes masks chosen in any way: a channel is removed if all layers that compute it dropped it,
            or all that read it; other zeros stay in place. "coupled" expects masks that agree on every member of a
            group, as granularity "channel" makes them.
        round_to: Widths stay at a multiple of this number.
        at_least: The least number of units of a group that remain.
        across_norm: Cut through normalisations as well; then no equality can hold, and none is claimed.
        proof: The inputs and modes of the proof: None for the usual (the example and inputs of other shapes, with
            gradients and without), modes such as ["eager", "no_grad", "compile", "export"], or `ProofOptions`.

    Returns:
        The smaller model, its proof, its plan and the masks that remain.

    Raises:
        ProofError: The smaller model does not compute what the masked one does.
        NothingToDoError: No channel is dropped by all the layers that share it.
        MaskMismatchError: With coupling="coupled", masks of one group disagree.
    """
    model = plain_model(model)
    _check_options(coupling, round_to, at_least)
    masks.check(model)
    options = CutOptions(coupling, round_to, at_least, across_norm)
    work = _ProvenCut(model, masks, example, options, as_proof_options(proof))
    done, found = work.run()
    plan = replace(done.plan, proof=found.domain)
    return Shrunk(done.model, found, plan, done.left, (*done.locked, *work.locks.values()), done.unsaid)


_MOST_LEFT_OUT = 8
_CHEAP_MACS = 500_000_000
"""Up to this number of multiply-accumulates of the dense model, every input is proved in every mode."""


@dataclass
class _ProvenCut:
    """A cut and its proof; groups that break it for other shapes of the input are left out, and a lock says so."""

    model: nn.Module
    masks: Masks
    example: object
    options: CutOptions
    proof: ProofOptions
    locks: dict[str, Lock] = field(default_factory=dict)

    @cached_property
    def fewer(self) -> FewerLayers | None:
        """The model without the blocks that the masks drop whole; None where they drop none."""
        return without_blocks(self.model, self.masks, self.example)

    def run(self) -> tuple[Cut, Proof]:
        """Cut and prove, again for every group that has to be left out."""
        if self.fewer is not None:
            _check_runs(self.model, self.fewer, self.example)
        while True:
            names = None if not self.locks else self.names() - self.locks.keys()
            try:
                return self.proven(self.example, self.proof, names)
            except ShapeProofError as failure:
                found = self.breaking(failure.example, names)
                if len(found) != 1 or len(self.locks) == _MOST_LEFT_OUT:
                    raise
                name = found[0]
                reason = f"the meaning of its positions depends on the shape of the input: {failure.what}"
                self.locks[name] = Lock(np.zeros(0, int), reason, "proof", name)
            except ProofError as failure:
                raise ProofError(f"{failure}{self.said(names)}") from failure

    def names(self) -> set[str]:
        """The names of all groups."""
        model = self.model if self.fewer is None else self.fewer.model
        structure = analyse(model, self.example, across_norm=self.options.across_norm)
        return {group.name for group in structure.groups}

    def proven(
        self, example: object, proof: ProofOptions, names: Collection[str] | None, careful: bool = False
    ) -> tuple[Cut, Proof]:
        """Cut the groups of these names and prove it on this example."""
        options = replace(self.options, careful=careful, only=names)
        done = cut(self.model, self.masks, self.example, options, self.fewer)
        proof = replace(proof, every=proof.every or done.macs <= _CHEAP_MACS)
        try:
            how = DenseRun(done.traced, done.bypassed)
            return done, prove(
                self.model, done.model, done.masks, example, proof, not done.crossed, done.plan, how
            )
        except ProofError:
            if done.tried:
                raise
        return self.proven(example, proof, names, True)  # a call was given a size

    def breaking(self, example: object, names: Collection[str] | None) -> list[str]:
        """The group that breaks the proof on an example when it is cut alone, or several that only do so together."""
        proof = replace(self.proof, other_shapes=False)
        suspects = sorted(self.names() if names is None else names)

        def breaks(part: Sequence[str]) -> bool:
            try:
                self.proven(example, proof, frozenset(part))
            except ProofError:
                return True
            except NothingToDoError:
                pass
            return False

        while len(suspects) > 1:
            half = len(suspects) // 2
            part = next((part for part in (suspects[:half], suspects[half:]) if breaks(part)), None)
            if part is None:
                break
            suspects = part
        return suspects

    def said(self, names: Collection[str] | None) -> str:
        """The group that breaks the proof of the example, as the end of an error's text."""
        found = self.breaking(self.example, names)
        if len(found) != 1:
            return f" No half of the groups {', '.join(map(repr, found[:8]))} breaks it by itself"
        name = found[0]
        structure = analyse(self.model, self.example, across_norm=self.options.across_norm)
        slots = [slot for group in structure.groups if group.name == name for slot in group.slots]
        layers = dict.fromkeys(slot.name.rpartition(".")[0] or slot.name for slot in slots)
        return f" Cut alone, group {name!r} breaks it: its channels are shared by {', '.join(layers)}"


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut model before its proof: `masks` are those the dense model must be masked with, `left` those that remain.

    `tried` is True where the cut forward was run and compared with the one before, operator by operator. `bypassed` are
    the blocks that are bypassed in the dense model.
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


@dataclass(frozen=True)
class CutOptions:
    """How a model is cut: the options of `shrink`, and two that its proof needs.

    `careful` runs the cut forward even where all sizes come from its tensors; `only` names the groups that may be cut.
    """

    coupling: str = "union"
    round_to: int | None = None
    at_least: int = 1
    across_norm: bool = False
    careful: bool = False
    only: Collection[str] | None = None


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


def _check_runs(model: nn.Module, fewer: FewerLayers, example: object) -> None:
    """Raise a `ProofError` if the forward needs the removed blocks."""
    found = trace(fewer.model, example, partial=True, mode="real")
    if found.error is not None:
        paths = ", ".join(repr(block.path) for block in fewer.blocks)
        raise ProofError(
            f"without {paths} the forward of {type(model).__name__} does not run ({type(found.error).__name__}: "
            f"{str(found.error)[:200]}): it needs all of its layers; leave these out with skip=, the model is unchanged"
        ) from found.error


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
        macs = analyse(fewer.model, example).macs()
        return Cut(
            small, fewer.plan, masks, left, (), False, unsaid=fewer.unsaid, macs=macs, bypassed=fewer.bypassed
        )
    return replace(
        done,
        plan=fewer.plan.then(done.plan),
        masks=fewer.dense_masks(model, done.masks),
        unsaid=fewer.unsaid or done.unsaid,
        bypassed=fewer.bypassed,
    )


def _every_weight(model: nn.Module) -> Masks:
    """Masks that keep all of one parameter, if no other mask remains."""
    name, parameter = next(iter(model.named_parameters()))
    return Masks({name: torch.ones_like(parameter, dtype=torch.bool)})


def _cut_channels(model: nn.Module, masks: Masks, example: object, options: CutOptions) -> Cut:
    """The model without the channels that the masks drop."""
    structure = analyse(model, example, across_norm=options.across_norm)
    lines = dropped_lines(structure, masks)
    if any(op.name in _ATTENTION for op in structure.trace.ops):
        structure = _structure_for_heads(structure, masks, model, example, options.across_norm, lines)
    locks: list[Lock] = []
    while True:
        gone = dropped(structure, masks, model, options.coupling, lines)
        gone = rounded(structure, gone, options.round_to, options.at_least)
        if options.only is not None:
            gone = {
                index: bits for index, bits in gone.items() if structure.groups[index].name in options.only
            }
        if not any(bits.any() for bits in gone.values()):
            raise NothingToDoError(_nothing(structure, model, locks))
        alive = structure.alive({index: ~bits for index, bits in gone.items() if bits.any()})
        fitted = fit(structure, model, example, alive, options.careful)
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
        unsaid = "its configuration has no field for means with a fixed count"
    elif hasattr(model, "save_pretrained"):
        plan, unsaid = with_config(structure, model, small, plan, alive)
    crossed = bool(structure.follower.crossed)
    traced, macs = structure.trace.mode, structure.macs()
    return Cut(small, plan, whole, left, tuple(locks), crossed, fitted.tried, unsaid, traced, macs)


_ATTENTION = frozenset({*FUSED, "bmm", "baddbmm"})


def _structure_for_heads(
    structure: Structure,
    masks: Masks,
    model: nn.Module,
    example: object,
    across_norm: bool,
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
        set_config_field(own, name, value)
    merged = {**plan.attributes.get("", {}), **{f"config.{name}": value for name, value in changes.items()}}
    return (replace(plan, attributes={**plan.attributes, "": merged}) if changes else plan), ""


def _check_options(coupling: str, round_to: int | None, at_least: int) -> None:
    if coupling not in ("union", "coupled"):
        raise OptionError(f"coupling: expected 'union' or 'coupled', got {coupling!r}")
    if round_to is not None and round_to < 1:
        raise OptionError(f"round_to: expected a positive multiple such as 8, got {round_to!r}")
    if at_least < 1:
        raise OptionError(f"at_least: expected at least 1 unit a group, got {at_least!r}")


def _nothing(structure: Structure, model: nn.Module, locks: list[Lock]) -> str:
    text = f"no channel of {type(model).__name__} can be removed:  "
    if locks:
        return text + "; ".join(f"{lock.path or 'the model'}: {lock.reason}" for lock in locks[:3])
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
