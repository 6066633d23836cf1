"""Residual connections: a layer compensates for the error of what its output is added to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur as sc
from secateur.compensation.calls import Names
from secateur.compensation.sums import Addend, SumFinder
from secateur.compensation.walking import Walk

Forward = Callable[["Pair", torch.Tensor], torch.Tensor]


class Pair(nn.Module):
    """Two layers of the same inputs, or one behind the other, put together by a function."""

    def __init__(self, forward: Forward, norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(4, 5, 1, bias=False) if norm else nn.Linear(4, 5)
        self.two = nn.Conv2d(4, 5, 1, bias=False) if norm else nn.Linear(4, 5)
        self.square = nn.Linear(5, 5)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.how = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


def in_place(net: Pair, x: torch.Tensor) -> torch.Tensor:
    out = net.two(x)
    out += net.one(x)
    return out


def viewed(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around = net.one(x)
    return net.two(x.reshape(-1, 4)).view(*x.shape[:-1], 5) + around


def found(net: nn.Module, x: torch.Tensor) -> dict[str, Addend]:
    finder = SumFinder([x])
    with Walk(net.eval(), Names(net), (x,), {}, watch=finder) as walk:
        walk.finish()
    return finder.addends()


SUMS: dict[str, tuple[Forward, str]] = {
    "sum": (lambda net, x: net.one(x) + net.two(x), "two.weight"),
    "the other way round": (lambda net, x: net.two(x) + net.one(x), "one.weight"),
    "torch.add": (lambda net, x: torch.add(net.one(x), net.two(x)), "two.weight"),
    "in place": (in_place, "one.weight"),
    "dropout": (lambda net, x: net.one(x) + functional.dropout(net.two(x), 0.5, net.training), "two.weight"),
    "reshaped": (viewed, "two.weight"),
}


@pytest.mark.parametrize("kind", SUMS)
def test_the_sum_is_what_a_layer_is_solved_for(kind: str) -> None:
    forward, last = SUMS[kind]
    net = Pair(forward).eval()
    torch.manual_seed(1)
    x = torch.randn(3, 20, 4)
    assert list(found(net, x)) == [last]
    other = "one" if last == "two.weight" else "two"
    masks = sc.prune(net, budget=0.5, options=sc.PruneOptions(only=[other]))
    assert float((masks.apply(net)(x) - net(x)).detach().abs().max()) > 0.1
    result = sc.compensate(net, masks, [x], solver=sc.LeastSquares(damping=0))
    alone = sc.compensate(net, masks, [x], solver=sc.LeastSquares(damping=0, sums=False))
    assert torch.equal(getattr(alone.model, last[:3]).weight, getattr(net, last[:3]).weight)
    # both read x, so that the last of the two can compensate for all that the first has lost
    torch.testing.assert_close(result.model(x), net(x), atol=1e-4, rtol=1e-4)


def changed(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around, out = net.one(x), net.two(x)
    out[..., 0] = 0
    return around + out


NOT_SUMS: dict[str, Forward] = {
    "not linear": lambda net, x: net.one(x).square() + functional.relu(net.two(x), inplace=True),
    "later": lambda net, x: net.two(x) + x.sum(-1, keepdim=True).expand(*x.shape[:-1], 5).exp(),
    "with a factor": lambda net, x: torch.add(net.one(x) * 1, net.two(x), alpha=2),
    "broadcast": lambda net, x: net.square(net.one(x)[:1]) + net.one(x)[:1, :1].exp(),
    "written into": changed,
}


@pytest.mark.parametrize("kind", NOT_SUMS)
def test_what_is_no_such_sum_is_left_alone(kind: str) -> None:
    assert not found(Pair(NOT_SUMS[kind]), torch.randn(3, 2, 4))


def read_twice(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around, out = net.one(x), net.two(x)
    return torch.cat([around + out, net.square(out)], -1)


def read_through_a_view(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around, out = net.one(x), net.two(x)
    return around + out.contiguous() + out.mean()


def added_twice(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around, out = net.one(x), net.two(x)
    return torch.cat([around + out, 2 * around + out], -1)


def cut_in_two(net: Pair, x: torch.Tensor) -> torch.Tensor:
    around, out = net.one(x), net.two(x)
    first, _ = out.chunk(2, -1)
    return (around + out) * first.sum()


READ_ELSEWHERE: dict[str, Forward] = {
    "by a layer": read_twice,
    "through a copy": read_through_a_view,
    "by two sums": added_twice,
    "in parts": cut_in_two,
}


@pytest.mark.parametrize("kind", READ_ELSEWHERE)
def test_a_layer_that_something_else_reads_is_solved_for_its_own_output(kind: str) -> None:
    net = Pair(READ_ELSEWHERE[kind]).eval()
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    assert "two.weight" not in found(net, x)
    masks = sc.prune(net, budget=0.5, options=sc.PruneOptions(only=["one"]))
    result = sc.compensate(net, masks, [x], solver=sc.LeastSquares(damping=0))
    assert torch.equal(result.model.two.weight, net.two.weight)
    assert not any(layer.summed for layer in result.layers)


@pytest.mark.parametrize("both", [False, True])
def test_what_the_caller_gets_too_is_read_by_it(both: bool) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            around = self.one(x)
            out = self.two(around.relu())
            return (around + out, out) if both else around + out

    net = Around().eval()
    result = sc.compensate(net, sc.prune(net, budget=0.5), [torch.randn(30, 4)])
    assert {layer.name: layer.summed for layer in result.layers} == {
        "one.weight": False,
        "two.weight": not both,
    }


def test_a_shape_is_no_number_that_is_read() -> None:
    def forward(net: Pair, x: torch.Tensor) -> torch.Tensor:
        around, out = net.one(x), net.two(x)
        return around + out if out.shape == around.shape and out.dim() == 2 and out.size(-1) == 5 else out

    assert list(found(Pair(forward), torch.randn(3, 4))) == ["two.weight"]


@pytest.mark.parametrize("turned", [False, True])
def test_each_batch_says_by_itself_whether_there_is_a_sum(turned: bool) -> None:
    """By hand: two rows ask for 3 + 2, for the sum, and one asks for 3, so that the weight becomes 13 / 3."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            around, out = self.one(x), self.two(x)
            return around + out if len(x) == 2 else torch.cat([around, out])

    net = Ways().eval()
    with torch.no_grad():
        net.one.weight.fill_(2.0)
        net.two.weight.fill_(3.0)
    masks = sc.Masks({"one.weight": torch.zeros(1, 1, dtype=torch.bool)})
    batches = [torch.ones(2, 1), torch.ones(1, 1)]
    result = sc.compensate(net, masks, batches[:: -1 if turned else 1], solver=sc.LeastSquares(damping=0))
    assert result.model.two.weight.item() == pytest.approx(13 / 3, abs=1e-5)
    assert {layer.name: layer.summed for layer in result.layers}["two.weight"]


