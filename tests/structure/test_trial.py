"""What explain says, prune does and shrink cuts is the same, also where only the cut forward shows a lock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.structure.cut import repair


class Written(nn.Module):
    """The width of `a` is written into the forward; `unmended` takes away the means to mend it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu().reshape(x.shape[0], 8)).relu())


@pytest.fixture(autouse=True)
def unmended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair.Repairs, "candidates", lambda *a: iter(()))


def made() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Written().eval(), torch.randn(2, 6)


def test_what_shrink_cannot_remove_is_not_zeroed() -> None:
    model, x = made()
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    small = sc.shrink(model, masks, x)
    assert small.model.b.out_features == 6
    assert small.model.a.out_features == 8
    assert not small.locked
    assert small.masks.sparsity == 0  # no zero stays behind
    assert "a.weight" not in masks or masks["a.weight"].all()


def test_explain_reports_the_lock_and_counts_what_is_cut() -> None:
    model, x = made()
    found = sc.explain(model, x, budget=0.5)
    assert [row.name for row in found.groups] == ["b"]
    assert any("this width hard-coded" in lock.reason for lock in found.locks)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
    assert found.removed_parameters == before - after


class Shifted(nn.Module):
    """Channels move between frames by slices that are written with numbers; their first half alone fits the slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        moved = torch.zeros_like(y)
        moved[:, :-1, :4] = y[:, 1:, :4]
        moved[:, 1:, 4:8] = y[:, :-1, 4:8]
        moved[:, :, 8:] = y[:, :, 8:]
        return self.head(self.b(moved).relu())


def test_channels_that_slices_keep_are_not_offered() -> None:
    torch.manual_seed(0)
    model, x = Shifted().eval(), torch.randn(2, 5, 3)
    found = sc.explain(model, x, budget=0.5)
    assert [row.name for row in found.groups] == ["b"]
    assert "the forward has this width hard-coded (slice in the model): a.weight[0]" in str(found)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    assert "a.weight" not in masks
    small = sc.shrink(model, masks, x)
    assert (small.model.a.out_features, small.model.b.out_features) == (16, 8)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.model.parameters()) == (
        found.removed_parameters
    )


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 6))
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x + (x @ self.up).relu() @ self.down).relu())


def test_a_modules_own_weights_are_counted_by_explain_and_cut_by_prune() -> None:
    torch.manual_seed(0)
    model, x = Bare().eval(), torch.randn(2, 6)
    found = sc.explain(model, x, budget=0.5)
    assert {row.name: (row.removed, row.by_name) for row in found.groups} == {
        "a": (5, False),
        "up": (4, False),
    }
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert found.removed_parameters == sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in small.model.parameters()
    )
    assert small.model.up.shape == (6, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, skip=["up", "down"])
    assert sc.shrink(model, masks, x).model.up.shape == (6, 8)


def test_explain_of_a_model_that_cannot_be_cut_is_a_report() -> None:
    found = sc.explain(nn.Sequential(nn.Linear(4, 2)), torch.randn(1, 4), budget=0.5)
    assert not found.groups
    assert found.removed_parameters == 0
    assert found.locks


def test_explain_says_where_a_unit_is_a_group_of_a_norm() -> None:
    class Net(nn.Sequential):
        def __init__(self, norm: nn.Module):
            super().__init__(nn.Conv2d(3, 32, 3), norm, nn.ReLU(), nn.Conv2d(32, 4, 1))

    image = torch.zeros(1, 3, 8, 8)
    found = sc.explain(Net(nn.GroupNorm(8, 32)), image)
    assert [(row.name, row.count, row.norm_group) for row in found.groups] == [("0", 8, 4)]
    line = "a unit is a group of a norm, whose channels are removed together: 0 (4 channels)"
    assert line in str(found)
    assert line in found._repr_html_()
    for norm in (nn.BatchNorm2d(32), nn.GroupNorm(32, 32)):
        assert "group of a norm" not in str(sc.explain(Net(norm), image))
