"""Repairs: an attribute of the module set to its new width, or one call given its new sizes, for one operator.

>>> import torch
>>> from torch import nn
>>> dict(integers(nn.Conv2d(3, 8, 2)))["out_channels"]
8
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite import ATTENTION, NUMBER, PIECES, SHAPED, Rewrite
from secateur.structure.groups.couplings import Structure
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.trace import Op, TensorRef

__all__ = ["Mismatch", "candidates", "integers", "spread_repair", "with_fewer_heads", "within"]


@dataclass(frozen=True)
class Mismatch:
    """The first operator of the original that the cut model does not follow as it should."""

    op: Op
    wanted: list[tuple[int, ...] | None]
    error: BaseException | None
    progress: int
    numbers: tuple[list[float], list[float]] | None = None


def within(path: str, parents: tuple[str, ...]) -> bool:
    """Whether a module is one of these or inside one."""
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def spread_repair(
    structure: Structure,
    model: nn.Module,
    plan: ShrinkPlan,
    better: ShrinkPlan,
    alive: np.ndarray,
    at: Mismatch,
    before: list[FunctionCall],
) -> ShrinkPlan:
    """What helped one module, for all modules of the same class, each with its own widths."""
    wider = better
    ops = structure.trace.ops
    for path in {*better.attributes, *better.rewrites}:
        new = {
            name: value
            for name, value in better.attributes.get(path, {}).items()
            if plan.attributes.get(path, {}).get(name) != value
        }
        items = [item for item in better.rewrites.get(path, ()) if item not in plan.rewrites.get(path, ())]
        if not new and not items:
            continue
        kind = type(model.get_submodule(path))
        inside = [op.index for op in ops if within(op.path, (path,))] if path else []
        if at.op.index not in inside:
            continue
        ordinal = inside.index(at.op.index)
        for other, module in model.named_modules():
            if other == path or type(module) is not kind:
                continue
            if items and items[0].function == "multi_head_attention":
                wider = _fewer_heads(structure, model, other, alive, wider) or wider
                continue
            theirs = [op.index for op in ops if within(op.path, (other,))]
            if len(theirs) <= ordinal or ops[theirs[ordinal]].name != at.op.name:
                continue
            op = ops[theirs[ordinal]]
            alike = Mismatch(op, [structure.kept_shape(ref, alive) for ref in op.results()], None, op.index)
            changes = dict(_changes(structure, alike, alive))
            values = {
                name: changes[getattr(module, name)] for name in new if getattr(module, name, None) in changes
            }
            if values:
                wider = _with_attributes(wider, other, values)
            for item in items:
                call = _enclosing(before, op)
                made = None if call is None else _rewrite(structure, call, alike, alive)
                have = wider.rewrites.get(other, ())
                if made is not None and all(one.call != item.call for one in have):
                    made = replace(made, call=item.call)
                    wider = replace(wider, rewrites={**wider.rewrites, other: (*have, made)})
    return wider


def _enclosing(calls: list[FunctionCall], op: Op) -> FunctionCall | None:
    """The size-taking call that made an operator."""
    for call in calls:
        if call.first <= op.index < call.last:
            return call
    return None


def candidates(
    structure: Structure,
    model: nn.Module,
    plan: ShrinkPlan,
    alive: np.ndarray,
    at: Mismatch,
    before: list[FunctionCall],
) -> Iterator[ShrinkPlan]:
    """Plans worth a try, the plainest first: attributes of the module, of its parents; then a rewrite."""
    path = at.op.path
    attention = _attention_of(model, path)
    if attention is not None:
        made = _fewer_heads(structure, model, attention, alive, plan)
        if made is not None:
            yield made
            return
    if at.numbers is not None:
        yield from _old_scales(structure, model, plan, alive, at.op)
        yield from _old_numbers(plan, at)
    changes = dict(_changes(structure, at, alive))
    parts = path.split(".") if path else []
    chain = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
    for place in chain[:3]:
        module = model.get_submodule(place)
        fitting = {
            name: changes[value]
            for name, value in integers(module)
            if value in changes and plan.attributes.get(place, {}).get(name) != changes[value]
        }
        if fitting:
            yield _with_attributes(plan, place, fitting)
            if len(fitting) > 1:
                for name, value in fitting.items():
                    yield _with_attributes(plan, place, {name: value})
    call = _enclosing(before, at.op)
    if call is not None:
        item = _rewrite(structure, call, at, alive)
        if item is not None:
            for place, number in call.numbers:
                made_item = replace(item, call=number)
                have = plan.rewrites.get(place, ())
                if not any(other.call == number for other in have):
                    yield replace(plan, rewrites={**plan.rewrites, place: (*have, made_item)})
                    break


def _with_attributes(plan: ShrinkPlan, path: str, values: Mapping[str, Any]) -> ShrinkPlan:
    merged = {**plan.attributes.get(path, {}), **values}
    return replace(plan, attributes={**plan.attributes, path: merged})


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The whole numbers a module keeps as attributes."""
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_") and value > 1:
            yield name, value


