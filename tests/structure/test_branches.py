"""Calls that only larger inputs reach: they get their new sizes too, or what they need stays whole."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn

import secateur as sc
from secateur.structure.cut.branches import branch_of
from secateur.structure.cut.fit import _Search
from secateur.structure.cut.rewrite_data import BY_PLACE, Rewrite, joined
from secateur.structure.groups.couplings import analyse
from secateur.structure.shrink import Shrunk
from secateur.structure.trace.other_shapes import _Trials


class Windows(nn.Module):
    """Attention of four heads of four; only images of more than 20 pixels have a mask for their windows."""

    def __init__(self, from_height: int = 20) -> None:
        super().__init__()
        self.qkv, self.proj, self.from_height = nn.Linear(3, 48), nn.Linear(16, 3), from_height

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(b, h * w, 3, 4, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * 0.5
        if h > self.from_height:
            mask = torch.ones(1, 1, h * w, dtype=x.dtype, device=x.device).cumsum(-1) * 0.01
            scores = (scores.view(b, 1, 4, h * w, h * w) + mask).view(-1, 4, h * w, h * w)
        mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, h * w, 16))


class Late(nn.Module):
    """In images of more than 40 pixels every channel moves on by one, which none of them may leave."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.o(torch.cat([y[:, -1:], y[:, :-1]], 1) if x.shape[-1] > 40 else y)


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def shrunk(model: nn.Module, granularity: str = "head") -> tuple[nn.Module, Shrunk]:
    """(masked, shrunk), both in evaluation mode."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    masks = sc.prune(model.eval(), "l2", granularity, 0.5, example=X)
    small = sc.shrink(model, masks, X)
    masked = copy.deepcopy(model)
    masks.apply_(masked)
    return masked, small


def sizes(*edges: int) -> list[torch.Tensor]:
    return [torch.randn(1, 3, edge, edge + 4) for edge in edges]


@pytest.mark.parametrize("from_height", [14, 20])
def test_a_call_that_only_larger_images_reach_gets_its_new_sizes(from_height: int) -> None:
    masked, small = shrunk(Windows(from_height))
    assert small.model.qkv.out_features == 24
    assert not small.locked
    placed = [item for item in small.plan.rewrites[""] if item.call >= BY_PLACE]
    assert [item.function for item in placed] == ["view", "view"]
    assert all(item.site is not None for item in placed)
    for inputs in sizes(12, 16, 24, 40):
        torch.testing.assert_close(small.model(inputs), masked(inputs), rtol=1e-4, atol=1e-4)


def test_modules_of_one_class_get_the_same_by_place() -> None:
    """What helps one of them is tried on the others, and no rewrite is left without its place in the source."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Windows(), Windows()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).transpose(1, 2).unflatten(2, (x.shape[2], -1)))

    masked, small = shrunk(Two())
    assert [len(small.plan.rewrites[name]) for name in ("one", "two")] == [4, 4]
    assert all(item.site is not None for items in small.plan.rewrites.values() for item in items)
    for inputs in sizes(12, 28):
        torch.testing.assert_close(small.model(inputs), masked(inputs), rtol=1e-4, atol=1e-4)


def test_the_proof_has_an_input_that_takes_the_other_branch() -> None:
    _, small = shrunk(Windows(20))
    assert ((2, 3, 24, 24),) in {case.shapes for case in small.proof.cases}
    _, small = shrunk(Windows(30))  # only an image of four times the size takes it
    assert ((2, 3, 48, 48),) in {case.shapes for case in small.proof.cases}


def test_it_compiles_copies_and_pickles_at_both_branches() -> None:
    _, small = shrunk(Windows())
    torch._dynamo.reset()
    compiled = torch.compile(small.model, backend="eager", fullgraph=True)
    made = [compiled, copy.deepcopy(small.model), pickle.loads(pickle.dumps(small.model))]
    with torch.no_grad():
        for inputs in sizes(12, 28):
            for each in made:
                torch.testing.assert_close(each(inputs), small.model(inputs))


