"""Fit: complete a plan so that the cut model's own forward runs with its new widths, or return the labels to lock.

The cut model is recorded on meta tensors and compared, operator by operator, with the shapes that the labels say it
must have. At the first operator that disagrees, an attribute of the module that holds the old width is set; if that
does not help, the one call is rewritten; if that does not help either, the labels that meet there are locked and the
search starts over without them. A plan that is returned without locks has always run.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.execution.example import Training
from secateur.execution.fast_copy import modules_of, tensors_of
from secateur.structure.cut.branches import (
    Branch,
    Followed,
    branch_of,
    refused_training,
    training_branch,
)
from secateur.structure.cut.call_sites import site_of
from secateur.structure.cut.fewer_heads import with_fewer_heads
from secateur.structure.cut.known_rewrites import with_counts, with_sites
from secateur.structure.cut.needs_rerun import runs_unchanged
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.repair import Mismatch, Repairs, within
from secateur.structure.cut.restated import restated
from secateur.structure.cut.rewrite import RewrittenClass
from secateur.structure.cut.widths import widths_of
from secateur.structure.groups.couplings import KeptShapes, Structure
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.trace import Op, Trace, trace, traceable_copy

__all__ = ["IN_TRAINING", "Fitted", "draft", "fit"]

IN_TRAINING = "in training: "
"""What the reason of a lock begins with if only the forward in training asks for it."""
_ROUNDS = 400
_RESYNC, _AGREE = 200, 4
"""How many operators may be missing in one of two recordings, and how many must agree after them."""
_NORMS = frozenset(
    {
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "native_layer_norm",
        "mean",
        "_fused_rms_norm",
    }
)
"""Torch decomposes a root-mean-square norm into a mean."""
_UNCOMPARED = frozenset({"clone", "_to_copy", "detach", "alias", "empty", "lift_fresh"})
"""Operators that occur or not depending on strides, and change no value."""
_SCALING = ("mul", "div")
"""Operators whose whole numbers are factors, not sizes."""
_SEVERAL_RESULTS = ("split", "unbind", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")


_PLACED = frozenset({"pad", "narrow", "__getitem__"})
_SOLVED: weakref.WeakKeyDictionary[Trace, tuple[ShrinkPlan, Trace]] = weakref.WeakKeyDictionary()
"""The last plan that ran and its recording, for each recording of a model: `prune` finds them by a trial, and `shrink`
needs them again.
"""


@dataclass
class Fitted:
    """A plan that runs, or the `locks` to set before another is made.

    `tried` is False if every operator of the forward takes its sizes from its tensors: then it was not run again.
    """

    plan: ShrinkPlan
    locks: list[Lock] = field(default_factory=list)
    tried: bool = True


def draft(structure: Structure, model: nn.Module, alive: np.ndarray) -> ShrinkPlan:
    """The plan that follows from the labels alone: indices, and the attributes of torch's own layers."""
    keep = structure.keep_of(alive)
    tensors, modules = tensors_of(model), modules_of(model)
    aliases = structure.trace.aliases
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    old: dict[str, tuple[int, ...]] = {}
    grouped: dict[str, str] = {}
    for follower in (structure.follower, *structure.more):
        grouped.update(follower.grouped)
    for name in [*keep, *(alias for alias, first in aliases.items() if first in keep)]:
        axes = keep[aliases.get(name, name)]
        before = tuple(tensors[name].shape)
        if name in keep:
            old[name] = before
        path, _, leaf = name.rpartition(".")
        after = tuple(len(axes[axis]) if axis in axes else size for axis, size in enumerate(before))
        shapes.setdefault(path, {})[leaf] = after
        layer, _, computed = path.rpartition(".parametrizations.")
        held: Any = modules.get(layer)
        if computed == "weight" and before == tuple(held.weight.shape):
            shapes.setdefault(layer, {})[computed] = after
    attributes = {}
    for path, changed in shapes.items():
        first = aliases.get(f"{path}.weight" if path else "weight", f"{path}.weight" if path else "weight")
        found = widths_of(modules[path], changed, grouped.get(first))
        if found:
            attributes[path] = found
    attributes.update(_without_weights(structure, model, alive))
    attributes.update(restated(structure, modules, attributes.keys(), alive))
    known = {id(kept): tuple(kept.tolist()) for axes in keep.values() for kept in axes.values()}
    return ShrinkPlan(
        keep={name: {axis: known[id(kept)] for axis, kept in axes.items()} for name, axes in keep.items()},
        attributes=attributes,
        shapes=old,
        model=type(model).__name__,
    )


