"""Fit: make the cut model's own forward run with its new widths, and find out which group it is that will not.

The cut model (on meta tensors) is recorded again and compared, operator by operator, with the shapes the labels say it
must have. At the first that disagrees: set an attribute of the module that holds the old width; else rewrite that one
call; else lock the labels that meet there and start over without them. What is given back always ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from secateur.structure.calls import Call, recorded_calls
from secateur.structure.couplings import Structure
from secateur.structure.labels import Lock
from secateur.structure.plan import Plan
from secateur.structure.rewrite import PIECES, SHAPED, Rewrite
from secateur.structure.trace import Op, Ref, Trace, ghost, trace
from secateur.structure.widths import widths_of

__all__ = ["Fitted", "draft", "fit"]

_ROUNDS = 400
_QUIET = frozenset({"clone", "_to_copy", "detach", "alias", "empty", "lift_fresh"})  # they come and go with strides


@dataclass
class Fitted:
    """A plan that runs, or (with `locks`) what must be locked before another is tried."""

    plan: Plan
    locks: list[Lock] = field(default_factory=list)


def draft(structure: Structure, model: nn.Module, alive: np.ndarray) -> Plan:
    """The plan that follows from the labels alone: indices, and the attributes of torch's own layers."""
    keep = structure.keep_of(alive)
    tensors: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
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
    for path, changed in shapes.items():
        first = aliases.get(f"{path}.weight" if path else "weight", f"{path}.weight" if path else "weight")
        found = widths_of(model.get_submodule(path), changed, grouped.get(first))
        if found:
            attributes[path] = found
    attributes.update(_without_weights(structure, model, alive))
    return Plan(
        keep={name: {axis: tuple(map(int, kept)) for axis, kept in axes.items()} for name, axes in keep.items()},
        attributes=attributes,
        shapes=old,
        model=type(model).__name__,
    )


def _without_weights(structure: Structure, model: nn.Module, alive: np.ndarray) -> dict[str, dict[str, Any]]:
    """Widths of layers without parameters of their own: norms that are not affine."""
    found: dict[str, dict[str, Any]] = {}
    for op in structure.trace.ops:
        if op.name not in ("native_group_norm", "native_batch_norm", "_native_batch_norm_legit"):
            continue
        module = model.get_submodule(op.path)
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
    return found


def fit(structure: Structure, model: nn.Module, example: Any, alive: np.ndarray) -> Fitted:
    """Find attributes and rewrites with which the cut model runs as the labels say, or the labels to lock."""
    plan = draft(structure, model, alive)
    before: list[Call] | None = None
    tried: set[Any] = set()
    for _ in range(_ROUNDS):
        skipped = _skipped(plan)
        found = _rerun(structure, model, example, plan)
        at = _mismatch(structure, found, alive, skipped)
        if at is None:
            return Fitted(plan)
        if before is None:
            before = recorded_calls(model, example, structure.trace.mode)
        better = _repair(structure, model, example, plan, alive, at, before, skipped, tried)
        if better is None:
            return Fitted(plan, _blame(structure, at, alive))
        wider = _spread(structure, model, plan, better, alive, at, before)
        if wider != better:
            after = _mismatch(structure, _rerun(structure, model, example, wider), alive, _skipped(wider))
            if after is None or after.op.index > at.op.index:
                better = wider
        plan = better
    return Fitted(plan, _blame(structure, at, alive))


def _skipped(plan: Plan) -> tuple[str, ...]:
    """Layers whose whole forward is replaced: their operators are not compared."""
    return tuple(
        path for path, items in plan.rewrites.items() if any(i.function == "multi_head_attention" for i in items)
    )


def _spread(
    structure: Structure, model: nn.Module, plan: Plan, better: Plan, alive: np.ndarray, at: Mismatch, before: list[Call]
) -> Plan:
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
        inside = [op.index for op in ops if _inside(op.path, (path,))] if path else []
        if at.op.index not in inside:
            continue
        ordinal = inside.index(at.op.index)
        for other, module in model.named_modules():
            if other == path or type(module) is not kind:
                continue
            if items and items[0].function == "multi_head_attention":
                wider = _fewer_heads(structure, model, other, alive, wider) or wider
                continue
            theirs = [op.index for op in ops if _inside(op.path, (other,))]
            if len(theirs) <= ordinal or ops[theirs[ordinal]].name != at.op.name:
                continue
            op = ops[theirs[ordinal]]
            alike = Mismatch(op, [structure.kept_shape(ref, alive) for ref in op.results()], None, op.index)
            changes = dict(_changes(structure, alike, alive))
            values = {name: changes[getattr(module, name)] for name in new if getattr(module, name, None) in changes}
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


