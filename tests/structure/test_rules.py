"""Rules one by one, and the table of them in the docs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.structure.couplings import analyse
from secateur.structure.labels import Field, Labels, Layout, components
from secateur.structure.layout import concat, merge, reshape, take
from secateur.structure.rules import markdown, table
from secateur.structure.trace import trace

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_in_the_docs_is_current() -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == markdown(), (
        "run: python -m secateur.structure.rules > docs/operators.md"
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
