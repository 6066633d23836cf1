"""Rules one by one, and the table of them in the docs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import TraceError
from secateur.structure.groups.couplings import analyse
from secateur.structure.groups.labels import Field, Labels, Layout, components
from secateur.structure.groups.layout import concat, merge, reshape, take
from secateur.structure.groups.rules import markdown, table
from secateur.structure.trace.trace import trace

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_in_the_docs_is_current() -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == markdown(), (
        "run: python -m secateur.structure.groups.rules > docs/operators.md"
    )


def test_every_rule_says_what_it_does() -> None:
    for name, function in table().items():
        assert (function.__doc__ or "").strip(), name


@pytest.mark.parametrize("count", [10, 20_000])
def test_components_agree_with_a_plain_union_find(count: int) -> None:
    random = np.random.default_rng(count)
    left, right = random.integers(0, count, count // 2), random.integers(0, count, count // 2)
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in zip(left, right):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    assert components(count, left, right).tolist() == [root(i) for i in range(count)]


def test_a_reshape_moves_labels_as_numpy_moves_elements() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = random.integers(1, 5, 4)
        axis = int(random.integers(0, 4))
        if sizes[axis] < 2:
            continue
        labels = Labels()
        own = labels.fresh(int(sizes[axis]))
        layout = Layout(tuple(int(s) for s in sizes), (Field((axis,), own),))
        view = [-1 if a == axis else 1 for a in range(4)]
        elements = np.broadcast_to(own.reshape(view), sizes)
        order = random.permutation(4)
        factors = [int(sizes[i]) for i in range(4)]
        cut = int(random.integers(1, 4))
        shape = (int(np.prod(factors[:cut])), int(np.prod(factors[cut:])))
        del order
        moved = reshape(labels, layout, shape)
        wanted = elements.reshape(shape)
        if not moved.fields:
            continue
        field = moved.fields[0]
        assert np.array_equal(np.broadcast_to(field.over((0, 1), shape), shape), wanted)


def test_cat_and_slices_are_inverse() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(5)
    joined = concat(labels, [Layout((2, 3), (Field((1,), a),)), Layout((2, 5), (Field((1,), b),))], 1)
    assert take(labels, joined, 1, slice(3, 8)).fields[0].labels.tolist() == b.tolist()
    fixed = concat(labels, [Layout((2, 3)), joined], 1)
    assert fixed.fields[0].labels.tolist() == [0, 0, 0, *a, *b]


def test_meeting_a_fixed_axis_locks() -> None:
    labels = Labels()
    a = labels.fresh(4)
    merge(labels, (4,), [(Layout((4,), (Field((0,), a),)), [0]), (Layout((4,)), [0])])
    assert (labels.classes()[a] == 0).all()


def test_broadcasting_does_not() -> None:
    labels = Labels()
    a = labels.fresh(4)
    merge(labels, (4,), [(Layout((4,), (Field((0,), a),)), [0]), (Layout((1,)), [0])])
    assert (labels.classes()[a] > 0).all()


@pytest.mark.parametrize(
    ("function", "free"),
    [
        (lambda y: y.sum(1, keepdim=True) + 0 * y, True),
        (lambda y: torch.sigmoid(y).sum(1, keepdim=True) + 0 * y, False),
        (lambda y: y.mean(1, keepdim=True) * y, True),
        (lambda y: torch.sigmoid(y).mean(1, keepdim=True) * y, False),
        (lambda y: y.softmax(1), False),
        (lambda y: y.norm(dim=1, keepdim=True) * y, True),
        (lambda y: y.amax(1, keepdim=True) * y, False),
        (lambda y: y.cumsum(1), False),
        (lambda y: y + torch.arange(8, device=y.device), False),
        (lambda y: y * torch.ones(8, device=y.device), True),
        (lambda y: y[:, torch.arange(8, device=y.device)], False),
        (lambda y: y.flip(1), True),
        (lambda y: y.roll(3, 1), True),
        (lambda y: torch.where(y > 0, y, y.exp()), True),
        (lambda y: y[:, ::2].repeat_interleave(2, 1), True),
        (lambda y: y.fft() if hasattr(y, "fft") else torch.fft.fft(y).real, False),
    ],
)
def test_what_may_leave_and_what_may_not(function, free: bool) -> None:  # type: ignore[no-untyped-def]
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(function(self.a(x)))

    assert bool(analyse(Net(), torch.randn(3, 4)).groups) is free


@pytest.mark.parametrize(
    ("function", "free"),
    [
        (lambda y, m, g: F.batch_norm(y, m, m.exp(), g, g).sum(1, keepdim=True) * y, True),
        (
            lambda y, m, g: F.batch_norm(y, m, m.exp()).sum(1, keepdim=True) * y,
            False,
        ),  # 0 becomes -mean / std
        (lambda y, m, g: y * m * g.mean(), True),
        (lambda y, m, g: y * m * m.mean(), False),  # a buffer's values are not masked, so not 0
    ],
)
def test_zeros_of_norms_and_buffers(function, free: bool) -> None:  # type: ignore[no-untyped-def]
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.g = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(8))
            self.register_buffer("m", torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(function(self.a(x), self.m, self.g))

    assert bool(analyse(Net().eval(), torch.randn(3, 4)).groups) is free


def test_the_trace_copies_no_weights_and_sees_what_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)).train()
    found = trace(model, torch.randn(3, 4))
    assert found.mode == "meta"
    assert [op.name for op in found.ops if op.name == "addmm"] == ["addmm"] * 2
    assert {ref.name for ref in found.parameters.values()} == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_forward_that_looks_at_values_runs_on_real_tensors() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y if float(x.sum()) > -1e9 else -y)

    found = analyse(Looks(), torch.randn(3, 4))
    assert found.trace.mode == "real"
    assert found.groups[0].count == 8


class Experts(nn.Module):
    """Three experts of a gated hidden width of 8, over runs of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 16, 8)), nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor([2, 3, 6], dtype=torch.int32, device=x.device)
        gate, up = torch._grouped_mm(x, self.up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        return torch._grouped_mm(torch.relu(gate) * up, self.down.transpose(1, 2), offs=ends)


def test_experts_lose_the_same_channels() -> None:
    """Hidden channel j is rows j and 8 + j of the first product's matrices and column j of the second's."""
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(6, 8)
    found = analyse(model, x)
    assert [group.count for group in found.groups] == [8]
    slots = {(slot.name, slot.axis, slot.role): slot.positions.tolist() for slot in found.groups[0].slots}
    assert slots == {
        ("up", 1, "out"): [[unit, 8 + unit] for unit in range(8)],
        ("down", 2, "in"): [[unit] for unit in range(8)],
    }
    assert found.macs() == 6 * 8 * 16 + 6 * 8 * 8
    small = sc.shrink(
        model, sc.prune(model, "l1", "channel", 0.5, example=x, options=sc.PruneOptions(parameters="*")), x
    )
    assert (small.model.up.shape, small.model.down.shape) == ((3, 8, 8), (3, 8, 4))
    assert small.proof.error < 1e-6
    assert any("experts are chosen by number" in lock.reason for lock in sc.explain(model, x).locks)


class Passed(nn.Module):
    """Heads of which a part that is empty goes around the rotation, and slices by widths from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.qkv, self.out = 16, nn.Linear(16, 32), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        qkv, wide, half = self.qkv(x), 16, 8
        q, k, v = qkv[..., :wide], qkv[..., wide : wide + half], qkv[..., wide + half :]
        q, k, v = (each.view(b, n, -1, 4).transpose(1, 2) for each in (q, k, v))
        q = torch.cat([q[..., :4] * 2, q[..., 4:]], dim=-1)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(out.transpose(1, 2).reshape(b, n, -1))


def test_an_empty_rest_of_a_head_does_not_lock_it() -> None:
    """Two groups of two query heads and one key-value head: one of the two leaves whole."""
    torch.manual_seed(0)
    model, x = Passed().eval(), torch.randn(2, 5, 16)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert not small.locked
    assert small.proof.error < 1e-12
    assert (small.model.qkv.out_features, small.model.out.in_features) == (16, 8)


def test_attention_over_nothing_is_an_error_while_recording() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x[:, :0], x[:, :0], enable_gqa=True)

    with pytest.raises(TraceError, match="attention over a tensor that has no elements"):
        trace(Nothing(), torch.randn(1, 2, 3, 4))


class Pooled(nn.Module):
    """Heads laid out along the batch, each channel of a head pooled by a kernel that all heads share."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.v, self.pool, self.out = (
            nn.Linear(6, 12),
            nn.Conv1d(3, 3, 3, groups=3, bias=bias),
            nn.Linear(12, 6),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        heads = self.v(x).reshape(b, n, -1, 3).transpose(1, 2)
        first, rest = heads[:, :, :1], heads[:, :, 1:]
        pooled = self.pool(rest.transpose(2, 3).reshape(-1, 3, n - 1))
        pooled = pooled.reshape(b, -1, 3, n - 3).transpose(2, 3)
        return self.out(torch.cat([first, pooled], dim=2).transpose(1, 2).reshape(b, n - 2, -1))


@pytest.mark.parametrize("bias", [False, True])
def test_heads_along_the_batch_pass_a_convolution_whole(bias: bool) -> None:
    """Head h is rows 3 h to 3 h + 2 of the values, and the same columns of what follows; a bias makes it not 0."""
    torch.manual_seed(0)
    model, x = Pooled(bias).eval(), torch.randn(2, 6, 6)
    found = analyse(model, x)
    rows = [[3 * head + i for i in range(3)] for head in range(4)]
    assert [group.count for group in found.groups] == [4]
    slots = {(slot.name, slot.axis): slot.positions.tolist() for slot in found.groups[0].slots}
    assert slots == {("v.weight", 0): rows, ("v.bias", 0): rows, ("out.weight", 1): rows}
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.v.out_features, small.model.pool.in_channels, small.model.out.in_features) == (
        6,
        3,
        6,
    )


