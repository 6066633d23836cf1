"""How layouts move: broadcast together, lose an axis, are reshaped, sliced and joined. Position by position, no guess.

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
    """The layout of a tensor of one value: every axis may shrink, none asks to."""
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
    """A field without some of its axes: what lies along them is tied. None when no axis is left."""
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
    """A reduction: joint fields lose the axes, a field over only these is locked (unless zeros may leave unseen)."""
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

    An operand has a say about an axis where it is as long as the output. `zero` says when a removed position is 0 in
    the result: where it is so in "all" operands (a sum), in "any" (a product), or "none".
    """
    fields: list[list[Field]] = []
    says: list[set[int]] = []
    for layout, axes in operands:
        full = {axis for size, axis in zip(layout.shape, axes) if size == shape[axis] and size > 1}
        says.append(full)
        fields.append(
            [field.moved(axes) for field in layout.fields if all(axes[axis] in full for axis in field.axes)]
        )
    if not any(fields):
        return Layout(tuple(shape))
    joint = {axis for mine in fields for field in mine if len(field.axes) > 1 for axis in field.axes}
    for mine in fields if joint else ():
        for field in [field for field in mine if field.weak == 1 and joint & set(field.axes)]:
            if len(field.axes) == 1 and labels.sizes:
                _only(labels, fields, field.axes[0])
            elif len(field.axes) == 1:
                labels.lock(field.labels, "a buffer that meets a joint axis")
                mine.remove(field)
    changed = True
    while changed:
        changed = False
        for mine, own in zip(fields, says):
            covered = {axis for field in mine for axis in field.axes}
            fixed = own - covered
            if not fixed:
                continue
            for others in fields:
                for index, field in enumerate(others):
                    hit = [axis for axis in field.axes if axis in fixed]
                    if not hit:
                        continue
                    slim = reduce_field(labels, field, hit)
                    if slim is None:
                        labels.lock(field.labels, "meets an axis that cannot be cut")
                        del others[index]
                    else:
                        others[index] = slim
                    changed = True
                    break
        if not changed:
            changed = _split_conflicts(labels, fields)
    return _joined(labels, shape, fields, zero, len(operands))


def _only(labels: Labels, fields: list[list[Field]], axis: int) -> None:
    """Joint fields that hold an axis keep it alone: what lies along their other axes is tied."""
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


def _split_conflicts(labels: Labels, fields: list[list[Field]]) -> bool:
    """Where one operand holds two fields inside what another binds jointly, keep the stronger and lock the other."""
    for group in _groups(fields):
        if len(group) < 2:
            continue
        for mine in fields:
            inside = sorted((f for f in mine if group & set(f.axes)), key=lambda f: (f.weak, -f.labels.size))
            if len(inside) > 1:
                labels.lock(inside[-1].labels, "two axes that could be cut are folded into one")
                mine.remove(inside[-1])
                return True
    return False


def _joined(labels: Labels, shape: Sequence[int], fields: list[list[Field]], zero: str, count: int) -> Layout:
    """Tie what lies on the same positions, and keep one field for each set of bound axes."""
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
    layouts = [layout for layout in layouts if layout.shape != (0,)]
    rank = len(layouts[0].shape)
    axis %= rank
    layouts = [layout for layout in layouts if layout.shape[axis]] or list(layouts)
    total = sum(layout.shape[axis] for layout in layouts)
    shape = tuple(total if a == axis else s for a, s in enumerate(layouts[0].shape))
    # A joint field across the axis must be joint in every piece; where a piece is fixed, the others lose the axis.
    along = [layout.at(axis) for layout in layouts]
    joint = sorted({a for field in along if field is not None and len(field.axes) > 1 for a in field.axes})
    others = [a for a in range(rank) if a != axis]
    if joint:
        return _concat_joint(labels, layouts, axis, shape, joint)
    shell = [
        Layout(tuple(layout.shape), tuple(f for f in layout.fields if axis not in f.axes))
        for layout in layouts
    ]
    small = [
        Layout(
            tuple(layout.shape[a] for a in others),
            tuple(f.moved({a: i for i, a in enumerate(others)}) for f in layout.fields),
        )
        for layout in shell
    ]
    merged = merge(labels, [shape[a] for a in others], [(layout, range(rank - 1)) for layout in small])
    fields = [field.moved(others) for field in merged.fields]
    if any(field is not None for field in along):
        pieces = [
            field.labels if field is not None else np.zeros(layout.shape[axis], int)
            for field, layout in zip(along, layouts)
        ]
        present = [field for field in along if field is not None]
        fields.append(
            Field(
                (axis,),
                np.concatenate(pieces),
                zero=all(field.zero for field in present),
                weak=min(field.weak for field in present),
            )
        )
    return squeezed(labels, shape, fields)


def _concat_joint(
    labels: Labels, layouts: Sequence[Layout], axis: int, shape: tuple[int, ...], joint: list[int]
) -> Layout:
    """Pieces whose field binds the axis with others: joined where all are joint, else reduced to the others."""
    axes = tuple(joint)
    pieces = []
    for layout in layouts:
        bound = [field for field in layout.fields if set(field.axes) & set(axes)]
        if len(bound) != 1 or not set(bound[0].axes) <= set(axes):
            break
        pieces.append(np.ascontiguousarray(bound[0].over(axes, layout.shape)))
    else:
        array = np.concatenate(pieces, axis=axes.index(axis))
        zero = all(f.zero for layout in layouts for f in layout.fields if set(f.axes) & set(axes))
        rest = [
            Layout(tuple(layout.shape), tuple(f for f in layout.fields if not set(f.axes) & set(axes)))
            for layout in layouts
        ]
        free = [a for a in range(len(shape)) if a not in axes]
        where = {a: i for i, a in enumerate(free)}
        small = [
            Layout(tuple(r.shape[a] for a in free), tuple(f.moved(where) for f in r.fields)) for r in rest
        ]
        merged = merge(labels, [shape[a] for a in free], [(layout, range(len(free))) for layout in small])
        fields = [field.moved(free) for field in merged.fields]
        return squeezed(labels, shape, [*fields, Field(axes, array, zero=zero)])
    slim = []
    for layout in layouts:
        fields = []
        for field in layout.fields:
            if axis in field.axes:
                less = reduce_field(labels, field, [axis])
                if less is None:
                    labels.lock(field.labels, "joined with an axis that cannot be cut")
                    continue
                field = less
            fields.append(field)
        slim.append(squeezed(labels, layout.shape, fields))
    return concat(labels, slim, axis)