def _without_weights(structure: Structure, model: nn.Module, alive: np.ndarray) -> dict[str, dict[str, Any]]:
    """Widths of layers without parameters of their own: norms that are not affine."""
    found: dict[str, dict[str, Any]] = {}
    modules = modules_of(model)
    for op in structure.trace.ops:
        if op.name not in _NORMS:
            continue
        module: Any = modules[op.path]
        if getattr(module, "weight", None) is not None or not op.args:
            continue
        shape = structure.kept_shape(op.args[0], alive)
        if shape is None or shape == op.args[0].shape:
            continue
        if isinstance(module, nn.GroupNorm):
            groups = module.num_groups * shape[1] // module.num_channels
            found[op.path] = {"num_channels": shape[1], "num_groups": groups}
        elif hasattr(module, "num_features"):
            found[op.path] = {"num_features": shape[1]}
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            found[op.path] = {"normalized_shape": shape[-len(module.normalized_shape) :]}
    return found


def fit(
    structure: Structure,
    model: nn.Module,
    example: object,
    alive: np.ndarray,
    careful: bool = True,
    training: Training = True,
) -> Fitted:
    """Find attributes and rewrites with which the cut model runs as the labels say, or the labels to lock.

    Args:
        structure: The groups and locks of the model.
        model: The model before the cut; it is not changed.
        example: The input that the forward is recorded on.
        alive: For every label, whether it remains.
        careful: Record the cut forward even where it takes all its sizes from its tensors.
        training: What the model is called with in training, where it has to run too; False where it is never trained.

    Returns:
        A plan, and the labels to lock where it does not run.
    """
    fitted = _fitted(structure, model, example, alive, careful)
    branch = None if fitted.locks else training_branch(structure.trace, model, example, training)
    return (
        fitted if branch is None else _in_training(_Search(structure, model, example, alive), branch, fitted)
    )


def _fitted(
    structure: Structure, model: nn.Module, example: object, alive: np.ndarray, careful: bool
) -> Fitted:
    """The work of `fit` for the forward in evaluation mode."""
    plan = with_counts(structure, draft(structure, model, alive), alive)
    if not careful:
        direct = with_fewer_heads(structure, model, plan, alive)
        if runs_unchanged(structure, model, alive, _skipped(direct)):
            return Fitted(direct, tried=False)
    return _Search(structure, model, example, alive).run(plan)


def _in_training(usual: _Search, branch: Branch, fitted: Fitted) -> Fitted:
    """The plan with which the cut model also runs in training, or the labels to lock. A plan whose failure no label
    explains is returned as it is: the proof refuses it.
    """
    plan, structure, model = fitted.plan, usual.structure, usual.model
    followed = branch.followed(structure, usual.alive)
    if followed is None:
        return fitted
    if followed.lock is not None:
        ruled = followed.lock.labels.size and not _runs_in_training(structure, model, branch, plan, followed)
        return Fitted(plan, _locks_of_training([followed.lock]) if ruled else [], fitted.tried)
    search = _Search(followed.structure, model, branch.example, followed.remains, branch.calls)
    made, at = search.repaired_everywhere(plan)
    if at is not None:
        blamed = [followed.mapped(lock) for lock in _blame(followed.structure, at, followed.remains)]
        return Fitted(plan, _locks_of_training([lock for lock in blamed if lock.labels.size]))
    if made == plan:
        return fitted
    return Fitted(made) if usual.mismatch(made) is None else fitted


def _runs_in_training(
    structure: Structure, model: nn.Module, branch: Branch, plan: ShrinkPlan, followed: Followed
) -> bool:
    """Whether an operator without a rule is all that locks, and the cut model runs: then the proof decides."""
    if followed.lock is None or "has no rule" not in followed.lock.reason:
        return False
    small, _ = traceable_copy(model, branch.trace.mode)
    return not refused_training(plan.apply_(small), branch)[1]


def _locks_of_training(locks: Sequence[Lock]) -> list[Lock]:
    return [replace(lock, reason=f"{IN_TRAINING}{lock.reason}", op=-1) for lock in locks]