def _changes(structure: Structure, at: Mismatch, alive: np.ndarray) -> Iterator[tuple[int, int]]:
    """Old and new widths around an operator: axes of its tensors, and its own numbers that follow them."""
    refs: list[TensorRef] = [*at.op.refs(), *at.op.results()]
    for ref in refs:
        shape = structure.kept_shape(ref, alive)
        if shape is None:
            continue
        for size, new in zip(ref.shape, shape):
            if size != new:
                yield size, new
    if at.op.name in ("convolution", "native_group_norm"):
        position = 8 if at.op.name == "convolution" else 6
        groups = at.op.args[position]
        shape = structure.kept_shape(at.op.args[0], alive)
        if groups > 1 and shape is not None and shape[1] != at.op.args[0].shape[1]:
            yield groups, groups * shape[1] // at.op.args[0].shape[1]


def _rewrite(structure: Structure, call: FunctionCall, at: Mismatch, alive: np.ndarray) -> Rewrite | None:
    """The rewrite of a call that gives the sizes the labels ask for."""
    ops = structure.trace.ops[call.first : call.last]
    if call.function in PIECES:
        source = ops[0]
        axis = source.arg(2, "dim", 0) % len(source.args[0].shape)
        sizes = []
        for ref in at.op.results():
            shape = structure.kept_shape(ref, alive)
            if shape is None:
                return None
            sizes.append(shape[axis])
        return Rewrite(call.function, 0, tuple(enumerate(sizes)))
    if call.function in SHAPED:
        ref = ops[-1].results()[0]
        shape = structure.kept_shape(ref, alive)
        if shape is None or call.sizes is None:
            return None
        offset = len(shape) - len(call.sizes)
        new = []
        for position, asked in enumerate(call.sizes):
            axis = position + offset if call.function != "unflatten" else call.dim + position
            if shape[axis] != ref.shape[axis] and asked != -1:
                new.append((position, shape[axis]))
        source_shape = (
            structure.kept_shape(ops[0].args[0], alive)
            if ops[0].args and isinstance(ops[0].args[0], TensorRef)
            else None
        )
        if not new and source_shape is not None and -1 not in call.sizes:
            new = [(position, shape[position + offset]) for position in range(len(call.sizes))]
        # A size computed from another (C // heads) is pinned as well wherever it can have moved with a cut width.
        for position in range(len(call.sizes)):
            axis = position + offset
            if (
                (
                    call.function in ("view", "reshape")
                    and position > 0
                    and axis > 0
                    and all(p != position for p, _ in new)
                )
                and call.sizes[position] != -1
                and call.fixed(position)
            ):
                new.append((position, shape[axis]))
        return Rewrite(call.function, 0, tuple(sorted(new))) if new else None
    if call.function == "pad":
        return _pad(structure, ops, alive)
    if call.function == "__getitem__":
        return _slice(structure, call, at, alive)
    if call.function == "narrow":
        op = at.op
        moved = _moved_slice(structure, op, alive)
        return None if moved is None else Rewrite("narrow", 0, ((0, moved[0]), (1, moved[1] - moved[0])))
    return None


def _pad(structure: Structure, ops: list[Op], alive: np.ndarray) -> Rewrite | None:
    op = next((op for op in ops if op.name == "constant_pad_nd"), None)
    if op is None:
        return None
    pad, rank = op.args[1], len(op.args[0].shape)
    out = op.results()[0]
    new = []
    for position, amount in enumerate(pad):
        axis = rank - 1 - position // 2
        part = structure.follower.of(out).at(axis)
        if amount > 0 and part is not None and len(part.axes) == 1:
            stays = alive[part.labels]
            side = stays[:amount] if position % 2 == 0 else stays[-amount:]
            if int(side.sum()) != amount:
                new.append((position, int(side.sum())))
    return Rewrite("pad", 0, tuple(new)) if new else None


def _moved_slice(structure: Structure, op: Op, alive: np.ndarray) -> tuple[int, int] | None:
    """Where a slice starts and ends once the positions before and within it have left."""
    x = op.args[0]
    axis = op.arg(1, "dim", 0) % len(x.shape)
    part = structure.follower.of(x).at(axis)
    if part is None or len(part.axes) > 1 or (op.arg(4, "step", 1) or 1) != 1:
        return None
    start = op.arg(2, "start", 0) or 0
    start = max(0, start + x.shape[axis] if start < 0 else start)
    stays = alive[part.labels]
    first = int(stays[:start].sum())
    return first, first + int(stays[start : start + op.results()[0].shape[axis]].sum())


def _slice(structure: Structure, call: FunctionCall, at: Mismatch, alive: np.ndarray) -> Rewrite | None:
    if at.op.name != "slice":
        return None
    axis = at.op.arg(1, "dim", 0) % len(at.op.args[0].shape)
    moved = _moved_slice(structure, at.op, alive)
    position = call.position_of(axis, len(at.op.args[0].shape))
    if moved is None or position is None:
        return None
    return Rewrite("__getitem__", 0, ((position, (moved[0], moved[1], 1)),))