def _rerun(structure: Structure, model: nn.Module, example: Any, plan: Plan) -> Trace:
    twin, _ = ghost(model, structure.trace.mode)
    plan.apply_(twin)
    names: dict[str, Any] = dict(twin.named_parameters(remove_duplicate=False))
    names.update(twin.named_buffers(remove_duplicate=False))
    return trace(twin, example, mode=structure.trace.mode, partial=True, ready=names)


def _inside(path: str, parents: tuple[str, ...]) -> bool:
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


@dataclass(frozen=True)
class Mismatch:
    """The first operator of the original that the cut model does not follow as it should."""

    op: Op
    wanted: list[tuple[int, ...] | None]
    error: BaseException | None
    progress: int


def _numbers(op: Op) -> list[float]:
    """The plain fractions among an operator's arguments: scales, slopes, epsilons."""
    return [arg for arg in (*op.args, *op.kwargs.values()) if isinstance(arg, float)]


def _mismatch(structure: Structure, found: Trace, alive: np.ndarray, skipped: tuple[str, ...]) -> Mismatch | None:
    """Compare the cut model's operators with what the labels say; None where all agree."""
    old = [op for op in structure.trace.ops if op.name not in _QUIET and not _inside(op.path, skipped)]
    new = [op for op in found.ops if op.name not in _QUIET and not _inside(op.path, skipped)]
    for index, op in enumerate(old):
        wanted = [structure.kept_shape(ref, alive) for ref in op.results()]
        if index >= len(new):
            if found.error is None:
                break  # fewer operators and no error: a forward that took another way; the proof will tell
            return Mismatch(op, wanted, found.error, index)
        other = new[index]
        if other.name.removeprefix("_unsafe_") != op.name.removeprefix("_unsafe_"):
            if found.error is None and len(old) != len(new):
                continue
            return Mismatch(op, wanted, found.error, index)
        got = [ref.shape for ref in other.results()]
        if not op.name.startswith(("split", "unbind", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")):
            wanted, got = wanted[:1], got[:1]  # the others are statistics kept for a backward pass
        if any(shape is None or shape != have for shape, have in zip(wanted, got)):
            return Mismatch(op, wanted, None, index)
        if op.path == other.path and _numbers(op) != _numbers(other):
            return Mismatch(op, wanted, None, index)
    if found.error is not None and old:
        return Mismatch(old[-1], [], found.error, len(old))
    return None


def _blame(structure: Structure, at: Mismatch, alive: np.ndarray) -> list[Lock]:
    """The labels that leave at the operator where the cut model goes astray."""
    labels = []
    for ref, wanted in [(ref, None) for ref in at.op.refs()] + list(zip(at.op.results(), at.wanted)):
        for part in structure.follower.of(ref).fields:
            gone = part.labels[~alive[part.labels]]
            labels.append(gone.reshape(-1))
    joined = np.unique(np.concatenate(labels)) if labels else np.zeros(0, int)
    why = "the forward has this width written into it"
    if at.error is not None:
        why += f" ({type(at.error).__name__}: {str(at.error).splitlines()[0][:120] if str(at.error) else ''})"
    return [Lock(joined, why, at.op.name, at.op.path, at.op.index)] if joined.size else []


def _enclosing(calls: list[Call], op: Op) -> Call | None:
    """The size-taking call that made an operator."""
    for call in calls:
        if call.first <= op.index < call.last:
            return call
    return None


def _repair(
    structure: Structure,
    model: nn.Module,
    example: Any,
    plan: Plan,
    alive: np.ndarray,
    at: Mismatch,
    before: list[Call],
    skipped: tuple[str, ...],
    tried: set[Any],
) -> Plan | None:
    """The plan with one more attribute or rewrite, if that carries the forward past this operator."""
    for candidate in _candidates(structure, model, plan, alive, at, before):
        key = (at.progress, repr(candidate.attributes), repr(candidate.rewrites))
        if key in tried:
            continue
        tried.add(key)
        found = _rerun(structure, model, example, candidate)
        again = _skipped(candidate)
        beyond = _mismatch(structure, found, alive, again)
        if beyond is None or again != skipped or beyond.op.index > at.op.index:
            return candidate
    return None


def _candidates(
    structure: Structure,
    model: nn.Module,
    plan: Plan,
    alive: np.ndarray,
    at: Mismatch,
    before: list[Call],
) -> Iterator[Plan]:
    """Plans worth a try, the plainest first: attributes of the module, of its parents; then a rewrite."""
    path = at.op.path
    attention = _attention_of(model, path)
    if attention is not None:
        made = _fewer_heads(structure, model, attention, alive, plan)
        if made is not None:
            yield made
            return
    changes = dict(_changes(structure, at, alive))
    parts = path.split(".") if path else []
    chain = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
    for place in chain[:3]:
        module = model.get_submodule(place)
        fitting = {
            name: changes[value]
            for name, value in _integers(module)
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


def _with_attributes(plan: Plan, path: str, values: Mapping[str, Any]) -> Plan:
    merged = {**plan.attributes.get(path, {}), **values}
    return replace(plan, attributes={**plan.attributes, path: merged})


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The whole numbers a module keeps as attributes."""
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_") and value > 1:
            yield name, value


def _changes(structure: Structure, at: Mismatch, alive: np.ndarray) -> Iterator[tuple[int, int]]:
    """Old and new widths around an operator: axes of its tensors, and its own numbers that follow them."""
    refs: list[Ref] = [*at.op.refs(), *at.op.results()]
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


def _rewrite(structure: Structure, call: Call, at: Mismatch, alive: np.ndarray) -> Rewrite | None:
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
        source_shape = structure.kept_shape(ops[0].args[0], alive) if ops[0].args and isinstance(ops[0].args[0], Ref) else None
        if not new and source_shape is not None and -1 not in call.sizes:
            new = [(position, shape[position + offset]) for position in range(len(call.sizes))]
        # A size computed from another (C // heads) is pinned as well wherever it can have moved with a cut width.
        for position in range(len(call.sizes)):
            axis = position + offset
            if call.function in ("view", "reshape") and position > 0 and axis > 0 and all(p != position for p, _ in new):
                if call.sizes[position] != -1 and call.fixed(position):
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


def _slice(structure: Structure, call: Call, at: Mismatch, alive: np.ndarray) -> Rewrite | None:
    if at.op.name != "slice":
        return None
    axis = at.op.arg(1, "dim", 0) % len(at.op.args[0].shape)
    moved = _moved_slice(structure, at.op, alive)
    position = call.position_of(axis, len(at.op.args[0].shape))
    if moved is None or position is None:
        return None
    return Rewrite("__getitem__", 0, ((position, (moved[0], moved[1], 1)),))


def _attention_of(model: nn.Module, path: str) -> str | None:
    """The torch attention layer an operator ran in, if any."""
    parts = path.split(".") if path else []
    for stop in range(len(parts), max(-1, len(parts) - 2), -1):
        place = ".".join(parts[:stop])
        if isinstance(model.get_submodule(place), nn.MultiheadAttention):
            return place
    return None


def _fewer_heads(structure: Structure, model: nn.Module, path: str, alive: np.ndarray, plan: Plan) -> Plan | None:
    """The rewrite that lets a torch attention layer run with fewer heads."""
    module = model.get_submodule(path)
    if path in plan.rewrites:
        return None
    name = f"{path}.in_proj_weight" if module._qkv_same_embed_dim else f"{path}.q_proj_weight"
    name = structure.trace.aliases.get(name, name)
    labels = structure.slots.get((name, 0))
    if labels is None:
        return None
    rows = int(alive[labels].sum()) // (3 if module._qkv_same_embed_dim else 1)
    size = module.head_dim
    if rows % size:
        return None
    item = Rewrite("multi_head_attention", -1, ((0, rows // size), (1, size)))
    return replace(plan, rewrites={**plan.rewrites, path: (item,)})
