"""Repairs: changes with which a cut model's forward runs again: an attribute set to its new width, or one call with new
sizes.

The cut model is run and compared with the original, operator by operator. Where they differ (a `Mismatch`), `Repairs`
yields plans with one more change each, the simplest first: an attribute of the module or its parents that holds the old
width, then a rewrite of the call that made the operator. A change that helped one module is tried on all of its class
at once.

>>> import torch
>>> from torch import nn
>>> dict(integers(nn.Conv2d(3, 8, 2)))["out_channels"]
8
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from secateur.execution.example import Example
from secateur.structure.cut.call_sites import site_of
from secateur.structure.cut.fewer_heads import attention_of, fewer_heads
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite_data import BY_PLACE, HEADS, NUMBER, Rewrite
from secateur.structure.groups.couplings import KeptShapes, Structure
from secateur.structure.trace.calls import ATTENTION, PIECES, SHAPED, FunctionCall
from secateur.structure.trace.other_shapes import other_shapes
from secateur.structure.trace.trace import Op, TensorRef

__all__ = ["Mismatch", "Repairs", "integers", "within"]


@dataclass(frozen=True)
class Mismatch:
    """The first operator of the original with which the cut model disagrees.

    Attributes:
        op: The operator of the original.
        wanted: The shapes its results must have once cut; None if that is not rectangular.
        error: The exception of the cut model's forward, if any.
        progress: How many operators agreed.
        numbers: The plain fractions among the operator's arguments, before and now, where they differ.
        calls: The size-taking calls that the cut model's forward made.
    """

    op: Op
    wanted: list[tuple[int, ...] | None]
    error: BaseException | None
    progress: int
    numbers: tuple[list[float], list[float]] | None = None
    calls: Sequence[FunctionCall] = ()


def within(path: str, parents: tuple[str, ...]) -> bool:
    """Whether a module is one of some others or inside one.

    Args:
        path: The module's dotted name.
        parents: The names of the others.

    >>> within("a.b", ("a",)), within("ab", ("a",))
    (True, False)
    """
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The whole numbers above 1 that a module keeps as public attributes.

    Args:
        module: The module.

    Yields:
        (name, value) pairs.
    """
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_") and value > 1:
            yield name, value


