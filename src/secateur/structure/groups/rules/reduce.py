"""Reductions, pooling, resizing: zeros on a summed axis can be removed; on an averaged one they cannot."""

from __future__ import annotations

from dataclasses import replace

from secateur.structure.groups.labels import Field, Layout
from secateur.structure.groups.layout import drop_axes
from secateur.structure.groups.rules import Counted, Follower, rule
from secateur.structure.trace.trace import Op


def _axes(op: Op, position: int = 1, name: str = "dim") -> list[int]:
    """The axes of a reduction: none named means all."""
    rank = len(op.args[0].shape)
    dims = op.arg(position, name)
    if isinstance(dims, bool) or dims is None or dims == []:
        return list(range(rank))
    return [dims] if isinstance(dims, int) else list(dims)


def _kept_count(f: Follower, op: Op) -> list[Field]:
    """The fields whose zeros a mean can still count."""
    x, rank = op.args[0], len(op.args[0].shape)
    gone = {axis % rank for axis in _axes(op)} if rank else set()
    found = [field for field in f.of(x).fields if field.zero and not field.weak and set(field.axes) <= gone]
    found = found if len(found) == 1 and len(found[0].axes) == 1 else []
    f.counted += [
        Counted(field.labels, op, "mean", "mean over the axis", axis=field.axes[0] - rank) for field in found
    ]
    return found


def _reduced(f: Follower, op: Op, axes: list[int], reason: str, zero_ok: bool = False) -> list[Layout]:
    results = op.results()
    x = op.args[0]
    keep = len(results[0].shape) == len(x.shape)
    counted = _kept_count(f, op) if op.name == "mean" and f.read(op) else []
    if f.across_norm and keep and len(axes) == 1 and op.name in ("var", "std", "var_mean", "std_mean"):
        crossed = [field for field in f.of(x).fields if field.axes == (axes[0] % len(x.shape),)]
        f.crossed += [(op.name, op.path) for _ in crossed]
        counted = [*counted, *crossed]
    gone = {axis % len(x.shape) for axis in axes} if x.shape else set()
    if not f.read(op):  # such as the weights of attention that nobody asked for
        counted = [field for field in f.of(x).fields if set(field.axes) <= gone]
    layout = Layout(x.shape, tuple(field for field in f.of(x).fields if field not in counted))
    layout = drop_axes(f.labels, layout, axes, reason, keep=keep, zero_ok=zero_ok)
    return [layout if layout.shape == ref.shape else Layout(ref.shape) for ref in results]


@rule("sum", "nansum", "count_nonzero")
def sums(f: Follower, op: Op) -> list[Layout]:
    """A sum does not change when zeros are removed."""
    return _reduced(
        f, op, _axes(op), "a sum over the axis, and removed positions are not 0 there", zero_ok=True
    )


@rule(
    "mean",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "prod",
    "logsumexp",
    "any",
    "all",
    "max",
    "min",
    "median",
    "nanmedian",
    "mode",
    "argmax",
    "argmin",
    "aminmax",
    "kthvalue",
)
def mixing(f: Follower, op: Op) -> list[Layout]:
    """Counts, products and extremes change when zeros are removed: the axis is locked; some means keep their count."""
    position = {"kthvalue": 2}.get(op.name, 1)
    return _reduced(f, op, _axes(op, position), f"{op.name} over the axis")


@rule("linalg_vector_norm", "norm")
def norms(f: Follower, op: Op) -> list[Layout]:
    """A norm does not change when zeros are removed."""
    order = op.arg(1, "ord", 2)
    positive = order is None or (isinstance(order, (int, float)) and order > 0)
    return _reduced(f, op, _axes(op, 2), "a norm over the axis", zero_ok=positive)


_ZERO_ALONG = frozenset({"cumsum", "cumprod", "sort", "cummax", "cummin"})
"""Operators along an axis that give 0 for a row of zeros; a softmax gives equal shares."""


@rule(
    "_softmax",
    "_log_softmax",
    "softmax",
    "log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "sort",
    "argsort",
    "cummax",
    "cummin",
)
def along(f: Follower, op: Op) -> list[Layout]:
    """Positions along the axis mix and stay: the axis is locked, joint fields lose it."""
    x = op.args[0]
    axis = op.arg(1, "dim", -1)
    layout = drop_axes(f.labels, f.of(x), [axis], f"{op.name} along the axis", keep=True)
    keeps = op.name in _ZERO_ALONG
    fields = tuple(field if keeps else replace(field, zero=False) for field in layout.fields)
    return [Layout(ref.shape, fields if ref.shape == x.shape else ()) for ref in op.results()]


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(f: Follower, op: Op) -> list[Layout]:
    """A Fourier transform mixes the positions along its axes, which are locked; along all others rows stay apart, and a
    row of zeros gives zeros.
    """
    layout = drop_axes(
        f.labels, f.of(op.args[0]), op.arg(1, "dim"), "a Fourier transform along the axis", keep=True
    )
    return [Layout(ref.shape, layout.fields) for ref in op.results()]


@rule("topk")
def topk(f: Follower, op: Op) -> list[Layout]:
    """The chosen axis is locked."""
    layout = drop_axes(f.labels, f.of(op.args[0]), [op.arg(2, "dim", -1)], "topk along the axis", keep=True)
    return [Layout(ref.shape, layout.fields) for ref in op.results()]


def _spatial(count: int):  # type: ignore[no-untyped-def]
    """A rule for operators whose last `count` axes are space."""

    def spatial(f: Follower, op: Op) -> list[Layout]:
        """Space is fixed, channels pass one by one."""
        x = op.args[0]
        rank = len(x.shape)
        layout = drop_axes(
            f.labels, f.of(x), range(rank - count, rank), f"the axis is space to {op.name}", keep=True
        )
        return [Layout(ref.shape, layout.fields if len(ref.shape) == rank else ()) for ref in op.results()]

    return spatial


for _count in (1, 2, 3):
    rule(
        *(
            f"{name}{_count}d{suffix}"
            for name in (
                "avg_pool",
                "max_pool",
                "adaptive_avg_pool",
                "_adaptive_avg_pool",
                "adaptive_max_pool",
                "fractional_max_pool",
                "reflection_pad",
                "replication_pad",
                "upsample_nearest",
                "_upsample_nearest_exact",
                "mkldnn_adaptive_avg_pool",
                "mkldnn_max_pool",
            )
            for suffix in ("", "_with_indices")
        )
    )(_spatial(_count))
rule("upsample_linear1d")(_spatial(1))
rule(
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "max_unpool2d",
    "_upsample_lanczos2d_aa",
)(_spatial(2))
rule("upsample_trilinear3d", "max_unpool3d")(_spatial(3))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(f: Follower, op: Op) -> Layout:
    """Space sampled at points: channels pass."""
    x, out = op.args[0], op.results()[0]
    f.lock_all([op.args[1]], "sampling points")
    layout = drop_axes(f.labels, f.of(x), range(2, len(x.shape)), "the axis is space", keep=True)
    return Layout(out.shape, layout.fields)


@rule("_cdist_forward", "cdist")
def cdist(f: Follower, op: Op) -> Layout:
    """Distances between rows."""
    f.lock_all([op.args[0], op.args[1]], "distances over the axis")
    return Layout(op.results()[0].shape)