def test_what_a_bias_turns_into_something_else_is_no_longer_zero() -> None:
    for bias, zero in ((False, True), (True, False)):
        model, x = Pooled(bias), torch.randn(2, 6, 6)
        found = analyse(model, x)
        op = next(op for op in found.trace.ops if op.name == "convolution")
        assert [field.zero for field in found.follower.of(op.results()[0]).fields] == [zero]


class Positions(nn.Module):
    """Attention of two heads of size 3 whose scores get what the queries make of a table that both heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table, self.out = nn.Linear(6, 18), nn.Parameter(torch.randn(4, 4, 3)), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, -1, 3).permute(2, 0, 3, 1, 4).reshape(3, -1, n, 3).unbind(0)
        far = torch.einsum("bnd,nmd->bnm", q, self.table)
        mixed = torch.softmax(q @ k.transpose(1, 2) + far, -1) @ v
        return self.out(mixed.reshape(b, -1, n, 3).permute(0, 2, 1, 3).reshape(b, n, -1))


def test_a_table_that_heads_share_does_not_tie_them() -> None:
    """Head h is rows 3 h + i of queries, keys and values alike, and columns 3 h + i of what follows."""
    torch.manual_seed(0)
    model, x = Positions().eval(), torch.randn(2, 4, 6)
    found = analyse(model, x)
    assert [(group.count, group.heads) for group in found.groups] == [(2, True)]
    slots = {(slot.name, slot.axis): slot.positions.tolist() for slot in found.groups[0].slots}
    assert slots["out.weight", 1] == [[0, 1, 2], [3, 4, 5]]
    assert slots["qkv.weight", 0] == [
        [part * 6 + head * 3 + i for part in range(3) for i in range(3)] for head in range(2)
    ]
    assert any(lock.reason == "shared by heads that are removed whole" for lock in sc.explain(model, x).locks)
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.qkv.out_features, small.model.table.shape) == (9, (4, 4, 3))


@pytest.mark.parametrize(("strides", "groups"), [((6, 1), 1), ((1, 2), 0)])
def test_laid_out_by_strides(strides: tuple[int, int], groups: int) -> None:
    """Of a contiguous (2, 6) the strides are (6, 1); any others move elements, and what they mean is not known."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).as_strided((2, 6), strides))

    model, x = Strided(), torch.randn(2, 4)
    followed = analyse(model, x)
    assert len(followed.groups) == groups
    assert any(lock.reason == "laid out by strides" for lock in followed.locked()) == (not groups)
    assert not sc.explain(model, x).groups  # the sizes are written into the forward