class _Search:
    """The search for a plan that runs: the cut model is recorded, and its first disagreement repaired, again and again.

    The last two recordings are kept, because the next round asks for one of them.
    """

    def __init__(
        self,
        structure: Structure,
        model: nn.Module,
        example: object,
        alive: np.ndarray,
        elsewhere: Sequence[FunctionCall] | None = None,
    ):
        self.structure, self.model, self.example, self.alive = structure, model, example, alive
        calls = None if elsewhere is None else [elsewhere]
        self.repairs = Repairs(structure, model, example, alive, calls, by_place=calls is not None)
        self.kept = self.repairs.kept
        self.recorded: list[tuple[ShrinkPlan, Trace]] = []
        self.attempts: set[tuple[int, str, str]] = set()
        self.in_vain: set[tuple[type, str]] = set()
        self.classes: dict[tuple[object, ...], RewrittenClass] = {}
        self.drafted: Mapping[str, Mapping[str, Any]] = {}

    def run(self, plan: ShrinkPlan) -> Fitted:
        """Repair the plan until every operator agrees with the labels, or return the labels to lock."""
        self.drafted = plan.attributes
        before = self.as_before(plan)
        if before is not None:
            _SOLVED[self.structure.trace] = before, self.recording(before)
            return Fitted(with_sites(self.structure, self.model, before))
        made, at = self.repaired_everywhere(plan)
        if at is not None:
            return Fitted(made, _blame(self.structure, at, self.alive))
        recording = self.recording(made)
        made = self.with_branches(with_sites(self.structure, self.model, made))
        _SOLVED[self.structure.trace] = made, recording
        return Fitted(made)

    def repaired_everywhere(self, plan: ShrinkPlan) -> tuple[ShrinkPlan, Mismatch | None]:
        """The plan with all its repairs, and where the cut model still disagrees if there are not enough."""
        for _ in range(_ROUNDS):
            at = self.mismatch(plan)
            if at is None:
                break
            better = self.repaired(plan, at) or self.undone(plan, at)
            if better is None:
                break
            plan = better
        return plan, at

    def with_branches(self, plan: ShrinkPlan) -> ShrinkPlan:
        """The plan with rewrites of calls that only larger inputs reach, if those it has can be found in the source."""
        if not any(item.site is not None for items in plan.rewrites.values() for item in items):
            return plan
        branch = branch_of(self.structure, self.model, self.example)
        followed = None if branch is None else branch.structure(self.structure, self.alive)
        if branch is None or followed is None:
            return plan
        search = _Search(followed[0], self.model, branch.example, followed[1], branch.calls)
        search.in_vain, search.classes = self.in_vain, self.classes
        made, at = search.repaired_everywhere(plan)
        if at is not None:
            return plan
        return made if self.unreached(plan, made) or self.mismatch(made) is None else plan

    def unreached(self, plan: ShrinkPlan, made: ShrinkPlan) -> bool:
        """Whether what one plan adds to another is rewrites of calls that the example does not reach."""
        added = {
            (path, item.site)
            for path, items in made.rewrites.items()
            for item in items
            if item not in plan.rewrites.get(path, ())
        }
        modules, paths = modules_of(self.model), {path for path, _ in added}
        reached = {
            (path, site_of(type(modules[path]), call.chain))
            for call in self.structure.trace.calls
            for path, _ in call.numbers
            if path in paths
        }
        return made.attributes == plan.attributes and not added & reached

    def as_before(self, plan: ShrinkPlan) -> ShrinkPlan | None:
        """The plan with the repairs of the last one of this model, if it kept the same width of every axis and they
        help. Rewrites of start positions depend on which positions are removed, and are searched for again. On meta
        tensors the forward sees widths alone: with equal widths and repairs its recording is the one before.
        """
        last, found = _SOLVED.get(self.structure.trace, (None, None))
        if last is None or found is None or _left(last) != _left(plan):
            return None
        if any(item.function in _PLACED for items in last.rewrites.values() for item in items):
            return None
        candidate = replace(plan, attributes=last.attributes, rewrites=last.rewrites)
        if found.mode == "meta":
            self.recorded = [(candidate, found)]
        return candidate if self.mismatch(candidate) is None else None

    def recording(self, plan: ShrinkPlan) -> Trace:
        """The recording of the forward after a plan."""
        for known, found in self.recorded:
            if known is plan:
                return found
        found = self.rerun(plan)
        self.recorded = [*self.recorded[-1:], (plan, found)]
        return found

    def rerun(self, plan: ShrinkPlan) -> Trace:
        """A new recording of the forward after a plan; the copies that are recorded share their rewritten classes."""
        mode, training = self.structure.trace.mode, self.structure.trace.training
        copied, _ = traceable_copy(self.model, mode, training)
        plan.apply_(copied, self.classes)
        ready = tensors_of(copied)
        return trace(copied, self.example, training=training, mode=mode, partial=True, ready=ready)

    def mismatch(self, plan: ShrinkPlan) -> Mismatch | None:
        """The first operator that does not agree with the labels."""
        found = self.recording(plan)
        at = _mismatch(self.structure, found, self.kept, self.alive, _skipped(plan))
        return None if at is None else replace(at, calls=found.calls)

    def repaired(self, plan: ShrinkPlan, at: Mismatch) -> ShrinkPlan | None:
        """The plan with one more attribute or rewrite, if the forward then runs past this operator.

        The change is tried on all modules of the class at once, and on this one alone where another part then fails.
        """
        skipped = _skipped(plan)
        for candidate in self.candidates(plan, at):
            key = (at.progress, repr(candidate.attributes), repr(candidate.rewrites))
            if key in self.attempts:
                continue
            self.attempts.add(key)
            wider = self.repairs.spread(plan, candidate, at)
            if _skipped(candidate) != skipped:
                return wider if self.runs_past(wider, at) else candidate
            beyond = self.mismatch(wider)
            if beyond is None or beyond.op.index > at.op.index:
                return wider
            if beyond.op.index < at.op.index and wider != candidate and self.runs_past(candidate, at):
                return candidate
            if len(alone := self.attributes_set(plan, candidate)) == 1:
                self.in_vain |= alone
        return None

    def candidates(self, plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
        """The plans to try, last those with an attribute that did not help a module of its class before."""
        later, in_vain = [], set(self.in_vain)
        for candidate in self.repairs.candidates(plan, at):
            names = self.attributes_set(plan, candidate)
            if names and names <= in_vain:
                later.append(candidate)
            else:
                yield candidate
        yield from later

    def attributes_set(self, plan: ShrinkPlan, candidate: ShrinkPlan) -> set[tuple[type, str]]:
        """The attributes that a candidate sets and the plan does not, each with the class of its module."""
        modules = modules_of(self.model)
        return {
            (type(modules[path]), name)
            for path, values in candidate.attributes.items()
            if values is not (before := plan.attributes.get(path, {}))
            for name, value in values.items()
            if before.get(name) != value
        }

    def runs_past(self, plan: ShrinkPlan, at: Mismatch) -> bool:
        """Whether the forward after a plan runs past the operator of a mismatch."""
        beyond = self.mismatch(plan)
        return beyond is None or beyond.op.index > at.op.index

    def undone(self, plan: ShrinkPlan, at: Mismatch) -> ShrinkPlan | None:
        """The plan without an attribute that an earlier repair set by mistake, if the forward then runs further.

        A number can equal a width and mean something else: 8 heads, and chunks of 8 tokens.
        """
        parts = at.op.path.split(".") if at.op.path else []
        for place in [".".join(parts[:stop]) for stop in range(len(parts), -1, -1)][:3]:
            drafted = self.drafted.get(place, {})
            for name in [name for name in plan.attributes.get(place, {}) if name not in drafted]:
                candidate = _without_attribute(plan, (place,), name)
                beyond = self.mismatch(candidate)
                if beyond is not None and beyond.op.index <= at.op.index:
                    continue
                kind = type(modules_of(self.model)[place])
                alike = [path for path, module in modules_of(self.model).items() if type(module) is kind]
                wider = _without_attribute(plan, alike, name)
                after = self.mismatch(wider)
                return wider if after is None or after.op.index > at.op.index else candidate
        return None


def _left(plan: ShrinkPlan) -> dict[str, dict[int, int]]:
    """How many positions of every axis a plan keeps."""
    return {name: {axis: len(kept) for axis, kept in axes.items()} for name, axes in plan.keep.items()}


def _without_attribute(plan: ShrinkPlan, paths: Sequence[str], name: str) -> ShrinkPlan:
    """The plan in which an attribute of some modules is not changed."""
    less = {
        path: {key: value for key, value in plan.attributes.get(path, {}).items() if key != name}
        for path in paths
    }
    return replace(plan, attributes={**plan.attributes, **less})


def _skipped(plan: ShrinkPlan) -> tuple[str, ...]:
    """Layers whose whole forward is replaced: their operators are not compared."""
    return tuple(
        path
        for path, items in plan.rewrites.items()
        if any(i.function == "multi_head_attention" for i in items)
    )


def _numbers(op: Op) -> list[float]:
    """The plain fractions among an operator's arguments: scales, slopes, epsilons."""
    if op.name in FUSED:  # what is not given follows the size of a head
        scale = op.kwargs.get("scale")
        found = [*op.args, *(value for key, value in op.kwargs.items() if key != "scale")]
        scale = op.args[0].shape[-1] ** -0.5 if scale is None else scale
        return [scale, *(arg for arg in found if isinstance(arg, float))]
    if op.name.startswith(_SCALING):
        return [float(arg) for arg in op.args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]
    return [arg for arg in (*op.args, *op.kwargs.values()) if isinstance(arg, float)]


def _alike(some: list[float], others: list[float]) -> bool:
    """Whether these are the same numbers up to rounding."""
    close = (a == b or math.isclose(a, b, rel_tol=1e-12) for a, b in zip(some, others))
    return len(some) == len(others) and all(close)


def _plain_name(op: Op) -> str:
    """An operator's name, the same for equivalent operators."""
    return _plain(op.name)


@cache
def _plain(name: str) -> str:
    name = name.removeprefix("_unsafe_").removeprefix("unsafe_")
    return "split" if name in ("split_with_sizes", "chunk") else name


def _mismatch(
    structure: Structure, found: Trace, kept: KeptShapes, alive: np.ndarray, skipped: tuple[str, ...]
) -> Mismatch | None:
    """Compare the cut model's operators with the labels; None if all agree."""
    old, new = _compared(structure.trace.ops, skipped), _compared(found.ops, skipped)
    free = False  # after an operator whose output size depends on values, only labelled axes are compared
    for index, (op, other) in enumerate(_side_by_side(old, new, found.error is not None)):
        free |= torch.Tag.dynamic_output_shape in op.overload.tags
        if other is None and found.error is None:
            break  # fewer operators and no error: the forward took another branch; the proof decides
        if other is None or _plain_name(other) != _plain_name(op):
            if other is not None and found.error is None and len(old) != len(new):
                continue
            return Mismatch(op, _wanted(op, kept), found.error, index)
        at = _disagreement(structure, op, other, kept, index, free)
        if at is None and op.name == other.name == "slice" and _start_moved(structure, op, other, alive):
            at = Mismatch(op, _wanted(op, kept)[:1], None, index)
        if at is not None:
            return at
    if found.error is not None and old:
        return Mismatch(old[-1], [], found.error, len(old))
    return None


def _compared(ops: Sequence[Op], skipped: tuple[str, ...]) -> list[Op]:
    """The operators that are compared: those outside layers whose whole forward is replaced."""
    shown = [op for op in ops if op.name not in _UNCOMPARED]
    return [op for op in shown if not within(op.path, skipped)] if skipped else shown


def _side_by_side(old: list[Op], new: list[Op], failed: bool) -> Iterator[tuple[Op, Op | None]]:
    """The operators of two recordings of a forward, in pairs; None where the second has ended.

    Where one has operators that the other lacks, such as a table that is computed once and cached, they are left out:
    the pairs continue where the next operators are again those of the same modules.
    """
    first = second = 0
    while first < len(old):
        if second >= len(new):
            yield old[first], None
        elif _plain_name(old[first]) == _plain_name(new[second]) or (not failed and len(old) == len(new)):
            yield old[first], new[second]
        else:
            ahead = _ahead(old[first:], new[second:])
            if ahead is not None:
                first, second = first + ahead[0], second + ahead[1]
                continue
            yield old[first], new[second]
        first, second = first + 1, second + 1


def _ahead(old: list[Op], new: list[Op]) -> tuple[int, int] | None:
    """How many operators each recording must leave out for the next few to agree, at least those of one of them."""
    keys = [[(_plain_name(op), op.path) for op in ops[: _RESYNC + _AGREE]] for ops in (old, new)]
    for skipped in range(1, _RESYNC):
        for more in range(skipped + 1):
            for pair in ((skipped, more), (more, skipped)):
                left, right = (part[by : by + _AGREE] for part, by in zip(keys, pair))
                if right and left[: len(right)] == right:
                    return pair
    return None


def _wanted(op: Op, kept: KeptShapes) -> list[tuple[int, ...] | None]:
    """The shapes that an operator's results must have once cut; an empty tensor has no labels for one."""
    return [kept.of(ref) for ref in op.results() if 0 not in ref.shape]


def _disagreement(
    structure: Structure, op: Op, other: Op, kept: KeptShapes, index: int, free: bool
) -> Mismatch | None:
    """Whether an operator of the cut model has other shapes than it must, or other plain numbers than before.

    With `free`, axes without labels may be of any size.
    """
    wanted = _wanted(op, kept)
    got = [ref.shape for ref, was in zip(other.results(), op.results()) if 0 not in was.shape]
    if not op.name.startswith(_SEVERAL_RESULTS):
        wanted, got = wanted[:1], got[:1]  # the others are statistics kept for a backward pass
    for ref, shape, have in zip((each for each in op.results() if 0 not in each.shape), wanted, got):
        if free and shape is not None and len(shape) == len(have):
            labelled = {axis for part in structure.follower.of(ref).fields for axis in part.axes}
            shape = tuple(size if axis in labelled else have[axis] for axis, size in enumerate(shape))
        if shape is None or shape != have:
            return Mismatch(op, wanted, None, index)
    lost = _lost_slice(structure, op, other, kept)
    if lost is not None:
        return Mismatch(lost, _wanted(lost, kept), None, index)
    if op.path == other.path and not _alike(_numbers(op), _numbers(other)):
        return Mismatch(op, wanted, None, index, (_numbers(op), _numbers(other)))
    return None


def _lost_slice(structure: Structure, op: Op, other: Op, kept: KeptShapes) -> Op | None:
    """The slice that made an input of an operator and is no operator any more, as it now takes the whole axis."""
    for ref, have in zip(op.refs(), other.refs()):
        made = structure.trace.ops[ref.op] if ref.op >= 0 else None
        if made is None or made.name != "slice" or 0 in ref.shape:
            continue
        if kept.of(ref) != have.shape:
            return made
    return None


def _start_moved(structure: Structure, op: Op, other: Op, alive: np.ndarray) -> bool:
    """Whether a slice begins at another position than the number of those before it that remain."""
    axis = op.arg(1, "dim", 0) % len(op.args[0].shape)
    part = structure.follower.of(op.args[0]).at(axis)
    if part is None or part.axes != (axis,) or (op.arg(4, "step", 1) or 1) != 1:
        return False
    starts = []
    for each in (op, other):
        start = each.arg(2, "start", 0) or 0
        starts.append(max(0, start + each.args[0].shape[axis] if start < 0 else start))
    return int(alive[part.labels[: starts[0]]].sum()) != starts[1]


def _blame(structure: Structure, at: Mismatch, alive: np.ndarray) -> list[Lock]:
    """The labels that are removed at the first operator that disagrees."""

    def leaving(ops: list[Op]) -> list[np.ndarray]:
        refs = [ref for op in ops for ref in (*op.refs(), *op.results())]
        found = [part.labels for ref in refs for part in structure.follower.of(ref).fields]
        gone = [each[~alive[each]].reshape(-1) for each in found]
        return [each for each in gone if each.size]

    labels = leaving([at.op])
    parts = at.op.path.split(".") if at.op.path else []
    while not labels and parts:  # a number may occur elsewhere than the width that it depends on
        labels = leaving([op for op in structure.trace.ops if within(op.path, (".".join(parts),))])
        parts = parts[:-1] if at.error is not None else []
    if not labels and at.error is not None:  # a size is computed from a width that another operator has
        before = reversed(structure.trace.ops[: at.op.index])
        labels = next((found for op in before if (found := leaving([op]))), [])
    joined = np.unique(np.concatenate(labels)) if labels else np.zeros(0, int)
    why = "the forward has this width hard-coded"
    if at.numbers is not None:
        was, would = next((a, b) for a, b in zip_longest(*at.numbers) if a != b)
        why = (
            f"the forward computes a number from this width, which would be {would:.6g} instead of {was:.6g}"
        )
    if at.error is not None:
        why += f" ({type(at.error).__name__}: {str(at.error).splitlines()[0][:120] if str(at.error) else ''})"
    return [Lock(joined, why, at.op.name, at.op.path, at.op.index)] if joined.size else []