def with_counts(structure: Structure, plan: ShrinkPlan, alive: np.ndarray) -> ShrinkPlan:
    """The plan with old counts for every operator that divides by how many positions there are."""
    rewrites = {path: list(items) for path, items in plan.rewrites.items()}
    for follower in (structure.follower, *structure.more):
        for each in follower.counted:
            now = int(alive[each.labels].sum())
            have = rewrites.setdefault(each.op.path, [])
            sizes: tuple[tuple[int, int], ...] = ((0, each.labels.size), (1, now))
            sizes += () if each.axis is None else ((2, each.axis),)
            known = {(item.function, item.sizes) for item in have}
            if now < each.labels.size and (each.function, sizes) not in known:
                have.append(Rewrite(each.function, min([-1, *(item.call for item in have)]) - 1, sizes))
    return replace(plan, rewrites={path: tuple(items) for path, items in rewrites.items() if items})


def _old_scales(
    structure: Structure, model: nn.Module, plan: ShrinkPlan, alive: np.ndarray, op: Op
) -> Iterator[ShrinkPlan]:
    """Attention scaled as by the size its heads had: torch's own works the scale out from the size they have."""
    cut_before: Any = getattr(model.get_submodule(op.path), "_secateur_sizes", {}).get(-1)
    have = plan.rewrites.get(op.path, ())
    if any(item.function == ATTENTION for item in have):
        return
    for ref in op.refs():
        shape = structure.kept_shape(ref, alive)
        for old, new in zip(ref.shape[-2:], (shape or ())[-2:]):
            if old != new:
                first = old if cut_before is None else cut_before.sizes[0][1]
                item = Rewrite(ATTENTION, -1, ((0, first), (1, new)))
                yield replace(plan, rewrites={**plan.rewrites, op.path: (*have, item)})


def _old_numbers(plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
    """A number that the forward works out from a width is given as it was."""
    assert at.numbers is not None
    have = plan.rewrites.get(at.op.path, ())
    if len(at.numbers[0]) != len(at.numbers[1]):
        return
    made = tuple(
        Rewrite(NUMBER, -2 - sum(item.call < -1 for item in have) - index, ((0, now), (1, was)))
        for index, (was, now) in enumerate(
            dict.fromkeys((was, now) for was, now in zip(*at.numbers) if was != now)
        )
    )
    yield replace(plan, rewrites={**plan.rewrites, at.op.path: (*have, *made)})


def _attention_of(model: nn.Module, path: str) -> str | None:
    """The torch attention layer an operator ran in, if any."""
    parts = path.split(".") if path else []
    for stop in range(len(parts), max(-1, len(parts) - 2), -1):
        place = ".".join(parts[:stop])
        if isinstance(model.get_submodule(place), nn.MultiheadAttention):
            return place
    return None


def _fewer_heads(
    structure: Structure, model: nn.Module, path: str, alive: np.ndarray, plan: ShrinkPlan
) -> ShrinkPlan | None:
    """The rewrite that lets a torch attention layer run with fewer heads."""
    module: Any = model.get_submodule(path)
    have = plan.rewrites.get(path, ())  # the mean of its heads' weights, if any
    if any(item.function == "multi_head_attention" for item in have):
        return None
    name = f"{path}.in_proj_weight" if module._qkv_same_embed_dim else f"{path}.q_proj_weight"
    name = structure.trace.aliases.get(name, name)
    labels = structure.slots.get((name, 0))
    if labels is None:
        return None
    stays = alive[labels[: module.num_heads * module.head_dim]].reshape(module.num_heads, module.head_dim)
    heads, size = int(stays.any(1).sum()), int(stays.any(0).sum())
    if int(stays.sum()) != heads * size:
        return None
    before = getattr(module, "scaled_as", module.head_dim)
    sizes = ((0, heads), (1, size), *(((2, before),) if size != module.head_dim else ()))
    item = Rewrite("multi_head_attention", -1, sizes)
    return replace(plan, rewrites={**plan.rewrites, path: (item, *have)})


def with_fewer_heads(
    structure: Structure, model: nn.Module, plan: ShrinkPlan, alive: np.ndarray
) -> ShrinkPlan:
    """The plan with its rewrite for every torch attention layer of which heads leave."""
    for path in [
        name.rpartition(".")[0] for name in plan.keep if name.endswith(("in_proj_weight", "q_proj_weight"))
    ]:
        module = model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention) and _heads_leave(structure, path, alive):
            plan = _fewer_heads(structure, model, path, alive, plan) or plan
    return plan


def _heads_leave(structure: Structure, path: str, alive: np.ndarray) -> bool:
    """Whether rows of an attention layer's queries leave."""
    names = (f"{path}.in_proj_weight", f"{path}.q_proj_weight")
    lines = [structure.slots.get((structure.trace.aliases.get(name, name), 0)) for name in names]
    return any(line is not None and not bool(alive[line].all()) for line in lines)