def test_through_batch_norm_the_scale_of_every_channel_counts() -> None:
    net = Pair(lambda net, x: net.one(x) + net.norm(net.two(x)), norm=True)
    torch.manual_seed(1)
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.0, 1.5]))
        net.norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 1.0, 0.3]))
        net.norm.bias.normal_()
    x = torch.randn(10, 4, 3, 3) + 0.5
    assert list(found(net, x)) == ["two.weight", "norm.running_mean"]
    masks = sc.prune(net, budget=0.5, options=sc.PruneOptions(only=["one"]))
    lost = (masks.apply(net)(x) - net(x)).detach().abs().amax((0, 2, 3))
    assert int((lost > 0.1).sum()) >= 3
    result = sc.compensate(net, masks, [x], solver=sc.LeastSquares(damping=0))
    away = (result.model(x) - net(x)).detach().abs().amax((0, 2, 3))
    assert bool((away[[0, 1, 2, 4]] < 1e-3).all()), away
    # channel 3: a scale of nothing passes nothing on, so that its weights stay as they are
    torch.testing.assert_close(result.model.two.weight[3], net.two.weight[3], atol=1e-4, rtol=0)
    assert float(result.model.two.weight.detach().abs().max()) < 20


def test_a_tensor_of_another_shape_shifts_nothing() -> None:
    addend = Addend(("", -1))
    one, two = torch.ones(2, 3), torch.zeros(2, 3)
    assert addend.shift(one, one, one.shape) is None
    assert addend.shift(one, two[:1], one.shape) is None
    assert addend.shift(one, two, torch.Size([4, 3])) is None
    found = addend.shift(one, two, torch.Size([3, 2]))
    assert found is not None
    assert found.tolist() == [[1.0, 1.0]] * 3


def test_errors_do_not_pile_up_along_residual_blocks() -> None:
    """The last block's output is nearer than where each layer answers only for itself."""

    class Blocks(nn.Module):
        def __init__(self, hide: bool):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(6))
            self.hide = hide

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                out = layer(torch.relu(x))
                x = x + (out * 1 if self.hide else out)  # a product hides that it is a sum
            return x

    torch.manual_seed(1)
    data, others, errors = [torch.randn(400, 12)], torch.randn(400, 12), []
    for hide in (True, False):
        net = Blocks(hide).eval()
        result = sc.compensate(net, sc.prune(net, budget=0.5), data)
        errors.append(float((result.model(others) - net(others)).detach().square().mean()))
    assert errors[1] < 0.9 * errors[0], errors
