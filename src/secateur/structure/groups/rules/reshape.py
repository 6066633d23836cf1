"""Shapes: view, permute, split, slice, cat, expand, padding, shuffles. The labels move as the elements do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateur.structure.groups.labels import Field, Layout, squeezed
from secateur.structure.groups.layout import (
    concat,
    drop_axes,
    merge,
    moved,
    reduce_field,
    reshape,
    take,
    weakly,
)
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op


@rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "view_copy",
    "squeeze",
    "unsqueeze",
    "squeeze_",
    "unsqueeze_",
    "flatten",
    "unflatten",
    "squeeze_copy",
    "unsqueeze_copy",
    "resize_",
)
def reshapes(f: Follower, op: Op) -> Layout:
    """The same elements in the same order under another shape."""
    out = op.results()[0]
    if out.dtype.itemsize != op.args[0].dtype.itemsize and out.shape != op.args[0].shape:
        f.lock_all([op.args[0]], "viewed as another type")
        return Layout(out.shape)
    return reshape(f.labels, f.of(op.args[0]), out.shape)


@rule("permute", "permute_copy")
def permute(f: Follower, op: Op) -> Layout:
    """Axes change places."""
    return moved(f.of(op.args[0]), op.args[1])


@rule("transpose", "transpose_", "swapaxes", "transpose_copy")
def transpose(f: Follower, op: Op) -> Layout:
    """Two axes change places."""
    rank = len(op.args[0].shape)
    order = list(range(rank))
    if rank:
        a, b = op.args[1] % rank, op.args[2] % rank
        order[a], order[b] = order[b], order[a]
    return moved(f.of(op.args[0]), order)


@rule("t", "t_", "numpy_T", "t_copy")
def t(f: Follower, op: Op) -> Layout:
    """A matrix transposed."""
    return moved(f.of(op.args[0]), range(len(op.args[0].shape))[::-1])


@rule("slice", "slice_copy", "narrow")
def slices(f: Follower, op: Op) -> Layout:
    """Positions start to end of one axis."""
    x, out = op.args[0], op.results()[0]
    axis = op.arg(1, "dim", 0) % len(x.shape)
    if out.shape == x.shape:
        return f.of(x)
    start, step = op.arg(2, "start", 0) or 0, op.arg(4, "step", 1) or 1
    start = max(0, start + x.shape[axis] if start < 0 else start)
    if step > 1:
        return _every(f, op, axis, start, step)
    return take(f.labels, f.of(x), axis, slice(start, start + out.shape[axis] * step, step))


def _every(f: Follower, op: Op, axis: int, start: int, step: int) -> Layout:
    """Every n-th position: n neighbours are removed together, so that those that remain are every n-th again."""
    x, out, size = op.args[0], op.results()[0], op.args[0].shape[axis]
    if start >= step or size % step or out.shape[axis] * step != size:
        layout = drop_axes(f.labels, f.of(x), [axis], "part of every n-th position is taken", keep=True)
        return squeezed(f.labels, out.shape, layout.fields)
    apart = (*x.shape[:axis], size // step, step, *x.shape[axis + 1 :])
    chosen = take(f.labels, reshape(f.labels, f.of(x), apart), axis + 1, slice(start, start + 1))
    return reshape(f.labels, chosen, out.shape)


@rule("select", "select_copy")
def select(f: Follower, op: Op) -> Layout:
    """One position of an axis: those that are counted to reach it stay."""
    x, axis = op.args[0], op.args[1] % len(op.args[0].shape)
    index = op.args[2] % x.shape[axis]
    field = f.of(x).at(axis)
    if field is not None and field.axes == (axis,):
        counted = field.labels[op.args[2] :] if op.args[2] < 0 else field.labels[:index]
        f.labels.lock(counted, "counted to reach one position")
    layout = take(f.labels, f.of(x), axis, slice(index, index + 1))
    return reshape(f.labels, layout, op.results()[0].shape)


@rule("unbind", "unbind_copy")
def unbind(f: Follower, op: Op) -> list[Layout]:
    """Every position of an axis on its own."""
    x, axis = op.args[0], op.arg(1, "dim", 0) % len(op.args[0].shape)
    found = []
    for index, ref in enumerate(op.results()):
        layout = take(f.labels, f.of(x), axis, slice(index, index + 1))
        found.append(reshape(f.labels, layout, ref.shape))
    return found


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "split_copy",
    "split_with_sizes_copy",
)
def split(f: Follower, op: Op) -> list[Layout]:
    """Consecutive pieces of one axis."""
    x, axis = op.args[0], op.arg(2, "dim", 0) % len(op.args[0].shape)
    found, start = [], 0
    for ref in op.results():
        stop = start + ref.shape[axis]
        found.append(take(f.labels, f.of(x), axis, slice(start, stop)))
        start = stop
    return found


@rule("glu")
def glu(f: Follower, op: Op) -> Layout:
    """The first half of an axis times the sigmoid of the second: channel c of one half goes with c of the other."""
    x, out = op.args[0], op.results()[0]
    axis = op.arg(1, "dim", -1) % len(x.shape)
    half = out.shape[axis]
    halves = [take(f.labels, f.of(x), axis, slice(start, start + half)) for start in (0, half)]
    axes = range(len(out.shape))
    return merge(f.labels, out.shape, [(each, axes) for each in halves])


@rule("cat", "concat")
def cat(f: Follower, op: Op) -> Layout:
    """Labels one after the other."""
    parts = [f.of(ref) for ref in op.args[0]]
    return concat(f.labels, parts, op.arg(1, "dim", 0))


@rule("stack")
def stack(f: Follower, op: Op) -> Layout:
    """A new axis, the other axes tied."""
    out = op.results()[0]
    axis = op.arg(1, "dim", 0) % len(out.shape)
    single = [1 if a == axis else size for a, size in enumerate(out.shape)]
    parts = [reshape(f.labels, f.of(ref), single) for ref in op.args[0]]
    return concat(f.labels, parts, axis)


@rule("expand", "expand_copy", "broadcast_to", "expand_as")
def expand(f: Follower, op: Op) -> Layout:
    """Axes of size 1 repeat; the repeated axis may shrink with what it meets."""
    x, out = op.args[0], op.results()[0]
    if x.shape == out.shape:
        return f.of(x)
    offset = len(out.shape) - len(x.shape)
    fields = [field.moved([axis + offset for axis in range(len(x.shape))]) for field in f.of(x).fields]
    new = [
        axis
        for axis, size in enumerate(out.shape)
        if size > 1 and (axis < offset or x.shape[axis - offset] == 1)
    ]
    made = weakly(f.labels, out.shape, new).fields
    return squeezed(f.labels, out.shape, [*fields, *made])


@rule("repeat", "tile")
def repeat(f: Follower, op: Op) -> Layout:
    """Axes tiled: the labels come again."""
    x, out = op.args[0], op.results()[0]
    offset = len(out.shape) - len(x.shape)
    shape = (*(1,) * offset, *x.shape)
    fields = []
    for field in f.of(x).fields:
        field = field.moved([axis + offset for axis in range(len(x.shape))])
        reps = [out.shape[axis] // shape[axis] for axis in field.axes]
        fields.append(Field(field.axes, np.tile(field.labels, reps), field.zero, field.weak))
    new = [axis for axis in range(len(out.shape)) if shape[axis] == 1 and out.shape[axis] > 1]
    return squeezed(f.labels, out.shape, [*fields, *weakly(f.labels, out.shape, new).fields])


@rule("constant_pad_nd", "pad")
def constant_pad(f: Follower, op: Op) -> Layout:
    """Padding: the new positions get their own labels, and are removed with the axes they meet; those of heads, with
    these.
    """
    x, pad, value = op.args[0], op.args[1], op.arg(2, "value", 0)
    out, rank = op.results()[0], len(op.args[0].shape)
    amounts = {rank - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    fields = []
    for field in f.of(x).fields:
        if len(field.axes) > 1 and (padded := [axis for axis in field.axes if any(amounts.get(axis, ()))]):
            slim = reduce_field(f.labels, field, padded)
            if slim is None:
                f.labels.lock(field.labels, "padding of axes bound to each other")
                continue
            field = replace(slim, zero=slim.zero and value == 0)
        array, zero = field.labels, field.zero
        for position, axis in enumerate(field.axes):
            before, after = amounts.get(axis, (0, 0))
            if before < 0 or after < 0:
                stop = array.shape[position] + min(after, 0)
                array = array[(slice(None),) * position + (slice(max(0, -before), stop),)]
            shape = list(array.shape)
            pieces = [array]
            if before > 0:
                shape[position] = before
                pieces.insert(0, f.labels.fresh(int(np.prod(shape))).reshape(shape))
            if after > 0:
                shape[position] = after
                pieces.append(f.labels.fresh(int(np.prod(shape))).reshape(shape))
            array = np.concatenate(pieces, axis=position)
            if before > 0 or after > 0:
                zero = zero and value == 0
        fields.append(Field(field.axes, array, zero, field.weak))
    return squeezed(f.labels, out.shape, fields)


@rule("pixel_shuffle")
def pixel_shuffle(f: Follower, op: Op) -> Layout:
    """(C r r, H, W) becomes (C, H r, W r): the r r channels of a pixel are removed together."""
    x, r, out = op.args[0], op.args[1], op.results()[0]
    lead, (channels, height, width) = x.shape[:-3], x.shape[-3:]
    n = len(lead)
    layout = reshape(f.labels, f.of(x), (*lead, channels // (r * r), r, r, height, width))
    layout = moved(layout, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshape(f.labels, layout, out.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle(f: Follower, op: Op) -> Layout:
    """(C, H r, W r) becomes (C r r, H, W): each channel becomes r r positions."""
    x, r, out = op.args[0], op.args[1], op.results()[0]
    lead, (channels, height, width) = x.shape[:-3], x.shape[-3:]
    n = len(lead)
    layout = reshape(f.labels, f.of(x), (*lead, channels, height // r, r, width // r, r))
    layout = moved(layout, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshape(f.labels, layout, out.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(f: Follower, op: Op) -> Layout:
    """(g, C/g) transposed."""
    x, groups, out = op.args[0], op.args[1], op.results()[0]
    layout = reshape(f.labels, f.of(x), (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    layout = moved(layout, (0, 2, 1, *range(3, len(x.shape) + 1)))
    return reshape(f.labels, layout, out.shape)


@rule("roll")
def roll(f: Follower, op: Op) -> Layout:
    """Positions rotate: those that pass the end stay."""
    x, shifts, dims = op.args[0], op.args[1], op.arg(2, "dims", [])
    if not dims:
        f.lock_all([x], "rolled as one flat tensor")
        return Layout(x.shape)
    layout = f.of(x)
    for shift, axis in zip(shifts, dims):
        axis %= len(x.shape)
        field, order = layout.at(axis), np.roll(np.arange(x.shape[axis]), shift)
        if field is None:
            continue
        if field.axes == (axis,) and abs(shift) < order.size:
            round_the_end = field.labels[-shift:] if shift > 0 else field.labels[:-shift]
            f.labels.lock(round_the_end, "rolled round the end")
            layout = take(f.labels, layout, axis, order)
        else:
            layout = drop_axes(f.labels, layout, [axis], "rolled", keep=True)
            layout = Layout(x.shape, layout.fields)
    return layout


@rule("flip")
def flip(f: Follower, op: Op) -> Layout:
    """Positions in reverse."""
    x, layout = op.args[0], f.of(op.args[0])
    for axis in op.args[1]:
        axis %= len(x.shape)
        if layout.at(axis) is not None:
            layout = take(f.labels, layout, axis, np.arange(x.shape[axis])[::-1])
    return layout


@rule("view_as_real", "view_as_real_copy")
def view_as_real(f: Follower, op: Op) -> Layout:
    """A complex number becomes an axis of two."""
    return Layout(op.results()[0].shape, f.of(op.args[0]).fields)


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(f: Follower, op: Op) -> Layout:
    """An axis of two becomes a complex number: the pair belongs together."""
    return drop_axes(f.labels, f.of(op.args[0]), (-1,), "real and imaginary part")


@rule("as_strided", "as_strided_", "as_strided_copy")
def as_strided(f: Follower, op: Op) -> Layout:
    """Another layout: followed if every element keeps its place, as in torch's pooling to one pixel."""
    x, shape, strides = op.args[0], tuple(op.args[1]), op.args[2]
    step = 1
    steps: list[int] = []
    for size in reversed(shape):
        steps.insert(0, step)
        step *= size
    moved_ = any(size > 1 and stride != wanted for size, stride, wanted in zip(shape, strides, steps))
    if shape != x.shape or moved_ or op.arg(3, "storage_offset"):
        f.lock_all([x], "laid out by strides")
        return Layout(op.results()[0].shape)
    return f.of(x)


@rule("unfold", "unfold_copy")
def unfold(f: Follower, op: Op) -> Layout:
    """Windows along one axis, which is therefore fixed."""
    x, axis = op.args[0], op.args[1] % len(op.args[0].shape)
    layout = drop_axes(f.labels, f.of(x), (axis,), "cut into windows", keep=True)
    return Layout(op.results()[0].shape, layout.fields)


@rule("diagonal", "diagonal_copy")
def diagonal(f: Follower, op: Op) -> Layout:
    """The diagonal of two axes, which are fixed."""
    x, out = op.args[0], op.results()[0]
    rank = len(x.shape)
    first, second = op.arg(2, "dim1", 0) % rank, op.arg(3, "dim2", 1) % rank
    layout = drop_axes(f.labels, f.of(x), (first, second), "a diagonal is taken")
    return squeezed(f.labels, out.shape, layout.fields)


@rule("tril", "triu", "tril_", "triu_")
def triangle(f: Follower, op: Op) -> Layout:
    """A triangle of the last two axes, which are fixed."""
    layout = drop_axes(f.labels, f.of(op.args[0]), (-2, -1), "a triangle is taken", keep=True)
    return Layout(op.results()[0].shape, layout.fields)
