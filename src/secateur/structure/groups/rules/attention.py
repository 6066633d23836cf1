"""Fused attention: heads pass one by one (a group of query heads with its key-value head), sizes of heads are tied."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateur.execution.operator_costs import FUSED_ATTENTION
from secateur.structure.groups.labels import Field, Layout, squeezed
from secateur.structure.groups.layout import drop_axes, merge
from secateur.structure.groups.rules import Follower, rule
from secateur.structure.groups.rules.linear import note_heads, note_met, product
from secateur.structure.trace.trace import Op, TensorRef

FUSED = ("_scaled_dot_product_attention_math", "scaled_dot_product_attention", *FUSED_ATTENTION)

NARROW = "fused attention takes values of its queries' size, and that of these queries or keys is locked"


@rule(*FUSED)
def attention(f: Follower, op: Op) -> list[Layout]:
    """softmax(q k^T) v. A scale that follows from the size of a head is put in by number when that is cut."""
    q, k, v = op.args[:3]
    results = op.results()
    layouts = [f.of(ref) for ref in (q, k, v)]
    heads_q, heads_k = q.shape[-3], k.shape[-3]
    if heads_q != heads_k:
        layouts[1:] = [_repeated(f, layout, heads_q // heads_k) for layout in layouts[1:]]
    lead = len(q.shape) - 2
    note_met(f, op, q, lead + 1, k, lead + 1)
    if f.labels.sizes and op.name != "_scaled_dot_product_attention_math":
        layouts[2] = _as_wide(f, layouts, lead + 1)
    n, m, d, e = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    batch = tuple(q.shape[:-2])
    axes = tuple(range(lead))
    scores = product(
        f, layouts[0], (*axes, lead, lead + 2), layouts[1], (*axes, lead + 1, lead + 2), (*batch, n, m, d)
    )
    scores = _masked(f, op, scores)
    scores = drop_axes(f.labels, scores, [-1], "softmax along the axis", keep=True)
    scores = Layout((*batch, n, m), tuple(replace(field, zero=False) for field in scores.fields))
    out = product(
        f, scores, (*axes, lead, lead + 2), layouts[2], (*axes, lead + 2, lead + 1), (*batch, n, e, m)
    )
    note_heads(f, out, axes)
    return [out, *(Layout(ref.shape) for ref in results[1:])]


def _masked(f: Follower, op: Op, scores: Layout) -> Layout:
    """The scores with the mask added: where the mask has heads of its own, such as biases of positions made of a table
    with a column for each head, they go with the heads of the scores.
    """
    mask = op.kwargs.get("attn_mask") or op.kwargs.get("attn_bias") or op.arg(3, "attn_mask")
    if not isinstance(mask, TensorRef):
        return scores
    rank = len(scores.shape)
    operands = [(scores, range(rank)), (f.of(mask), range(rank - len(mask.shape), rank))]
    return merge(f.labels, scores.shape, operands)


def _as_wide(f: Follower, layouts: list[Layout], axis: int) -> Layout:
    """The values' layout, without what fused attention cannot take: heads of another size than its queries'."""
    q, k, v = layouts
    values = v.at(axis)
    if values is None or (q.at(axis) is not None and k.at(axis) is not None):
        return v
    f.labels.lock(values.labels, NARROW)
    return Layout(v.shape, tuple(field for field in v.fields if field is not values))


def _repeated(f: Follower, layout: Layout, times: int) -> Layout:
    """Key and value heads as the query heads see them: each one `times` times."""
    axis = len(layout.shape) - 3
    fields = []
    for field in layout.fields:
        if axis in field.axes:
            labels = np.repeat(field.labels, times, axis=field.axes.index(axis))
            field = Field(field.axes, labels, field.zero, field.weak)
        fields.append(field)
    shape = tuple(size * times if a == axis else size for a, size in enumerate(layout.shape))
    return squeezed(f.labels, shape, fields)
