"""The effect of operators on layouts: broadcast, reduce, reshape, slice and concatenate, position by position.

>>> labels = Labels()
>>> x = Layout((2, 6), (Field((1,), labels.fresh(6)),))
>>> [field.axes for field in reshape(labels, x, (2, 3, 2)).fields]
[(1, 2)]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.structure.groups.labels import Field, Labels, Layout, squeezed

__all__ = ["concat", "drop_axes", "merge", "moved", "reduce_field", "reshape", "take", "weakly"]

LIMIT = 1 << 23  # labels of one field: a reshape that would need more is not followed


def weakly(
    labels: Labels, shape: Sequence[int], axes: Sequence[int] | None = None, zero: bool = False
) -> Layout:
    """The layout of a tensor that holds one value everywhere: each axis may become as short as the axis it meets."""
    chosen = range(len(shape)) if axes is None else axes
    fields = tuple(
        Field((axis,), labels.fresh(shape[axis]), zero=zero, weak=2)
        for axis in chosen
        if 1 < shape[axis] < LIMIT
    )
    return Layout(tuple(shape), fields)


def moved(layout: Layout, order: Sequence[int]) -> Layout:
    """`permute`: axis order[i] of the input becomes axis i."""
    rank = len(layout.shape)
    order = [axis % rank for axis in order]
    where = {axis: position for position, axis in enumerate(order)}
    return Layout(
        tuple(layout.shape[axis] for axis in order), tuple(field.moved(where) for field in layout.fields)
    )


def reduce_field(labels: Labels, field: Field, axes: Sequence[int]) -> Field | None:
    """A field without some of its axes: labels along them are tied. None when no axis is left."""
    array, kept = field.labels, list(field.axes)
    for axis in axes:
        position = kept.index(axis)
        if len(kept) == 1:
            return None
        first = array.take([0], position)
        labels.tie(array, first)
        array = first.squeeze(position)
        del kept[position]
    return Field(tuple(kept), array, field.zero, field.weak)


def drop_axes(
    labels: Labels,
    layout: Layout,
    axes: Sequence[int],
    reason: str,
    keep: bool = False,
    zero_ok: bool = False,
) -> Layout:
    """A reduction: joint fields lose the axes, a field over only these is locked (unless removed zeros have no
    effect).
    """
    rank = len(layout.shape)
    gone = {axis % rank for axis in axes} if rank else set()
    fields = []
    for field in layout.fields:
        inside = [axis for axis in field.axes if axis in gone]
        if not inside:
            fields.append(field)
            continue
        if len(inside) == len(field.axes):
            if not (zero_ok and field.zero):
                labels.lock(field.labels, reason)
            continue
        slim = reduce_field(labels, field, inside)
        if slim is not None:
            fields.append(slim)
    if keep:
        shape = tuple(1 if axis in gone else size for axis, size in enumerate(layout.shape))
        return squeezed(labels, shape, fields)
    left = [axis for axis in range(rank) if axis not in gone]
    where = {axis: position for position, axis in enumerate(left)}
    return squeezed(labels, [layout.shape[axis] for axis in left], [field.moved(where) for field in fields])


def merge(
    labels: Labels,
    shape: Sequence[int],
    operands: Sequence[tuple[Layout, Sequence[int]]],
    zero: str = "all",
) -> Layout:
    """Operands broadcast to `shape`; each comes with the output axis of each of its axes.

    An operand constrains an axis if it is as long as the output. `zero` says when a removed position is 0 in the
    result: if it is so in "all" operands (a sum), in "any" (a product), or "none".
    """
    spans = [
        {axis for size, axis in zip(layout.shape, axes) if size == shape[axis] and size > 1}
        for layout, axes in operands
    ]
    fields = [
        [field.moved(axes) for field in layout.fields if all(axes[axis] in span for axis in field.axes)]
        for (layout, axes), span in zip(operands, spans)
    ]
    if not any(fields):
        return Layout(tuple(shape))
    _yield_buffers(labels, fields)
    while _lock_where_fixed(labels, fields, spans) or _split_conflicts(labels, fields, len(shape)):
        pass
    return _joined(labels, shape, fields, zero, len(operands))


def _yield_buffers(labels: Labels, fields: list[list[Field]]) -> None:
    """Where a buffer's axis meets axes that are bound jointly, the joint field stays and the buffer's gives way."""
    joint = {axis for mine in fields for field in mine if len(field.axes) > 1 for axis in field.axes}
    for mine in fields if joint else ():
        for field in [field for field in mine if field.weak == 1 and joint & set(field.axes)]:
            if len(field.axes) > 1:
                continue
            if labels.sizes:
                _only(labels, fields, field.axes[0])
            else:
                labels.lock(field.labels, "a buffer that meets a joint axis")
                mine.remove(field)


def _lock_where_fixed(labels: Labels, fields: list[list[Field]], spans: Sequence[set[int]]) -> bool:
    """Take an axis from all fields where one operand is as long as the output and has no labels there.

    Returns:
        Whether a field changed, so that the operands must be checked again.
    """
    changed = False
    for mine, span in zip(fields, spans):
        fixed = span - {axis for field in mine for axis in field.axes}
        for others in fields if fixed else ():
            changed |= _without_axes(labels, others, fixed)
    return changed


def _without_axes(labels: Labels, fields: list[Field], fixed: set[int]) -> bool:
    """Take the axes from the first field that has any of them; lock it if none is left. Whether there was one."""
    for index, field in enumerate(fields):
        hit = [axis for axis in field.axes if axis in fixed]
        if not hit:
            continue
        slim = reduce_field(labels, field, hit)
        if slim is None:
            labels.lock(field.labels, "meets an axis that cannot be cut")
            del fields[index]
        else:
            fields[index] = slim
        return True
    return False


def _only(labels: Labels, fields: list[list[Field]], axis: int) -> None:
    """Joint fields that hold an axis keep it alone: labels along their other axes are tied."""
    for mine in fields:
        for index, field in enumerate(mine):
            if axis in field.axes and len(field.axes) > 1:
                slim = reduce_field(labels, field, [other for other in field.axes if other != axis])
                assert slim is not None
                labels.narrowed.update(slim.labels.tolist())
                mine[index] = slim


def _groups(fields: Sequence[Sequence[Field]]) -> list[set[int]]:
    """The sets of axes that fields bind together."""
    groups: list[set[int]] = []
    for field in (field for mine in fields for field in mine):
        bound = set(field.axes)
        rest = []
        for group in groups:
            if group & bound:
                bound |= group
            else:
                rest.append(group)
        groups = [*rest, bound]
    return groups


def _split_conflicts(labels: Labels, fields: list[list[Field]], rank: int) -> bool:
    """Where one operand holds two fields inside what another binds jointly, keep the stronger and lock the other.

    A bias of queries, [heads, size], added to [batch, length, heads, size] keeps its heads, the outer axis, or their
    size where heads are to become smaller. In a tensor of fewer axes the outer one may be the length of a sequence,
    which no layer can be cut by, so that the longer is kept.
    """
    for group in _groups(fields):
        if len(group) < 2:
            continue
        for mine in fields:
            inside = sorted((f for f in mine if group & set(f.axes)), key=lambda f: (f.weak, -f.labels.size))
            if len(inside) == 2 and rank > 3 and inside[0].weak == inside[1].weak:
                inside.sort(key=lambda f: f.axes, reverse=labels.sizes)
            if len(inside) > 1:
                labels.lock(inside[-1].labels, "two axes that could be cut are folded into one")
                mine.remove(inside[-1])
                return True
    return False


def _joined(labels: Labels, shape: Sequence[int], fields: list[list[Field]], zero: str, count: int) -> Layout:
    """Tie labels on the same positions, and keep one field for each set of bound axes."""
    out = []
    for group in _groups(fields):
        axes = tuple(sorted(group))
        found = [field for mine in fields for field in mine if group & set(field.axes)]
        found.sort(key=lambda f: f.weak)
        if all(field.axes == axes for field in found):
            array = found[0].labels
            for other in found[1:]:
                labels.tie(array, other.labels)
        else:
            found.sort(key=lambda f: (f.weak, len(f.axes)))
            array = found[0].over(axes, shape)
            for other in found[1:]:
                labels.tie(array, other.over(axes, shape))
        if zero == "any":
            is_zero = any(field.zero for field in found)
        elif zero == "all":
            is_zero = len(found) == count and all(field.zero for field in found)
        else:
            is_zero = False
        out.append(Field(axes, array, zero=is_zero, weak=min(field.weak for field in found)))
    return squeezed(labels, shape, out)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of input and output axes with equal products; axes of size 1 stay out.

    >>> _blocks((2, 6, 5), (2, 3, 2, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    blocks = []
    i = j = 0
    while i < len(left) and j < len(right):
        ins, outs = [left[i]], [right[j]]
        a, b = old[left[i]], new[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                ins.append(left[i])
                a *= old[left[i]]
                i += 1
            else:
                outs.append(right[j])
                b *= new[right[j]]
                j += 1
        blocks.append((ins, outs))
    return blocks


def reshape(labels: Labels, layout: Layout, shape: Sequence[int]) -> Layout:
    """`view`: the labels are laid out over the new axes in the same order as the elements are."""
    if not layout.fields:
        return Layout(tuple(shape))
    if 0 in shape or 0 in layout.shape:
        for field in layout.fields:
            labels.lock(field.labels, "reshape of an empty tensor")
        return Layout(tuple(shape))
    blocks = _blocks(layout.shape, shape)
    out = []
    for field in layout.fields:
        touched = [block for block in blocks if set(block[0]) & set(field.axes)]
        ins = tuple(sorted(axis for block in touched for axis in block[0]))
        outs = tuple(sorted(axis for block in touched for axis in block[1]))
        if not outs:
            labels.lock(field.labels, "one position alone fills the axis")
            continue
        if len(ins) == len(outs) == len(field.axes):  # nothing folded, nothing split
            out.append(Field(outs, field.labels, field.zero, field.weak))
            continue
        if int(np.prod([layout.shape[axis] for axis in ins])) > LIMIT:
            labels.lock(field.labels, "a reshape too large to follow")
            continue
        array = np.ascontiguousarray(field.over(ins, layout.shape)).reshape([shape[axis] for axis in outs])
        out.append(Field(outs, array, field.zero, field.weak))
    result = squeezed(labels, shape, out)
    for field in result.fields:
        labels.rectangle(field.labels)
    return result


def take(labels: Labels, layout: Layout, axis: int, index: np.ndarray | slice) -> Layout:
    """Chosen positions of one axis, in the order chosen."""
    rank = len(layout.shape)
    axis %= rank
    size = len(range(layout.shape[axis])[index]) if isinstance(index, slice) else len(index)
    shape = tuple(size if a == axis else s for a, s in enumerate(layout.shape))
    fields = []
    for field in layout.fields:
        if axis in field.axes:
            position = field.axes.index(axis)
            where = (slice(None),) * position + (index,)
            field = Field(field.axes, field.labels[where], field.zero, field.weak)
            if not field.labels.size:
                continue
        fields.append(field)
    return squeezed(labels, shape, fields)


def concat(labels: Labels, layouts: Sequence[Layout], axis: int) -> Layout:
    """`cat`: labels one after the other along the axis, tied along the others."""
    layouts = [layout for layout in layouts if layout.shape != (0,)]  # torch.cat leaves these out
    if not layouts:
        return Layout((0,))
    rank = len(layouts[0].shape)
    axis %= rank
    layouts = [layout for layout in layouts if layout.shape[axis]] or list(layouts)
    total = sum(layout.shape[axis] for layout in layouts)
    shape = tuple(total if a == axis else s for a, s in enumerate(layouts[0].shape))
    # A joint field across the axis must be joint in every piece; where a piece is fixed, the others lose the axis.
    along = [layout.at(axis) for layout in layouts]
    joint = sorted({a for field in along if field is not None and len(field.axes) > 1 for a in field.axes})
    if joint:
        whole = _concat_joint(labels, layouts, axis, shape, tuple(joint))
        return concat(labels, _without_axis(labels, layouts, axis), axis) if whole is None else whole
    fields = _tied_beside(labels, layouts, shape, (axis,))
    return squeezed(labels, shape, [*fields, *_in_a_row(along, layouts, axis)])


def _in_a_row(along: Sequence[Field | None], layouts: Sequence[Layout], axis: int) -> list[Field]:
    """One field over the joined axis; pieces without labels there are fixed. None where no piece has any."""
    present = [field for field in along if field is not None]
    if not present:
        return []
    pieces = [
        field.labels if field is not None else np.zeros(layout.shape[axis], int)
        for field, layout in zip(along, layouts)
    ]
    zero, weak = all(field.zero for field in present), min(field.weak for field in present)
    return [Field((axis,), np.concatenate(pieces), zero=zero, weak=weak)]


def _tied_beside(
    labels: Labels, layouts: Sequence[Layout], shape: Sequence[int], axes: Sequence[int]
) -> list[Field]:
    """The fields over all other axes, on which the pieces lie beside each other: tied position by position."""
    free = [a for a in range(len(shape)) if a not in axes]
    where = {a: i for i, a in enumerate(free)}
    small = []
    for layout in layouts:
        beside = [field for field in layout.fields if not set(field.axes) & set(axes)]
        small.append(
            Layout(tuple(layout.shape[a] for a in free), tuple(field.moved(where) for field in beside))
        )
    merged = merge(labels, [shape[a] for a in free], [(layout, range(len(free))) for layout in small])
    return [field.moved(free) for field in merged.fields]


def _concat_joint(
    labels: Labels, layouts: Sequence[Layout], axis: int, shape: tuple[int, ...], axes: tuple[int, ...]
) -> Layout | None:
    """Pieces whose field binds the axis with others, joined; None where one piece does not bind them."""
    bound = [[field for field in layout.fields if set(field.axes) & set(axes)] for layout in layouts]
    if any(len(fields) != 1 or not set(fields[0].axes) <= set(axes) for fields in bound):
        return None
    pieces = [
        np.ascontiguousarray(fields[0].over(axes, layout.shape)) for fields, layout in zip(bound, layouts)
    ]
    array = np.concatenate(pieces, axis=axes.index(axis))
    zero = all(fields[0].zero for fields in bound)
    return squeezed(
        labels, shape, [*_tied_beside(labels, layouts, shape, axes), Field(axes, array, zero=zero)]
    )


def _without_axis(labels: Labels, layouts: Sequence[Layout], axis: int) -> list[Layout]:
    """The layouts without labels on one axis: joint fields keep their other axes, those over it alone are locked."""
    slim = []
    for layout in layouts:
        fields = []
        for field in layout.fields:
            less = reduce_field(labels, field, [axis]) if axis in field.axes else field
            if less is None:
                labels.lock(field.labels, "joined with an axis that cannot be cut")
            else:
                fields.append(less)
        slim.append(squeezed(labels, layout.shape, fields))
    return slim
