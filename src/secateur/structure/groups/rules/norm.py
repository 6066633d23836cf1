"""Normalisations: batch norm keeps channels apart; layer, group and RMS norm mix what they normalise over."""

from __future__ import annotations

from dataclasses import replace

from secateur.structure.groups.labels import Field, Layout, squeezed
from secateur.structure.groups.layout import drop_axes, merge, moved, reshape
from secateur.structure.groups.rules import Counted, Follower, rule
from secateur.structure.trace.trace import Op, TensorRef

CROSSES = "a normalisation over the axis mixes its positions"


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "native_batch_norm.out",
      "_native_batch_norm_legit_functional", "batch_norm")  # fmt: skip
def batch_norm(f: Follower, op: Op) -> list[Layout]:
    """Channels stay apart; weight, bias and statistics go with them."""
    x, results = op.args[0], op.results()
    lines = [(f.of(ref), [1]) for ref in op.args[1:5] if isinstance(ref, TensorRef)]
    rank = len(x.shape)
    affine = isinstance(op.args[1], TensorRef)
    others = [axis for axis in range(rank) if axis != 1]
    counted = _standardised(f, op)
    layout = Layout(x.shape, tuple(field for field in f.of(x).fields if field not in counted))
    layout = Layout(x.shape, drop_axes(f.labels, layout, others, CROSSES, keep=True).fields)
    out = merge(f.labels, x.shape, [(layout, range(rank)), *lines], "any" if affine else "none")
    fields = tuple(
        Field(g.axes, g.labels, zero=affine if 1 in g.axes else g.zero, weak=g.weak) for g in out.fields
    )
    rest = []
    for ref in results[1:]:
        channel = out.at(1)
        single = channel is not None and channel.axes == (1,) and ref.shape == (x.shape[1],)
        rest.append(Layout(ref.shape, (Field((0,), channel.labels),) if single and channel else ()))
    fields += tuple(Field(g.axes, g.labels, zero=False, weak=g.weak) for g in counted)
    return [Layout(x.shape, fields), *rest]


def _standardised(f: Follower, op: Op) -> list[Field]:
    """The inputs of a weight that is standardised as (1, out, in x taps): its zeros can still be counted."""
    x = op.args[0]
    if x.id not in f.plain or len(x.shape) != 3 or x.shape[0] != 1 or isinstance(op.args[3], TensorRef):
        return []
    found = [field for field in f.of(x).fields if field.axes == (2,) and field.zero]
    f.counted += [Counted(field.labels, op, "batch_norm", CROSSES, anywhere=True) for field in found]
    f.plain[op.results()[0].id] = f.plain[x.id]  # still the weight, as far as its inputs go
    return found


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(f: Follower, op: Op) -> list[Layout]:
    """Mixes the last axes: they are locked, except channels inside a block, which it still counts."""
    x, shape = op.args[0], op.args[1]
    refs = [ref for ref in op.args[2:4] if isinstance(ref, TensorRef)]
    return _over_last(f, op, x, len(shape), refs)


def _over_last(f: Follower, op: Op, x: TensorRef, count: int, refs: list[TensorRef]) -> list[Layout]:
    rank = len(x.shape)
    axes = range(rank - count, rank)
    layout = f.of(x)
    if f.across_norm and count == 1:
        f.crossed.append((op.name, op.path))
    else:
        counted = _kept_count(f, op, x) if count == 1 else []
        rest = Layout(x.shape, tuple(field for field in layout.fields if field not in counted))
        rest = drop_axes(f.labels, rest, axes, CROSSES, keep=True)
        layout = Layout(x.shape, (*rest.fields, *(replace(field, zero=False) for field in counted)))
    operands = [(f.of(ref), axes) for ref in refs]
    out = merge(f.labels, x.shape, [(layout, range(rank)), *operands], "any" if refs else "none")
    return [out, *(Layout(ref.shape) for ref in op.results()[1:])]


def _kept_count(f: Follower, op: Op, x: TensorRef) -> list[Field]:
    """The channels of a last axis whose zeros a norm can still count: it holds zeros where they are masked."""
    field = f.of(x).at(-1)
    if field is None or field.axes != (len(x.shape) - 1,) or not field.zero or field.weak:
        return []
    function = "layer_norm" if "layer" in op.name else "rms_norm"
    f.counted.append(Counted(field.labels, op, function, CROSSES))
    return [field]


@rule("native_group_norm", "group_norm")
def group_norm(f: Follower, op: Op) -> list[Layout]:
    """Mixes the channels of a group: groups are removed whole; a single group is locked."""
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], op.args[6]
    labels, rank, channels = f.labels, len(op.args[0].shape), op.args[0].shape[1]
    layout = f.of(x)
    if f.across_norm:
        f.crossed.append((op.name, op.path))
    else:
        split = reshape(labels, layout, (x.shape[0], groups, channels // groups, *x.shape[2:]))
        split = drop_axes(labels, split, range(2, rank + 1), CROSSES, keep=True)
        split = Layout((x.shape[0], groups, channels // groups, *x.shape[2:]), split.fields)
        layout = reshape(labels, split, x.shape)
    lines = [(f.of(ref), [1]) for ref in (weight, bias) if isinstance(ref, TensorRef)]
    out = merge(labels, x.shape, [(layout, range(rank)), *lines], "any" if lines else "none")
    return [out, *(Layout(ref.shape) for ref in op.results()[1:])]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(f: Follower, op: Op) -> list[Layout]:
    """v scaled by g over its norm: only the axis that is kept can be cut."""
    v, g = op.args[0], op.args[1]
    axis = op.arg(2, "dim", 0) % len(v.shape)
    axes = [a for a in range(len(v.shape)) if a != axis]
    if v.id in f.plain:  # where v is 0 its direction is 0 / 0: what leaves is masked by g alone
        f.unmasked.add((f.plain[v.id], axis))
        f.plain[op.results()[0].id] = f.plain[v.id]  # still the weight, as far as its inputs go
    layout = drop_axes(f.labels, f.of(v), axes, "a norm is taken over the axis", keep=True, zero_ok=True)
    full = [field for field in f.of(v).fields if axis not in field.axes]
    out = merge(
        f.labels,
        v.shape,
        [(Layout(v.shape, layout.fields), range(len(v.shape))), (f.of(g), range(len(v.shape)))],
        "any",
    )
    fields = [*out.fields, *full]
    return [squeezed(f.labels, v.shape, fields), *(Layout(ref.shape) for ref in op.results()[1:])]


@rule("local_response_norm")
def response_norm(f: Follower, op: Op) -> Layout:
    """Neighbouring channels mix."""
    f.lock_all([op.args[0]], CROSSES)
    return moved(Layout(op.args[0].shape), range(len(op.args[0].shape)))
