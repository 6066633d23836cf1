"""Forwards with widths written into them: once cut they take every batch and size, compile, script and pickle."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.errors import PlanError
from secateur.structure.cut.call_sites import resized
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite import RewrittenClass
from secateur.structure.cut.rewrite_data import Rewrite, _over
from secateur.structure.cutting import cut


class Grouped(nn.Module):
    """Channels in pairs; batch, height and width are the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        b, _, h, w = y.shape
        return self.o(y.view(b, 32, 2, h, w).max(2)[0])


class Heads(nn.Module):
    """Attention with the number of its heads written into it, on the batch's axis too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))
        self.out = nn.Linear(16, 8)

    def parted(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], 4, 4).transpose(1, 2).reshape(x.shape[0] * 4, x.shape[1], 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n = x.shape[0], x.shape[1]
        q, k, v = self.parted(self.q(x)), self.parted(self.k(x)), self.parted(self.v(x))
        y = F.softmax(q @ k.transpose(1, 2) * 0.5, -1) @ v
        return self.out(y.reshape(b, 4, n, 4).transpose(1, 2).reshape(b, n, 16))


class Halves(nn.Module):
    """Two halves of unequal width once channels leave, by `chunk`, and a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(4, 5), nn.Linear(4, 5)
        self.d, self.e = nn.Linear(6, 8), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.a(x).chunk(2, dim=-1)
        return self.b(one) + self.c(two) + self.e(self.d(x)[..., 2:5])


def looped(same: bool) -> nn.Module:
    """A call in a loop, made with one width or with two."""

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)])
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.new_zeros(x.shape[0], 3)
            for layer in self.layers:
                total = total + self.out(layer(x).view(x.shape[0], 2, 4).flip(1).reshape(x.shape[0], 8))
            return total

    model = Looped()
    if not same:
        model.out = nn.Linear(8, 3)
    return model


CHANCE = torch.Generator().manual_seed(0)
SHAPES = {
    Grouped: ((2, 3, 16, 16), (3, 3, 24, 20)),
    Heads: ((2, 5, 8), (3, 7, 8)),
    Halves: ((2, 6), (3, 7, 6)),
}
X = {kind: tuple(torch.randn(shape, generator=CHANCE) for shape in shapes) for kind, shapes in SHAPES.items()}


