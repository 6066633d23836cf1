"""A forward that is not run again is one that could not be upset, and one that only looked so is run after all."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.masks import Masks
from secateur.structure.cut import fit
from secateur.structure.cut.choose import extended
from secateur.structure.cut.needs_rerun import runs_unchanged
from secateur.structure.cutting import CutOptions, cut
from secateur.structure.groups import couplings
from secateur.structure.trace.meta_shapes import META_SHAPES
from secateur.structure.trace.trace import traceable_copy

_SPEC = importlib.util.spec_from_file_location("plain_cases", Path(__file__).with_name("cases.py"))
assert _SPEC
assert _SPEC.loader
cases = importlib.util.module_from_spec(_SPEC)
sys.modules["plain_cases"] = cases
_SPEC.loader.exec_module(cases)


@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_the_short_way_cuts_as_the_long_way_does(name: str) -> None:
    torch.manual_seed(0)
    model, example = cases.CASES[name].build().eval(), cases.CASES[name].example()
    structure = couplings.analyse(model, example)
    keep = {group.index: torch.arange(group.count).numpy() % 2 == 0 for group in structure.groups}
    masks = extended(structure, Masks.ones(model), structure.alive(keep), model)
    short, long = cut(model, masks, example), cut(model, masks, example, CutOptions(careful=True))
    assert long.tried
    assert short.plan == long.plan
    for (key, a), b in zip(short.model.state_dict().items(), long.model.state_dict().values()):
        assert torch.equal(a, b), key


def test_most_plain_networks_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    monkeypatch.setattr(fit, "trace", lambda *a, **k: pytest.fail("the forward was run a second time"))
    assert sc.shrink(model, masks, x).proof.holds


class GivenSizes(nn.Module):
    """Plain but for one reshape, whose sizes are right for some widths only."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.a, self.b, self.sizes = nn.Linear(4, 8), nn.Linear(8, 3), sizes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).reshape(self.sizes))


@pytest.mark.parametrize(("sizes", "plain"), [((-1, 8), False), ((2, -1), True), ((2, 8), False)])
def test_a_size_that_was_given_is_looked_at(sizes: tuple[int, ...], plain: bool) -> None:
    model, x = GivenSizes(sizes), torch.randn(2, 4)
    structure = couplings.analyse(model, x)
    alive = structure.alive({0: torch.arange(8).numpy() % 2 == 0})
    assert runs_unchanged(structure, model, alive) is plain
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    assert sc.shrink(model, masks, x).model.a.out_features == 4


class Condition(nn.Module):
    """Takes another way once it is narrower, which no operator of the first run shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x))
        x = x + (1.0 if x.shape[-1] == 8 else 2.0)
        return self.d(torch.relu(self.c(x)))


def test_a_forward_that_only_looked_plain_is_run_after_all() -> None:
    torch.manual_seed(0)
    model, x = Condition(), torch.randn(2, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    assert not cut(model, masks, x).tried
    small = sc.shrink(model, masks, x)
    assert small.proof.error < 1e-12
    assert small.model.b.out_features == 8  # the width the forward asks about stays
    assert small.model.a.out_features == 4
    assert small.model.c.out_features == 4


def test_one_position_alone_is_no_plain_width() -> None:
    """squeeze() would take such an axis away."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).mean([2, 3], keepdim=True).squeeze(-1).squeeze(-1))

    model, x = Squeezed(), torch.randn(2, 3, 4, 4)
    structure = couplings.analyse(model, x)
    assert not runs_unchanged(structure, model, structure.alive({0: torch.tensor([True, False]).numpy()}))


def _tensor(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


ATEN = torch.ops.aten
CALLS = [
    (
        ATEN.convolution.default,
        (_tensor(2, 4, 9, 9), _tensor(6, 2, 3, 3), None, [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
    ),
    (ATEN.convolution.default, (_tensor(2, 4, 9), _tensor(4, 3, 3), None, [1], [0], [1], True, [0], 1)),
    (ATEN.add.Tensor, (_tensor(2, 1, 5), _tensor(4, 1))),
    (ATEN.add.Tensor, (_tensor(4), _tensor(2, 3, 4))),
    (ATEN.mul.Tensor, (_tensor(2, 3), 2.0)),
    (ATEN.add_.Tensor, (_tensor(2, 3), _tensor(3))),
    (ATEN.mean.dim, (_tensor(2, 3, 4), [-1, 1], True)),
    (ATEN.mean.dim, (_tensor(2, 3, 4), [2])),
    (ATEN.cat.default, ([_tensor(2, 3), _tensor(2, 5)], 1)),
    (ATEN.cat.default, ([_tensor(0), _tensor(2, 5)], -1)),
    (ATEN.mm.default, (_tensor(2, 3), _tensor(3, 5))),
    (ATEN.bmm.default, (_tensor(7, 2, 3), _tensor(7, 3, 5))),
    (ATEN.addmm.default, (_tensor(5), _tensor(2, 3), _tensor(3, 5))),
    (ATEN.native_layer_norm.default, (_tensor(2, 3, 4), [3, 4], _tensor(3, 4), _tensor(3, 4), 1e-5)),
    (
        ATEN.native_batch_norm.default,
        (_tensor(2, 3, 4), None, None, _tensor(3), _tensor(3), False, 0.1, 1e-5),
    ),
    (ATEN._safe_softmax.default, (_tensor(2, 3, 4), -1)),
    (ATEN.relu.default, (_tensor(2, 3).t(),)),
    (ATEN.grid_sampler_2d.default, (_tensor(2, 3, 4, 5), _tensor(2, 6, 7, 2), 0, 0, False)),
]


@pytest.mark.parametrize("call", CALLS, ids=[f"{i}-{call[0]}" for i, call in enumerate(CALLS)])
def test_quick_shapes_are_torchs_own(call: tuple) -> None:  # type: ignore[type-arg]
    func, args = call
    want, got = func(*args), META_SHAPES[func](*args)
    want, got = [t if isinstance(t, tuple) else (t,) for t in (want, got)]
    assert got[0].shape == want[0].shape
    assert got[0].stride() == want[0].stride()
    assert got[0].dtype == want[0].dtype


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN.convolution.default, (_tensor(2, 4, 9), _tensor(6, 3, 3), None, [1], [0], [1], False, [0], 1)),
        (ATEN.add.Tensor, (_tensor(2, 3), _tensor(4))),
        (ATEN.mm.default, (_tensor(2, 3), _tensor(4, 5))),
        (ATEN.cat.default, ([_tensor(2, 3), _tensor(3, 3)], 1)),
        (ATEN.grid_sampler_2d.default, (_tensor(2, 3, 4, 5), _tensor(1, 6, 7, 2), 0, 0, False)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_as_torch_does(func: object, args: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(RuntimeError):
        META_SHAPES[func](*args)


def test_modules_are_left_without_marks() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    couplings.analyse(model, torch.zeros(1, 2))
    twin, _ = traceable_copy(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in (*model.modules(), *twin.modules()))