def test_a_second_cut_goes_over_the_first_and_both_load_into_the_class(tmp_path: Path) -> None:
    _, small = shrunk(Windows())
    masked, again = shrunk(small.model)
    assert again.model.qkv.out_features == 12
    plan = small.plan.then(again.plan)
    sc.save(again.model, tmp_path / "twice.sct", plan=plan)
    loaded = sc.load(tmp_path / "twice.sct", into=Windows()).eval()
    for inputs in sizes(12, 28):
        assert torch.equal(loaded(inputs), again.model(inputs))
        torch.testing.assert_close(again.model(inputs), masked(inputs), rtol=1e-4, atol=1e-4)


def test_what_a_larger_image_needs_whole_stays_and_says_so() -> None:
    class Both(nn.Module):
        """One block that can be cut at every size, and one that cannot."""

        def __init__(self) -> None:
            super().__init__()
            self.late, self.c, self.d = Late(), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.c(self.late(x)).relu())

    _, small = shrunk(Both(), "channel")
    assert (small.model.late.a.out_channels, small.model.c.out_channels) == (16, 4)
    wrong = [lock for lock in small.locked if lock.operator == "proof"]
    assert [lock.path for lock in wrong] == ["late.a"]
    assert "(2, 3, 48, 48)" in wrong[0].reason


def test_a_forward_of_one_path_has_no_branch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1)).eval()
    assert branch_of(analyse(model, X), model, X) is None


def test_an_image_taller_than_wide_is_proved_too() -> None:
    """Nearly every example is square, and a forward may ask which side is longer."""

    class Turned(nn.Module):
        """Channels change places in images taller than wide."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(self.b(y.flip(1) if x.shape[2] > x.shape[3] else y).relu())

    masked, small = shrunk(Turned(), "channel")
    assert (small.model.a.out_channels, small.model.b.out_channels) == (16, 8)
    assert [lock.path for lock in small.locked if lock.operator == "proof"] == ["a"]
    assert ((1, 3, 9, 6),) in {case.shapes for case in small.proof.cases}
    for inputs in (torch.randn(1, 3, 20, 12), torch.randn(1, 3, 12, 20)):
        torch.testing.assert_close(small.model(inputs), masked(inputs), rtol=1e-4, atol=1e-4)


class Several(nn.Module):
    """Some blocks one after the other, each with calls that only a larger image reaches."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Windows() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).transpose(1, 2).unflatten(2, (x.shape[2], -1))
        return x


def test_the_search_takes_no_longer_for_more_modules_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """What helps one helps all, by their place in the source, and is not tried on each again."""
    made: list[int] = []
    rerun = _Search.rerun
    monkeypatch.setattr(_Search, "rerun", lambda search, plan: made.append(1) or rerun(search, plan))  # type: ignore[func-returns-value]
    counts = []
    for count in (2, 6):
        made.clear()
        sc.prune(Several(count).eval(), "l2", "head", 0.5, example=X)
        counts.append(len(made))
    assert counts[0] == counts[1] <= 12


def test_planning_and_proof_share_the_recordings_of_larger_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    recorded = _Trials.recorded

    def count(trials: _Trials, example: torch.Tensor) -> object:
        made.append(tuple(example.shape))
        return recorded(trials, example)

    monkeypatch.setattr(_Trials, "recorded", count)
    _, small = shrunk(Windows())
    assert small.proof.holds
    assert made.count((2, 3, 48, 48)) == 1  # four times as large as the example


def test_rewrites_by_place_are_joined_by_place() -> None:
    """Two cuts may have numbered them in another order."""
    one, other = (("f", "00", 1),), (("f", "00", 2),)
    before = {BY_PLACE: Rewrite("view", BY_PLACE, ((1, (1, 2)),), one)}
    new = {
        BY_PLACE: Rewrite("view", BY_PLACE, ((2, 6),), other),
        BY_PLACE + 1: Rewrite("view", BY_PLACE + 1, ((1, (1, 2)),), one),
    }
    found = {item.site: item.sizes for item in joined(before, new).values()}
    assert found == {one: ((1, (1, 4)),), other: ((2, 6),)}