def halved(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, nn.Module, ShrinkPlan]:
    """(masked, cut, plan), both in evaluation mode."""
    model.eval()
    found = cut(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    masked = copy.deepcopy(model)
    found.masks.apply_(masked)
    return masked, found.model, found.plan


def without_source(kind: type) -> type:
    """The same class as if it had been typed into a prompt: its source cannot be read."""
    import inspect

    scope = {"nn": nn, "torch": torch, "F": F}
    exec(textwrap.dedent(inspect.getsource(kind)), scope)
    return scope[kind.__name__]  # type: ignore[return-value]


@pytest.mark.parametrize("sourced", [True, False], ids=["with source", "without"])
@pytest.mark.parametrize("kind", list(X), ids=lambda kind: kind.__name__)
def test_no_size_of_the_input_is_frozen(kind: type, sourced: bool) -> None:
    torch.manual_seed(0)
    x, other = X[kind]
    masked, small, plan = halved((kind if sourced else without_source(kind))(), x)
    assert plan.rewrites
    assert all((item.site is not None) is sourced for items in plan.rewrites.values() for item in items)
    for inputs in (x, other, other[:1]):
        torch.testing.assert_close(small(inputs), masked(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sourced", [True, False], ids=["with source", "without"])
@pytest.mark.parametrize("kind", list(X), ids=lambda kind: kind.__name__)
def test_it_compiles_in_one_graph(kind: type, sourced: bool) -> None:
    x, other = X[kind]
    _, small, _ = halved((kind if sourced else without_source(kind))(), x)
    torch._dynamo.reset()
    found = torch._dynamo.explain(small)(other)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="eager")
    for inputs in (x, other):
        torch.testing.assert_close(compiled(inputs), small(inputs))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", [Grouped, Heads], ids=lambda kind: kind.__name__)
def test_inductor_compiles_it_for_two_sizes(kind: type) -> None:
    torch.manual_seed(0)
    x, other = X[kind]
    masked, small, _ = halved(kind(), x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(small)
    with torch.no_grad():
        for inputs in (x, other):
            torch.testing.assert_close(compiled(inputs), masked(inputs), rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("kind", list(X), ids=lambda kind: kind.__name__)
def test_it_scripts_exports_copies_and_pickles(kind: type) -> None:
    x, other = X[kind]
    _, small, _ = halved(kind(), x)
    want = small(other)
    torch.testing.assert_close(torch.jit.script(small)(other), want)
    torch.testing.assert_close(torch.export.export(small, (other,)).module()(other), want)
    again = pickle.loads(pickle.dumps(small))
    for made in (copy.deepcopy(small), again):
        assert torch.equal(made(other), want)
        assert isinstance(made, kind)


@pytest.mark.parametrize("kind", list(X), ids=lambda kind: kind.__name__)
def test_a_second_cut_goes_over_the_first(kind: type) -> None:
    x, other = X[kind]
    _, small, _ = halved(kind(), x)
    masked, smaller, plan = halved(small, x)
    assert all(item.site is not None for items in plan.rewrites.values() for item in items)
    torch.testing.assert_close(smaller(other), masked(other), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    assert torch._dynamo.explain(smaller)(other).graph_break_count == 0


def test_a_plan_that_fits_another_source_counts_calls_instead() -> None:
    x, other = X[Heads]
    masked, _, plan = halved(Heads(), x)
    strange = {
        path: tuple(
            replace(item, site=tuple((name, "0" * 16, index) for name, _, index in item.site))
            for item in items
        )
        for path, items in plan.rewrites.items()
    }
    fresh = Heads()
    replace(plan, rewrites=strange).apply_(fresh)
    fresh.load_state_dict(halved_state(masked, plan))
    assert "_Sizes" in str(type(fresh).forward.__code__.co_names)
    torch.testing.assert_close(fresh(other), masked(other), rtol=1e-4, atol=1e-5)


def halved_state(masked: nn.Module, plan: ShrinkPlan) -> dict[str, torch.Tensor]:
    bare = copy.deepcopy(masked)
    return replace(plan, rewrites={}).apply_(bare).state_dict()


def test_a_call_in_a_loop_is_edited_where_all_its_widths_agree() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(2, 4), torch.randn(5, 4)
    masked, small, plan = halved(looped(True), x)
    torch.testing.assert_close(small(other), masked(other), rtol=1e-4, atol=1e-5)
    sites = {item.site for items in plan.rewrites.values() for item in items}
    calls = [item.call for items in plan.rewrites.values() for item in items]
    assert None in sites or len(sites) < len(calls)


def test_fractions_multiply() -> None:
    assert resized([6, 8, -1], (0, (2, 3)), (1, 4)) == (4, 4, -1)
    assert resized(6, (0, (1, 2))) == 3
    assert _over((1, 2), (2, 3), "view") == (1, 3)
    assert _over(8, (1, 2), "view") == 4
    assert _over((1, 2), 3, "view") == 3


@pytest.mark.parametrize("value", [[1, 0], [-1, 2], [1, 2, 3], ["a", 1]])
def test_a_damaged_fraction_is_refused(value: list) -> None:
    plan = ShrinkPlan({}, rewrites={"": (Rewrite("view", 0, ((1, (1, 2)),)),)}).to_dict()
    assert ShrinkPlan.from_dict(plan).rewrites[""][0].sizes == ((1, (1, 2)),)
    plan["rewrites"][""][0]["sizes"] = [[1, value]]
    with pytest.raises(PlanError, match="a damaged plan"):
        ShrinkPlan.from_dict(plan)


def test_a_site_says_where_to_look_and_nothing_that_runs() -> None:
    bad = Rewrite("reshape", 0, ((1, 6),), (("Heads.forward", "0" * 16, 10**6),))
    assert RewrittenClass(Heads, {0: bad}).made.forward.__code__.co_filename.endswith("rewrite.py")
    data = {"function": "view", "call": 0, "sizes": [[1, 2]], "site": [["__import__('os')", "x", 1]]}
    assert Rewrite.from_dict(data).site == (("__import__('os')", "x", 1),)
    with pytest.raises(ValueError, match="a site"):
        Rewrite.from_dict({**data, "site": [["one"]]})


class Folded(nn.Module):
    """Takes the width of its folded values from its input, and height and width of the image as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_meta and x.shape[-1] != 16:
            raise ValueError("recorded on 16 pixels alone")
        x = torch.relu(self.a(x))
        rows, width, *sides = x.shape
        return self.c(torch.relu(self.b(x)).flatten(2).view(rows, width, sides[0], sides[1]))


def test_sizes_that_follow_the_input_stay_expressions_where_no_other_shape_was_recorded() -> None:
    model, x = Folded().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = {
        name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        for name in ("a.weight", "b.weight")
    }
    masks["a.weight"][5:] = masks["b.weight"][6:] = False
    small = sc.shrink(model, sc.Masks(masks), x)
    assert (small.model.a.out_channels, small.model.b.out_channels) == (5, 6)
    (item,) = small.plan.rewrites[""]
    assert [position for position, _ in item.sizes] == [1]
    for shape in ((1, 3, 24, 16), (3, 3, 16, 40)):
        assert small.model(torch.zeros(shape)).shape == model(torch.zeros(shape)).shape


def attend(x: torch.Tensor, qkv: nn.Module, proj: nn.Module, heads: int, bias: torch.Tensor) -> torch.Tensor:
    """Attention in which the size of a head is worked out from the width of the stream."""
    b, n, c = x.shape
    q, k, v = qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    y = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    return proj(y.transpose(1, 2).reshape(b, n, c))


class Biased(nn.Module):
    """A block whose attention has a table with a column for each head, so that `num_heads` must follow the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.norm = 4, nn.LayerNorm(32)
        self.qkv, self.proj, self.table = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        places = torch.arange(n * n).to(x)[:, None]
        bias = self.table(places).view(-1, self.num_heads).transpose(0, 1).unflatten(1, (n, n))
        return x + self.norm(attend(x, self.qkv, self.proj, self.num_heads, bias))


def test_sizes_worked_out_wrongly_are_repaired_in_every_module_of_a_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), Biased(), Biased(), Biased(), nn.Linear(32, 3)).eval()
    x = torch.randn(2, 5, 6)
    plan = cut(model, sc.prune(model, "l2", "channel", 0.5, example=x), x).plan
    assert set(plan.rewrites) == {"1", "2", "3"}
    for items in plan.rewrites.values():
        assert all(item.site is not None for item in items)
        assert ((3, 2), (4, 8)) in [item.sizes for item in items]
