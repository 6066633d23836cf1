"""Indexing: the indexed axis is locked, because the indices are known only at run time; the others are followed."""

from __future__ import annotations

import numpy as np

from secateur.structure.groups.labels import Layout, squeezed
from secateur.structure.groups.layout import drop_axes, merge
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op, TensorRef


@rule("index_select", "index_select_copy")
def index_select(f: Follower, op: Op) -> Layout:
    """Positions of one axis chosen by a tensor."""
    x, axis, out = op.args[0], op.args[1] % len(op.args[0].shape), op.results()[0]
    layout = drop_axes(f.labels, f.of(x), [axis], "indexed by a tensor", keep=True)
    return Layout(out.shape, layout.fields)


@rule("index", "_unsafe_index", "index.Tensor")
def index(f: Follower, op: Op) -> Layout:
    """x[i, j, :]: indexed axes are locked, the result's place follows numpy's rule."""
    x, indices, out = op.args[0], op.args[1], op.results()[0]
    indexed = [axis for axis, item in enumerate(indices) if isinstance(item, TensorRef)]
    f.lock_all([item for item in indices if isinstance(item, TensorRef)], "used as an index")
    masks = any(
        item.dtype.itemsize == 1 and len(item.shape) > 1 for item in indices if isinstance(item, TensorRef)
    )
    if masks:
        f.lock_all([x], "indexed by a mask")
        return Layout(out.shape)
    rank = len(x.shape)
    layout = drop_axes(f.labels, f.of(x), indexed, "indexed by a tensor", keep=True)
    taken = np.broadcast_shapes(*(item.shape for item in indices if isinstance(item, TensorRef)))
    contiguous = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if contiguous else 0
    rest = [axis for axis in range(rank) if axis not in indexed]
    where = {axis: (i if i < start else i + len(taken)) for i, axis in enumerate(rest)}
    return squeezed(f.labels, out.shape, [field.moved(where) for field in layout.fields])


@rule("gather")
def gather(f: Follower, op: Op) -> Layout:
    """Positions along one axis chosen by an index; along the others both must agree."""
    x, axis, picks = op.args[0], op.args[1] % max(1, len(op.args[0].shape)), op.args[2]
    return _aligned(f, op, x, axis, [picks])


def _aligned(f: Follower, op: Op, x: TensorRef, axis: int, others: list[TensorRef]) -> Layout:
    rank = len(x.shape)
    out = op.results()[0]
    base = drop_axes(f.labels, f.of(x), [axis], f"{op.name} along the axis", keep=True)
    shape = tuple(1 if a == axis else s for a, s in enumerate(out.shape))
    operands = [(Layout(base.shape, base.fields), range(rank))]
    for ref in others:
        layout = drop_axes(f.labels, f.of(ref), [axis], f"{op.name} along the axis", keep=True)
        operands.append((layout, range(rank)))
    for a in range(rank):
        if a != axis and any(ref.shape[a] != out.shape[a] for ref in (x, *others)):
            f.lock_all([x, *others], f"{op.name} of part of an axis")
            return Layout(out.shape)
    merged = merge(f.labels, shape, operands, "none")
    return Layout(out.shape, merged.fields)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(f: Follower, op: Op) -> Layout:
    """Written along one axis at an index; along the others all must agree."""
    x, axis = op.args[0], op.args[1] % max(1, len(op.args[0].shape))
    others = [ref for ref in op.args[2:] if isinstance(ref, TensorRef) and len(ref.shape) == len(x.shape)]
    return _aligned(f, op, x, axis, others)


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(f: Follower, op: Op) -> Layout:
    """Rows written at an index; along the other axes both must agree."""
    x, axis, source = op.args[0], op.args[1] % len(op.args[0].shape), op.args[3]
    return _aligned(f, op, x, axis, [source])


@rule("slice_scatter", "select_scatter", "slice_scatter_copy")
def slice_scatter(f: Follower, op: Op) -> Layout:
    """Part of a tensor replaced: followed where the axis itself carries no labels."""
    x, source, axis = op.args[0], op.args[1], op.arg(2, "dim", 0) % len(op.args[0].shape)
    if op.name == "select_scatter":
        f.lock_all([x, source], "select_scatter")
        return Layout(x.shape)
    return _aligned(f, op, x, axis, [source])