class Counting(nn.Module):
    """Linear attention of two heads of size 3: a 1 put behind the values sums up the weights they are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, -1, 9).transpose(1, 2).split(3, dim=-1)
        q, k, v = torch.relu(q) + 0.1, torch.relu(k) + 0.1, nn.functional.pad(v, (0, 1), value=1.0)
        mixed = q @ (k.transpose(2, 3) @ v)
        mixed = mixed[..., :-1] / mixed[..., -1:]
        return self.out(mixed.transpose(1, 2).reshape(b, n, -1))


def test_heads_that_are_padded_leave_whole() -> None:
    """Head h is rows 9 h to 9 h + 8 of queries, keys and values, and columns 3 h to 3 h + 2 of what follows."""
    torch.manual_seed(0)
    model, x = Counting().eval(), torch.randn(2, 4, 6)
    found = analyse(model, x)
    assert [group.count for group in found.groups] == [2]
    slots = {(slot.name, slot.axis): slot.positions.tolist() for slot in found.groups[0].slots}
    assert slots["qkv.weight", 0] == [list(range(9)), list(range(9, 18))]
    assert slots["out.weight", 1] == [[0, 1, 2], [3, 4, 5]]
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-12
    assert (small.model.qkv.out_features, small.model.out.in_features) == (9, 3)


class _JoinsNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nothing = torch.cat([torch.zeros(0), torch.zeros(0)])
        return self.b(torch.cat([nothing, self.a(x).relu()[0]])[None])


def test_tensors_without_elements_are_joined() -> None:
    """A detector without a box joins empty lists of scores."""
    torch.manual_seed(0)
    model, x = _JoinsNothing().eval(), torch.randn(1, 6)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    assert sc.shrink(model, masks, x).model.a.out_features == 4
