"""Convolutions: plain, grouped, depthwise, transposed, of any dimension; patches cut out of images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateur.structure.groups.labels import Field, Labels, Layout, squeezed
from secateur.structure.groups.layout import drop_axes, merge, reduce_field
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op

TAPS = "the taps of a kernel stay"


def _axis_labels(layout: Layout, axis: int) -> Field | None:
    """The field over exactly this axis; a joint field must have been reduced before."""
    field = layout.at(axis) if layout.fields else None
    return field if field is not None and len(field.axes) == 1 else None


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable")
def convolution(f: Follower, op: Op) -> Layout:
    """Input channels are tied to the weight's; output channels are the weight's. Groups keep equal sizes or are
    removed whole.
    """
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    transposed, groups = bool(op.arg(6, "transposed", False)), int(op.arg(8, "groups", 1))
    labels, out = f.labels, op.results()[0]
    spatial = range(2, len(x.shape))
    image = drop_axes(labels, f.of(x), spatial, "the axis is space to a convolution", keep=False)
    kernel = drop_axes(labels, f.of(weight), range(2, len(weight.shape)), TAPS)
    image = _apart(labels, image)
    entering, leaving = _axis_labels(image, 1), None
    w_in, w_out = _axis_labels(kernel, 0 if transposed else 1), _axis_labels(kernel, 1 if transposed else 0)
    if w_in is not None and not w_in.zero and not (entering is not None and entering.zero):
        labels.lock(w_in.labels, "removed positions are 0 neither in the weight nor in the input")
    if groups == 1:
        f.enters(weight, 0 if transposed else 1)
        merge(labels, [x.shape[1]], [(_line(entering, x.shape[1]), [0]), (_line(w_in, x.shape[1]), [0])])
        leaving = w_out
    else:
        leaving = _grouped(f, op, entering, w_in, w_out, groups, transposed)
    channels = _line(leaving, out.shape[1])
    if bias is not None:
        channels = merge(labels, [out.shape[1]], [(channels, [0]), (f.of(bias), [0])])
    fields = [field.moved([1]) for field in channels.fields]
    batch = [field for field in image.fields if field.axes == (0,)]
    fields += [replace(field, zero=field.zero and bias is None) for field in batch]
    return squeezed(labels, out.shape, fields)


def _apart(labels: Labels, image: Layout) -> Layout:
    """Heads laid out along the batch and their channels along the channels: whole heads can be removed, as samples
    can.
    """
    fields = []
    for field in image.fields:
        if field.axes == (0, 1):
            slim = reduce_field(labels, field, [1])
            fields += [] if slim is None else [slim]
        else:
            fields.append(field)
    return squeezed(labels, image.shape, fields)


def _line(field: Field | None, size: int) -> Layout:
    """A one-dimensional layout of a field's labels."""
    return Layout((size,), () if field is None else (Field((0,), field.labels, field.zero, field.weak),))


def _grouped(
    f: Follower,
    op: Op,
    entering: Field | None,
    w_in: Field | None,
    w_out: Field | None,
    groups: int,
    transposed: bool,
) -> Field | None:
    """Tie a grouped convolution's channels, whole groups or the same pattern in each, whichever gives more units."""
    labels, x, out, weight = f.labels, op.args[0], op.results()[0], op.args[1]
    each_in, each_out = x.shape[1] // groups, out.shape[1] // groups
    incoming = entering.labels if entering is not None else np.zeros(x.shape[1], int)
    incoming = incoming.reshape(groups, each_in)
    whole = groups >= each_in
    f.grouped[f.plain.get(weight.id, "")] = "whole" if whole else "pattern"
    if not whole:
        f.enters(weight, 0 if transposed else 1)
    if w_in is None and (transposed or not whole):
        labels.lock(incoming, "meets an axis that cannot be cut")
    if transposed:  # the weight is (channels in, channels out of one group)
        if w_in is not None:
            labels.tie(incoming, w_in.labels.reshape(groups, each_in))
        outgoing = labels.fresh(out.shape[1]).reshape(groups, each_out)
        if w_out is not None:
            if whole:
                labels.lock(w_out.labels, "groups of a convolution are removed whole")
            else:
                labels.tie(outgoing, w_out.labels[None, :])
        elif not whole:
            labels.lock(outgoing, "meets an axis that cannot be cut")
    else:
        outgoing = w_out.labels if w_out is not None else np.zeros(out.shape[1], int)
        outgoing = outgoing.reshape(groups, each_out)
        if w_in is not None:
            if whole:
                labels.lock(w_in.labels, "groups of a convolution are removed whole")
            else:
                labels.tie(incoming, w_in.labels[None, :])
    if whole:
        labels.tie(incoming, incoming[:, :1])
        labels.tie(outgoing, outgoing[:, :1])
        labels.tie(incoming[:, :1], outgoing[:, :1])
        if entering is None:  # then none of them can be removed
            return None
    else:
        labels.tie(incoming, incoming[:1])
        labels.tie(outgoing, outgoing[:1])
    return Field((0,), outgoing.reshape(-1))


@rule("im2col")
def im2col(f: Follower, op: Op) -> Layout:
    """Patches: each channel becomes as many positions as the kernel has."""
    x, out = op.args[0], op.results()[0]
    layout = drop_axes(f.labels, f.of(x), (-2, -1), "the axis is space to unfold")
    axis = len(x.shape) - 3
    fields = []
    for field in layout.fields:
        if axis in field.axes:
            position = field.axes.index(axis)
            labels = np.repeat(field.labels, out.shape[axis] // x.shape[axis], axis=position)
            field = Field(field.axes, labels, field.zero, field.weak)
        fields.append(field)
    return squeezed(f.labels, out.shape, fields)


@rule("col2im")
def col2im(f: Follower, op: Op) -> Layout:
    """The inverse of unfold: the positions of one channel belong together."""
    x, out = op.args[0], op.results()[0]
    axis = len(x.shape) - 2
    layout = drop_axes(f.labels, f.of(x), (-1,), "the axis is space to fold")
    fields = []
    for field in layout.fields:
        if field.axes == (axis,):
            grid = field.labels.reshape(out.shape[axis], -1)
            f.labels.tie(grid, grid[:, :1])
            fields.append(Field((axis,), grid[:, 0], field.zero, field.weak))
        elif axis in field.axes:
            f.labels.lock(field.labels, "channels bound to another axis reach fold")
        else:
            fields.append(field)
    return squeezed(f.labels, out.shape, fields)
