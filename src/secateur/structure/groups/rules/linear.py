"""Products: linear layers, matrix multiplication, batched and plain, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.structure.groups.labels import Field, Layout, squeezed
from secateur.structure.groups.layout import drop_axes, merge, reduce_field
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.trace.trace import Op, TensorRef


def product(
    f: Follower, x: Layout, x_axes: Sequence[int], y: Layout, y_axes: Sequence[int], shape: Sequence[int]
) -> Layout:
    """Multiply over the axes of `shape` and sum over its last one."""
    if f.labels.sizes:
        batch = set(x_axes) & set(y_axes) - {len(shape) - 1}
        x, y = one_size(f, x, x_axes, batch), one_size(f, y, y_axes, batch)
    joint = merge(f.labels, shape, [(x, x_axes), (y, y_axes)], zero="any")
    reason = "a product sums over the axis, and removed positions are not 0 there"
    return drop_axes(f.labels, joint, (len(shape) - 1,), reason, zero_ok=True)


def one_size(f: Follower, layout: Layout, axes: Sequence[int], batch: set[int]) -> Layout:
    """Heads of one size: a position is removed from all heads alike. `batch` are the axes of the heads."""
    fields = []
    for field in layout.fields:
        heads = [axis for axis in field.axes if axes[axis] in batch]
        if len(heads) == len(field.axes):
            f.labels.lock(field.labels, "the size of these heads meets something that cannot be cut")
            continue
        slim = (reduce_field(f.labels, field, heads) if heads else None) or field
        if heads or not f.labels.narrowed.isdisjoint(field.labels.reshape(-1).tolist()):
            f.sizes.append(slim.labels.reshape(-1))
        fields.append(slim)
    return Layout(layout.shape, tuple(fields))


def note_heads(f: Follower, result: Layout, axes: Sequence[int]) -> None:
    """Remember labels that pass through a batched product on its batch axes: heads of an attention."""
    for field in result.fields:
        if set(field.axes) <= set(axes):
            f.heads.append(field.labels.reshape(-1))


def note_met(f: Follower, op: Op, x: TensorRef, x_axis: int, y: TensorRef, y_axis: int) -> None:
    """Remember positions of two computed tensors that a product sums over, such as queries and keys of one head.

    No layer takes them in. Where heads become smaller they are removed, as those within several heads are.
    """
    fields = [f.of(x).at(x_axis), f.of(y).at(y_axis)]
    if x.id in f.plain or y.id in f.plain:
        return
    if any(field is None or len(field.axes) > 1 for field in fields):
        return
    for field in fields:
        assert field is not None
        f.met.append((field.labels, op))
        if f.labels.sizes:
            f.sizes.append(field.labels)


@rule("mm", "bmm", "mv", "dot", "vdot")
def matmul(f: Follower, op: Op) -> Layout:
    """The inner axes are tied and summed; batch axes are tied; the outer ones are kept."""
    x, y = op.args[:2]
    if len(x.shape) == 3:
        note_met(f, op, x, 2, y, 1)
    return _matmul(f, x, y)


def _matmul(f: Follower, x: TensorRef, y: TensorRef) -> Layout:
    rank = len(x.shape)
    f.enters(x, rank - 1)
    f.enters(y, max(0, len(y.shape) - 2))
    inner = x.shape[-1]
    if rank == 3:
        shape = (x.shape[0], x.shape[1], y.shape[2], inner)
        noted = len(f.sizes)
        first, second = f.of(x), f.of(y)
        if not f.labels.sizes:
            first, second = _beside_heads(f, x, 2, second), _beside_heads(f, y, 1, first)
        result = product(f, first, (0, 1, 3), second, (0, 3, 2), shape)
        note_heads(f, result, (0,))
        if x.id in f.plain or y.id in f.plain:  # a table of matrices is no head
            del f.sizes[noted:]
        return result
    if rank == 1:
        return product(f, f.of(x), (0,), f.of(y), (0,), (inner,))
    if len(y.shape) == 1:
        return product(f, f.of(x), (0, 1), f.of(y), (1,), (x.shape[0], inner))
    return product(f, f.of(x), (0, 2), f.of(y), (2, 1), (x.shape[0], y.shape[1], inner))


def _beside_heads(f: Follower, table: TensorRef, inner: int, other: Layout) -> Layout:
    """A table's layout, without its inner axis where the other side has heads and their positions bound together.

    Tied to such a table the heads would all be one: instead whole heads can be removed, and the table's rows keep their
    length.
    """
    layout, field = f.of(table), f.of(table).at(inner)
    bound = other.at(3 - inner)
    if table.id not in f.plain or field is None or field.axes != (inner,):
        return layout
    if bound is None or len(bound.axes) < 2:
        return layout
    f.labels.lock(field.labels, "shared by heads that are removed whole")
    return Layout(layout.shape, tuple(each for each in layout.fields if each is not field))


@rule("_grouped_mm", "grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(f: Follower, op: Op) -> Layout:
    """Rows in runs, each times the matrix of its expert: positions are removed from all experts alike; no expert is
    removed.
    """
    x, y, out = op.args[0], op.args[1], op.results()[0]
    if (len(x.shape), len(y.shape)) != (2, 3):
        f.lock_all(list(op.refs()), "both sides are grouped")
        return Layout(out.shape)
    f.enters(y, 1)
    experts = drop_axes(f.labels, f.of(y), [0], "experts are chosen by number")
    result = product(f, f.of(x), (0, 2), experts, (2, 1), (*out.shape, x.shape[1]))
    return add_bias(f, out, result, op.arg(3, "bias"))


@rule("addmm", "baddbmm", "addmv", "addbmm")
def add_matmul(f: Follower, op: Op) -> Layout:
    """A product, and a bias that goes with the outputs."""
    bias, x, y = op.args[:3]
    out = op.results()[0]
    if len(x.shape) == 3:
        note_met(f, op, x, 2, y, 1)
    result = _matmul(f, x, y)
    return add_bias(f, out, result, bias)


def add_bias(f: Follower, out: TensorRef, result: Layout, bias: TensorRef | None) -> Layout:
    """The sum of a product and a bias that broadcasts from the right."""
    if bias is None:
        return result
    rank = len(out.shape)
    axes = range(rank - len(bias.shape), rank)
    return merge(f.labels, out.shape, [(result, range(rank)), (f.of(bias), axes)])


@rule("linear")
def linear(f: Follower, op: Op) -> Layout:
    """A linear layer that was not taken apart: weight (out, in), bias (out)."""
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    out, rank = op.results()[0], len(op.args[0].shape)
    f.enters(weight, 1)
    shape = (*x.shape[:-1], weight.shape[0], x.shape[-1])
    result = product(f, f.of(x), (*range(rank - 1), rank), f.of(weight), (rank - 1, rank), shape)
    return add_bias(f, out, result, bias)


@rule("embedding")
def embedding(f: Follower, op: Op) -> Layout:
    """A table looked up: its rows are fixed, its columns are followed."""
    weight, index = op.args[0], op.args[1]
    f.lock_all([index], "used as an index")
    rows = f.of(weight).at(0)
    if rows is not None and 0 in rows.axes:
        f.labels.lock(rows.labels, "looked up by index")
    columns = f.of(weight).at(1)
    if columns is not None:
        f.emitted.append(columns.labels.reshape(-1))
    rank = len(index.shape)
    fields = [] if columns is None or columns.axes != (1,) else [Field((rank,), columns.labels, columns.zero)]
    return squeezed(f.labels, op.results()[0].shape, fields)


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(f: Follower, op: Op) -> list[Layout]:
    """Bags of rows: the columns are followed."""
    columns = f.of(op.args[0]).at(1)
    rows = f.of(op.args[0]).at(0)
    if rows is not None:
        f.labels.lock(rows.labels, "looked up by index")
    results = op.results()
    fields = [] if columns is None else [Field((1,), columns.labels, columns.zero)]
    return [squeezed(f.labels, results[0].shape, fields), *(Layout(ref.shape) for ref in results[1:])]


@rule("_trilinear")
def trilinear(f: Follower, op: Op) -> Layout:
    """nn.Bilinear: outer axes are followed only for the weight's outputs."""
    weight = op.args[1]
    f.lock_all([op.args[0], op.args[2]], "enters a bilinear layer")
    for axis in (1, 2):
        field = f.of(weight).at(axis)
        if field is not None:
            f.labels.lock(field.labels, "enters a bilinear layer")
    out = op.results()[0]
    first = f.of(weight).at(0)
    fields = [] if first is None else [Field((len(out.shape) - 1,), first.labels)]
    return squeezed(f.labels, out.shape, fields)
