"""Fit: make the cut model's own forward run with its new widths, and find out which group it is that will not.

The cut model (on meta tensors) is recorded again and compared, operator by operator, with the shapes the labels say it
must have. At the first that disagrees: set an attribute of the module that holds the old width; else rewrite that one
call; else lock the labels that meet there and start over without them. What is given back always ran.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import nn

from secateur.execution.fast_copy import modules_of, tensors_of
from secateur.structure.cut.needs_rerun import runs_unchanged
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.repair import (
    Mismatch,
    candidates,
    spread_repair,
    with_counts,
    with_fewer_heads,
    within,
)
from secateur.structure.cut.widths import widths_of
from secateur.structure.groups.couplings import Structure
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules.attention import FUSED
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.trace import Op, Trace, trace, traceable_copy

__all__ = ["Fitted", "draft", "fit"]

_ROUNDS = 400
_NORMS = frozenset(
    {
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "native_layer_norm",
        "mean",
        "_fused_rms_norm",
    }
)  # torch takes a root-mean-square norm apart into a mean
_QUIET = frozenset(
    {"clone", "_to_copy", "detach", "alias", "empty", "lift_fresh"}
)  # they come and go with strides


@dataclass
class Fitted:
    """A plan that runs, or (with `locks`) what must be locked before another is tried.

    `tried` is False where nothing of the forward could be upset by the cut, so that it was not run again.
    """

    plan: ShrinkPlan
    locks: list[Lock] = field(default_factory=list)
    tried: bool = True


def draft(structure: Structure, model: nn.Module, alive: np.ndarray) -> ShrinkPlan:
    """The plan that follows from the labels alone: indices, and the attributes of torch's own layers."""
    keep = structure.keep_of(alive)
    tensors = tensors_of(model)
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
    attributes = {}
    modules = modules_of(model)
    for path, changed in shapes.items():
        first = aliases.get(f"{path}.weight" if path else "weight", f"{path}.weight" if path else "weight")
        found = widths_of(modules[path], changed, grouped.get(first))
        if found:
            attributes[path] = found
    attributes.update(_without_weights(structure, model, alive))
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
    structure: Structure, model: nn.Module, example: Any, alive: np.ndarray, careful: bool = True
) -> Fitted:
    """Find attributes and rewrites with which the cut model runs as the labels say, or the labels to lock.

    Unless `careful`, a forward that takes all its sizes from its tensors is not run again.
    """
    plan = with_counts(structure, draft(structure, model, alive), alive)
    if not careful:
        quick = with_fewer_heads(structure, model, plan, alive)
        if runs_unchanged(structure, model, alive, _skipped(quick)):
            return Fitted(quick, tried=False)
    before = structure.trace.calls
    tried: set[Any] = set()
    rerun = _Reruns(structure, model, example)
    for _ in range(_ROUNDS):
        skipped = _skipped(plan)
        at = _mismatch(structure, rerun.of(plan), alive, skipped)
        if at is None:
            return Fitted(plan)
        better = _repair(structure, model, rerun, plan, alive, at, before, skipped, tried)
        if better is None:
            return Fitted(plan, _blame(structure, at, alive))
        wider = spread_repair(structure, model, plan, better, alive, at, before)
        if wider != better:
            after = _mismatch(structure, rerun.of(wider), alive, _skipped(wider))
            if after is None or after.op.index > at.op.index:
                better = wider
        plan = better
    assert at is not None
    return Fitted(plan, _blame(structure, at, alive))


def _skipped(plan: ShrinkPlan) -> tuple[str, ...]:
    """Layers whose whole forward is replaced: their operators are not compared."""
    return tuple(
        path
        for path, items in plan.rewrites.items()
        if any(i.function == "multi_head_attention" for i in items)
    )


class _Reruns:
    """Forwards of the cut model, by the plan it was cut by; the last two are kept, as the next round asks for one."""

    def __init__(self, structure: Structure, model: nn.Module, example: Any):
        self.structure, self.model, self.example = structure, model, example
        self.last: list[tuple[ShrinkPlan, Trace]] = []

    def of(self, plan: ShrinkPlan) -> Trace:
        """What was recorded of the forward that this plan leaves."""
        for known, found in self.last:
            if known is plan:
                return found
        found = _rerun(self.structure, self.model, self.example, plan)
        self.last = [*self.last[-1:], (plan, found)]
        return found


def _rerun(structure: Structure, model: nn.Module, example: Any, plan: ShrinkPlan) -> Trace:
    twin, _ = traceable_copy(model, structure.trace.mode)
    plan.apply_(twin)
    return trace(twin, example, mode=structure.trace.mode, partial=True, ready=tensors_of(twin))