@dataclass(frozen=True, eq=False)
class Repairs:
    """The repairs of one cut.

    Attributes:
        structure: The structure of the original.
        model: The original.
        example: The example it was recorded on.
        alive: Which labels remain.
        elsewhere: The calls of the original on inputs of other shapes; None where they are to be recorded.
        by_place: Rewrites know their calls by the place in the source alone, not by number: other inputs of the same
            model make these calls at another number, or not at all.
    """

    structure: Structure
    model: nn.Module
    example: Example
    alive: np.ndarray
    elsewhere: Sequence[Sequence[FunctionCall]] | None = None
    by_place: bool = False

    # -- for one operator ----------------------------------------------------------------------------------------------
    def candidates(self, plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
        """Plans to try, the simplest first: attributes of the module and its parents; then a rewrite.

        Args:
            plan: The plan so far.
            at: Where the cut model disagrees with it.

        Yields:
            The plan with one more change.
        """
        path = at.op.path
        attention = attention_of(self.model, path)
        if attention is not None:
            made = fewer_heads(self.structure, self.model, attention, self.alive, plan)
            if made is not None:
                yield made
                return
        if at.numbers is not None:
            yield from self._old_scales(plan, at.op)
            yield from _old_numbers(plan, at)
        yield from self._attributes(plan, at)
        yield from self._rewrites(plan, at)

    def _attributes(self, plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
        """The plan with attributes that hold an old width set to the new one: all together, then one by one."""
        changes = dict(self._changes(at))
        parts = at.op.path.split(".") if at.op.path else []
        chain = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
        for place in chain[:3]:
            fitting = {
                name: changes[value]
                for name, value in integers(self.model.get_submodule(place))
                if value in changes and plan.attributes.get(place, {}).get(name) != changes[value]
            }
            if fitting:
                yield _with_attributes(plan, place, fitting)
                if len(fitting) > 1:
                    for name, value in fitting.items():
                        yield _with_attributes(plan, place, {name: value})

    def _rewrites(self, plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
        """The plan with a rewrite of the call that made the operator."""
        call = _enclosing(self.structure.trace.calls, at.op)
        if call is None:
            return
        given = next((now.sizes for now in at.calls if now.numbers[:1] == call.numbers[:1]), None)
        item = self._rewrite(call, at, given)
        if item is None:
            return
        if self.by_place:
            yield from self._placed(plan, call, item)
            return
        for place, number in call.numbers:
            have = plan.rewrites.get(place, ())
            if not any(other.call == number for other in have):
                yield _with_rewrite(plan, place, replace(item, call=number))
                return

    def _placed(self, plan: ShrinkPlan, call: FunctionCall, item: Rewrite) -> Iterator[ShrinkPlan]:
        """The plan with a rewrite that is known by its place in the source."""
        place = call.numbers[0][0] if call.numbers else None
        if place is None or not call.chain:
            return
        site = site_of(type(self.model.get_submodule(place)), call.chain)
        have = plan.rewrites.get(place, ())
        if site is None or any(other.site is None or other.site == site for other in have):
            return
        number = max([BY_PLACE - 1, *(other.call for other in have)]) + 1
        yield _with_rewrite(plan, place, replace(item, call=number, site=site))

    def _changes(self, at: Mismatch) -> Iterator[tuple[int, int]]:
        """Old and new widths around an operator: axes of its tensors, and its own numbers that follow them."""
        refs: list[TensorRef] = [*at.op.refs(), *at.op.results()]
        for ref in refs:
            shape = self._kept(ref)
            if shape is None:
                continue
            for size, new in zip(ref.shape, shape):
                if size != new:
                    yield size, new
        if at.op.name in ("convolution", "native_group_norm"):
            groups = at.op.args[8 if at.op.name == "convolution" else 6]
            shape = self._kept(at.op.args[0])
            if groups > 1 and shape is not None and shape[1] != at.op.args[0].shape[1]:
                yield groups, groups * shape[1] // at.op.args[0].shape[1]

    def _kept(self, ref: TensorRef) -> tuple[int, ...] | None:
        return self.kept.of(ref)

    @cached_property
    def kept(self) -> KeptShapes:
        """The shapes of all tensors once cut."""
        return KeptShapes(self.structure, self.alive)

    # -- for all modules of a class ------------------------------------------------------------------------------------
    def spread(self, plan: ShrinkPlan, better: ShrinkPlan, at: Mismatch) -> ShrinkPlan:
        """Apply a change that helped one module to all modules of its class, each with its own widths.

        Args:
            plan: The plan before.
            better: The plan with the change that helped.
            at: The mismatch that it helped against.

        Returns:
            `better` with more changes, which are still to be tried.
        """
        wider = better
        for path in {*better.attributes, *better.rewrites}:
            before = plan.attributes.get(path, {})
            names = [
                name for name, value in better.attributes.get(path, {}).items() if before.get(name) != value
            ]
            items = [
                item for item in better.rewrites.get(path, ()) if item not in plan.rewrites.get(path, ())
            ]
            inside = self._inside.get(path, []) if path else []
            if not (names or items) or at.op.index not in inside:
                continue
            kind, ordinal = type(self.model.get_submodule(path)), inside.index(at.op.index)
            for other, module in self.model.named_modules():
                if other == path or type(module) is not kind:
                    continue
                if items and items[0].function == HEADS:
                    wider = fewer_heads(self.structure, self.model, other, self.alive, wider) or wider
                    continue
                alike = self._alike(path, other, ordinal, at)
                if alike is not None:
                    wider = self._spread_to(other, wider, names, items, at, alike)
        return wider

    @cached_property
    def _inside(self) -> dict[str, list[int]]:
        """The operators that run inside each module, by index."""
        found: dict[str, list[int]] = {}
        for op in self.structure.trace.ops:
            parts = op.path.split(".")
            for stop in range(1, len(parts) + 1):
                found.setdefault(".".join(parts[:stop]), []).append(op.index)
        return found

    def _alike(self, path: str, other: str, ordinal: int, at: Mismatch) -> Mismatch | None:
        """The mismatch that another module of the class must have: at the operator that the same place in the source
        makes, or else at its operator of the same ordinal.
        """
        op = self._at_same_place(path, other, at.op)
        if op is None:
            theirs = self._inside.get(other, [])
            op = self.structure.trace.ops[theirs[ordinal]] if ordinal < len(theirs) else None
            if op is None or op.name != at.op.name:
                return None
        return Mismatch(op, [self._kept(ref) for ref in op.results()], None, op.index)

    def _at_same_place(self, path: str, other: str, op: Op) -> Op | None:
        """The last operator of the call that another module makes at the place where this one's call made `op` last."""
        call = _enclosing(self.structure.trace.calls, op)
        place = None if call is None else self._places.get(id(call))
        if call is None or place is None or not call.chain or op.index != call.last - 1:
            return None
        inner = place[0]
        if not within(inner, (path,)):
            return None
        theirs = self._calls_by_place.get((other + inner[len(path) :], *place[1:]))
        return None if theirs is None else self.structure.trace.ops[theirs.last - 1]

    def _spread_to(
        self,
        path: str,
        plan: ShrinkPlan,
        names: Sequence[str],
        items: Sequence[Rewrite],
        at: Mismatch,
        alike: Mismatch,
    ) -> ShrinkPlan:
        """The plan with the same attributes and rewrites for one more module."""
        changes, module = dict(self._changes(alike)), self.model.get_submodule(path)
        values = {
            name: changes[getattr(module, name)] for name in names if getattr(module, name, None) in changes
        }
        if values:
            plan = _with_attributes(plan, path, values)
        calls = self.structure.trace.calls
        call, template = _enclosing(calls, alike.op), _enclosing(calls, at.op)
        for item in items:
            if call is None or template is None:
                continue
            made = self._rewrite(call, alike, self._given_alike(call, alike, template, at))
            if made is not None and self.by_place:
                plan = next(self._placed(plan, call, made), plan)
            elif made is not None:
                number = next((number for place, number in call.numbers if place == path), item.call)
                if all(one.call != number for one in plan.rewrites.get(path, ())):
                    plan = _with_rewrite(plan, path, replace(made, call=number))
        return plan

    def _given_alike(
        self, call: FunctionCall, alike: Mismatch, template: FunctionCall, at: Mismatch
    ) -> tuple[int, ...] | None:
        """The sizes that another module's cut forward will ask for, by analogy with this one's."""
        given = next((now.sizes for now in at.calls if now.numbers[:1] == template.numbers[:1]), None)
        wanted, theirs = self._kept(at.op.results()[0]), self._kept(alike.op.results()[0])
        if given is None or call.sizes is None or template.sizes is None or wanted is None or theirs is None:
            return call.sizes
        if not len(given) == len(call.sizes) == len(template.sizes) == len(theirs) == len(wanted):
            return call.sizes
        return tuple(
            right if now == want != was else asked if now in (want, was) else _scaled(right, now, want)
            for now, want, was, right, asked in zip(given, wanted, template.sizes, theirs, call.sizes)
        )

    # -- one call ------------------------------------------------------------------------------------------------------
    def _rewrite(self, call: FunctionCall, at: Mismatch, given: tuple[int, ...] | None) -> Rewrite | None:
        """The rewrite of a call that gives the sizes the labels ask for.

        `given` are the sizes that the cut model's forward asks for as it is, where they are known.
        """
        if call.function in PIECES:
            return self._pieces(call, at)
        if call.function in SHAPED:
            return self._shaped(call, given)
        if call.function == "pad":
            return self._pad(call)
        if call.function in ("__getitem__", "narrow") and at.op.name == "slice":
            return self._slice(call, at.op)
        return None

    def _ops(self, call: FunctionCall) -> list[Op]:
        return self.structure.trace.ops[call.first : call.last]

    def _pieces(self, call: FunctionCall, at: Mismatch) -> Rewrite | None:
        """The pieces of an axis, each with its remaining length."""
        source = self._ops(call)[0]
        axis = source.arg(2, "dim", 0) % len(source.args[0].shape)
        shapes = [self._kept(ref) for ref in at.op.results()]
        if any(shape is None for shape in shapes):
            return None
        sizes = tuple(enumerate(shape[axis] for shape in shapes if shape is not None))
        return Rewrite(call.function, 0, sizes)

    def _shaped(self, call: FunctionCall, given: tuple[int, ...] | None) -> Rewrite | None:
        """A shape in which changed sizes have their new value, and sizes that depend on the inputs still do."""
        ops = self._ops(call)
        ref = ops[-1].results()[0]
        shape, asked = self._kept(ref), call.sizes
        if shape is None or asked is None:
            return None
        first = call.dim if call.function == "unflatten" else len(shape) - len(asked)
        free = self._following(call)
        sizes = [
            (position, size)
            for position, size in enumerate(shape[first : first + len(asked)])
            if asked[position] != -1
        ]
        now = asked if given is None or len(given) != len(asked) else given
        moved_sizes = [pair for pair in sizes if pair[1] != ref.shape[first + pair[0]]]
        new = _new_sizes(moved_sizes, now, free)
        if not new and -1 not in asked and self._input_moved(ops[0]):
            new = {position: size for position, size in sizes if position not in free}
        if call.function in ("view", "reshape"):
            # A size computed from another one (C // heads) can change with a cut width by mistake. One that the cut
            # forward asks for rightly as it is stays an expression: it may follow the input.
            for position, size in sizes[1:]:
                if position > 1 and position not in free and (given is None or now[position] != size):
                    new.setdefault(position, size)
        return Rewrite(call.function, 0, tuple(sorted(new.items()))) if new else None

    @cached_property
    def _other_calls(self) -> list[dict[_Place, FunctionCall]]:
        """The calls of the original on inputs of other shapes, by place."""
        if self.elsewhere is not None:
            return [_by_place(calls) for calls in self.elsewhere]
        found = other_shapes(self.model, self.example, self.structure.trace.mode)
        return [_by_place(other.calls) for other in found]

    @cached_property
    def _places(self) -> dict[int, _Place]:
        """The place of every call of the original, by the call's identity."""
        return {id(call): place for place, call in self._calls_by_place.items()}

    @cached_property
    def _calls_by_place(self) -> dict[_Place, FunctionCall]:
        """Every call of the original, by its place."""
        return _by_place(self.structure.trace.calls)

    def _input_moved(self, op: Op) -> bool:
        """Whether the first input of an operator has another shape after the cut."""
        source = op.args[0] if op.args else None
        return isinstance(source, TensorRef) and self._kept(source) is not None

    def _following(self, call: FunctionCall) -> set[int]:
        """The positions of a call's sizes that change with the shapes of the inputs."""
        found: set[int] = set()
        place = self._places.get(id(call))
        for calls in self._other_calls:
            other = None if place is None else calls.get(place)
            if other is None or other.function != call.function or other.sizes is None or call.sizes is None:
                continue
            if len(other.sizes) == len(call.sizes):
                found |= {p for p, (a, b) in enumerate(zip(call.sizes, other.sizes)) if a != b}
        return found

    def _pad(self, call: FunctionCall) -> Rewrite | None:
        """Padding that adds only the remaining channels."""
        op = next((op for op in self._ops(call) if op.name == "constant_pad_nd"), None)
        if op is None:
            return None
        pad, rank = op.args[1], len(op.args[0].shape)
        out = op.results()[0]
        new = []
        for position, amount in enumerate(pad):
            part = self.structure.follower.of(out).at(rank - 1 - position // 2)
            if amount > 0 and part is not None and len(part.axes) == 1:
                stays = self.alive[part.labels]
                left = int((stays[:amount] if position % 2 == 0 else stays[-amount:]).sum())
                if left != amount:
                    new.append((position, left))
        return Rewrite("pad", 0, tuple(new)) if new else None

    def _slice(self, call: FunctionCall, op: Op) -> Rewrite | None:
        """A slice with the bounds that it has once positions before and within it are removed."""
        x = op.args[0]
        axis = op.arg(1, "dim", 0) % len(x.shape)
        part = self.structure.follower.of(x).at(axis)
        if part is None or len(part.axes) > 1 or (op.arg(4, "step", 1) or 1) != 1:
            return None
        start = op.arg(2, "start", 0) or 0
        start = max(0, start + x.shape[axis] if start < 0 else start)
        stays = self.alive[part.labels]
        first = int(stays[:start].sum())
        count = int(stays[start : start + op.results()[0].shape[axis]].sum())
        if call.function == "narrow":
            return Rewrite("narrow", 0, ((0, first), (1, count)))
        position = call.position_of(axis, len(x.shape))
        return (
            None if position is None else Rewrite("__getitem__", 0, ((position, (first, first + count, 1)),))
        )

    # -- numbers -------------------------------------------------------------------------------------------------------
    def _old_scales(self, plan: ShrinkPlan, op: Op) -> Iterator[ShrinkPlan]:
        """Attention scaled by the original size of its heads: torch computes its scale from the present size."""
        table: Mapping[int, Rewrite] = getattr(self.model.get_submodule(op.path), "_secateur_sizes", {})
        cut_before = table.get(-1)
        have = plan.rewrites.get(op.path, ())
        if any(item.function == ATTENTION for item in have):
            return
        for ref in op.refs():
            shape = self._kept(ref)
            for old, new in zip(ref.shape[-2:], (shape or ())[-2:]):
                if old != new:
                    first = old if cut_before is None else cut_before.sizes[0][1]
                    yield _with_rewrite(plan, op.path, Rewrite(ATTENTION, -1, ((0, first), (1, new))))


_Place = tuple[str, object, int]


def _by_place(calls: Sequence[FunctionCall]) -> dict[_Place, FunctionCall]:
    """Calls by their module, their place in its source, and how often it was reached before.

    A forward may take another branch for another shape, in which its calls have other numbers.
    """
    found: dict[_Place, FunctionCall] = {}
    reached: Counter[tuple[str, object]] = Counter()
    for call in calls:
        if call.numbers:
            path, number = call.numbers[0]
            where = path, call.chain or number
            found[(*where, reached[where])] = call
            reached[where] += 1
    return found


def _new_sizes(
    moved: Sequence[tuple[int, int]], now: Sequence[int], free: set[int]
) -> dict[int, int | tuple[int, int]]:
    """The changed sizes, by position; for those that depend on the inputs, the fraction of the size asked for `now`."""
    new: dict[int, int | tuple[int, int]] = {}
    for position, size in moved:
        if position not in free:
            new[position] = size
        elif now[position] != size:
            new[position] = _fraction(size, now[position])
    return new


def _scaled(right: int, now: int, want: int) -> int:
    """The size that a cut forward asks for where it works it out wrongly (C // heads), as another module of it does.

    Args:
        right: The size that it must have.
        now: The size that the other module asks for.
        want: The size that it must have there.

    >>> _scaled(16, 96, 32)
    48
    """
    return right * now // want if want > 0 and now > 0 else -2


def _fraction(new: int, old: int) -> int | tuple[int, int]:
    """`new` as a fraction of `old`, in lowest terms; unchanged if `old` is 0."""
    if old < 1:
        return new
    common = math.gcd(new, old)
    return new // common, old // common


def _enclosing(calls: Sequence[FunctionCall], op: Op) -> FunctionCall | None:
    """The size-taking call that made an operator."""
    return next((call for call in calls if call.first <= op.index < call.last), None)


def _with_attributes(plan: ShrinkPlan, path: str, values: Mapping[str, Any]) -> ShrinkPlan:
    merged = {**plan.attributes.get(path, {}), **values}
    return replace(plan, attributes={**plan.attributes, path: merged})


def _with_rewrite(plan: ShrinkPlan, path: str, *items: Rewrite) -> ShrinkPlan:
    return replace(plan, rewrites={**plan.rewrites, path: (*plan.rewrites.get(path, ()), *items)})


def _old_numbers(plan: ShrinkPlan, at: Mismatch) -> Iterator[ShrinkPlan]:
    """The plan in which numbers that the forward computes from a width keep their old values."""
    assert at.numbers is not None
    have = plan.rewrites.get(at.op.path, ())
    if len(at.numbers[0]) != len(at.numbers[1]):
        return
    pairs = dict.fromkeys((was, now) for was, now in zip(*at.numbers) if was != now)
    first = -2 - sum(item.call < -1 for item in have)
    made = [Rewrite(NUMBER, first - index, ((0, now), (1, was))) for index, (was, now) in enumerate(pairs)]
    yield _with_rewrite(plan, at.op.path, *made)