def _numbers(op: Op) -> list[float]:
    """The plain fractions among an operator's arguments: scales, slopes, epsilons."""
    if op.name in FUSED:  # what is not given follows the size of a head
        scale = op.kwargs.get("scale")
        found = [*op.args, *(value for key, value in op.kwargs.items() if key != "scale")]
        scale = op.args[0].shape[-1] ** -0.5 if scale is None else scale
        return [scale, *(arg for arg in found if isinstance(arg, float))]
    return [arg for arg in (*op.args, *op.kwargs.values()) if isinstance(arg, float)]


def _alike(some: list[float], others: list[float]) -> bool:
    """Whether these are the same numbers, but for how they were rounded."""
    close = (a == b or math.isclose(a, b, rel_tol=1e-12) for a, b in zip(some, others))
    return len(some) == len(others) and all(close)


def _plain_name(op: Op) -> str:
    """An operator's name; ways to say the same are one."""
    name = op.name.removeprefix("_unsafe_").removeprefix("unsafe_")
    return "split" if name in ("split_with_sizes", "chunk") else name


def _mismatch(
    structure: Structure, found: Trace, alive: np.ndarray, skipped: tuple[str, ...]
) -> Mismatch | None:
    """Compare the cut model's operators with what the labels say; None where all agree."""
    old = [op for op in structure.trace.ops if op.name not in _QUIET and not within(op.path, skipped)]
    new = [op for op in found.ops if op.name not in _QUIET and not within(op.path, skipped)]
    for index, op in enumerate(old):
        # What was empty has no labels that could say which shape it has now.
        wanted = [structure.kept_shape(ref, alive) for ref in op.results() if 0 not in ref.shape]
        if index >= len(new):
            if found.error is None:
                break  # fewer operators and no error: a forward that took another way; the proof will tell
            return Mismatch(op, wanted, found.error, index)
        other = new[index]
        if _plain_name(other) != _plain_name(op):
            if found.error is None and len(old) != len(new):
                continue
            return Mismatch(op, wanted, found.error, index)
        got = [ref.shape for ref, was in zip(other.results(), op.results()) if 0 not in was.shape]
        if not op.name.startswith(
            ("split", "unbind", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
        ):
            wanted, got = wanted[:1], got[:1]  # the others are statistics kept for a backward pass
        if any(shape is None or shape != have for shape, have in zip(wanted, got)):
            return Mismatch(op, wanted, None, index)
        if op.path == other.path and not _alike(_numbers(op), _numbers(other)):
            return Mismatch(op, wanted, None, index, (_numbers(op), _numbers(other)))
    if found.error is not None and old:
        return Mismatch(old[-1], [], found.error, len(old))
    return None


def _blame(structure: Structure, at: Mismatch, alive: np.ndarray) -> list[Lock]:
    """The labels that leave at the operator where the cut model goes astray."""

    def leaving(ops: list[Op]) -> list[np.ndarray]:
        refs = [ref for op in ops for ref in (*op.refs(), *op.results())]
        found = [part.labels for ref in refs for part in structure.follower.of(ref).fields]
        gone = [each[~alive[each]].reshape(-1) for each in found]
        return [each for each in gone if each.size]

    labels = leaving([at.op])
    if not labels and at.op.path:  # a number may not be where the width is that it comes from
        labels = leaving([op for op in structure.trace.ops if within(op.path, (at.op.path,))])
    joined = np.unique(np.concatenate(labels)) if labels else np.zeros(0, int)
    why = "the forward has this width written into it"
    if at.numbers is not None:
        was, would = next((a, b) for a, b in zip_longest(*at.numbers) if a != b)
        why = (
            f"the forward works a number out from this width, which would be {would:.6g} instead of {was:.6g}"
        )
    if at.error is not None:
        why += f" ({type(at.error).__name__}: {str(at.error).splitlines()[0][:120] if str(at.error) else ''})"
    return [Lock(joined, why, at.op.name, at.op.path, at.op.index)] if joined.size else []


def _repair(
    structure: Structure,
    model: nn.Module,
    rerun: _Reruns,
    plan: ShrinkPlan,
    alive: np.ndarray,
    at: Mismatch,
    before: list[FunctionCall],
    skipped: tuple[str, ...],
    tried: set[Any],
) -> ShrinkPlan | None:
    """The plan with one more attribute or rewrite, if that carries the forward past this operator."""
    for candidate in candidates(structure, model, plan, alive, at, before):
        key = (at.progress, repr(candidate.attributes), repr(candidate.rewrites))
        if key in tried:
            continue
        tried.add(key)
        again = _skipped(candidate)
        beyond = _mismatch(structure, rerun.of(candidate), alive, again)
        if beyond is None or again != skipped or beyond.op.index > at.op.index:
            return candidate
    return None
