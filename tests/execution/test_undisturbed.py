"""Scoring leaves no trace: weights, gradients, flags, buffers, modes, random state; also on failure."""

import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur import criteria, measure, prune
from secateur.budget import Macs
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import OptionError, SecateurError
from secateur.execution.undisturbed import kept_random_state, undisturbed


class Noisy(nn.Module):
    """A model with everything that a forward pass can disturb; fails at the call numbered `fails_at`."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("last", torch.zeros(1))
        self.fails_at = None

    def forward(self, x):
        self.calls += 1
        self.last = self.last + x.mean()  # replaces the buffer
        random.random()
        np.random.rand()
        torch.rand(3)
        if self.fails_at is not None and float(self.calls) >= self.fails_at:
            raise RuntimeError("failed midway")
        return self.head(self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def noisy() -> Noisy:
    torch.manual_seed(0)
    model = Noisy()
    model.train()
    model.norm.eval()  # a mixture of modes, as in fine-tuning
    model.conv.weight.grad = torch.randn_like(model.conv.weight)
    model.head.bias.requires_grad_(False)
    model.conv.bias.requires_grad_(False)
    return model


def random_state():
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]


def everything(model: nn.Module):
    return {
        "values": {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]},
        "objects": {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]},
        "gradients": {n: p.grad for n, p in model.named_parameters()},
        "gradient values": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "keys": list(model.state_dict()),
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
    }


def assert_as_found(model: nn.Module, before) -> None:
    after = everything(model)
    for what in ("objects", "flags", "modes", "keys", "attributes", "hooks"):
        assert after[what] == before[what], what
    for name, tensor in before["values"].items():
        assert torch.equal(after["values"][name], tensor), name
    for name, gradient in before["gradients"].items():
        assert after["gradients"][name] is gradient, name
        if gradient is not None:
            assert torch.equal(gradient, before["gradient values"][name]), name


def context(batches: int = 3) -> Context:
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(4, 2, 6, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator))
        for _ in range(batches)
    ]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, shuffle=True
    )  # draws from torch's own random state
    return Context(data=loader, loss=F.cross_entropy, example=data[0][0])


@pytest.mark.parametrize("mode", ["as_found", "train", "eval"])
@pytest.mark.parametrize("name", criteria.registry.names())
def test_every_criterion_leaves_no_trace(name, mode):
    try:
        criterion = criteria.registry.make(name, mode=mode)
    except TypeError:
        criterion = criteria.registry.make(name)
    model, given = noisy(), context()
    before, state = everything(model), random_state()
    criterion.scores(model, select(model), given)
    assert_as_found(model, before)
    assert random_state() == state


@pytest.mark.parametrize("fails_at", [1, 2, 4])
@pytest.mark.parametrize("name", ["taylor", "snip", "grasp", "synflow"])
def test_failing_midway_leaves_no_trace(name, fails_at):
    model, given = noisy(), context()
    if name == "synflow":
        fails_at = 1
    if name in ("taylor", "snip"):
        fails_at = min(fails_at, 3)
    model.fails_at = fails_at
    before, state = everything(model), random_state()
    with pytest.raises(RuntimeError, match="failed midway"):
        criteria.registry.make(name).scores(model, select(model), given)
    assert_as_found(model, before)
    assert random_state() == state


def test_a_loss_that_fails_leaves_no_trace():
    model = noisy()
    before, state = everything(model), random_state()

    def loss(outputs, targets):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        criteria.registry.make("snip").scores(model, select(model), Context(data=context().data, loss=loss))
    with pytest.raises(SecateurError):
        criteria.registry.make("snip").scores(model, select(model), Context(data=[], loss=loss))
    assert_as_found(model, before)
    assert random_state() == state


@pytest.mark.parametrize("raises", [False, True])
def test_the_helper_puts_back_what_a_careless_block_did(raises):
    model = noisy()
    before, state = everything(model), random_state()
    try:
        with torch.no_grad(), undisturbed(model, mode="eval", weights=True) as same:
            assert same is model
            assert torch.is_grad_enabled()
            assert not model.training
            assert all(parameter.grad is None for parameter in model.parameters())
            model.head.bias.requires_grad_(True)
            model(torch.randn(2, 2, 6, 6)).sum().backward()
            model.conv.weight.data.zero_()
            model.head.weight = nn.Parameter(torch.zeros(3, 4))
            model.norm.running_var.fill_(9.0)
            model.register_buffer("extra", torch.ones(1))
            np.random.seed(1)
            if raises:
                raise KeyError("midway")
    except KeyError:
        assert raises
    assert_as_found(model, before)
    assert random_state() == state
    assert torch.is_grad_enabled()


def test_the_mode_is_checked():
    with (
        pytest.raises(OptionError, match="mode: expected one of 'as_found', 'train', 'eval', got 'off'"),
        undisturbed(nn.Linear(1, 1), mode="off"),
    ):
        pass


def test_random_state_alone():
    state = random_state()
    with kept_random_state():
        torch.rand(1), np.random.rand(), random.random()
    assert random_state() == state


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_and_random_state_on_cuda():
    torch.rand(1, device="cuda")
    given = context()
    for name in criteria.registry.names():
        model = noisy()
        model.drop.p = 0.0
        here = criteria.registry.make(name).scores(model, select(model), given)
        model.cuda()
        state = torch.cuda.get_rng_state()
        there = criteria.registry.make(name).scores(model, select(model), given)
        assert torch.equal(torch.cuda.get_rng_state(), state)
        for key in here:
            assert there[key].is_cuda
            scale = float(here[key].abs().max())
            assert float((here[key] - there[key].cpu()).abs().max()) <= 1e-3 * scale, name
        units = there["head.weight"]
        worth = criteria.registry.make(name).reduce(units).cpu()
        assert torch.allclose(worth, criteria.registry.make(name).reduce(units.cpu()), rtol=1e-4)


class Keeping(nn.Module):
    """Keeps a grid for its last input, and a list of the shapes it has seen."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        self.shape, self.seen, self.table = None, [], {"first": 1}

    def forward(self, x):
        self.shape, self.grid = x.shape, torch.ones_like(x)
        self.seen.append(x.shape)
        self.table["last"] = x.shape
        return self.fc(x)


def test_what_a_forward_keeps_is_forgotten():
    model = Keeping()
    with undisturbed(model):
        model(torch.ones(3, 2))
        assert model.grid.shape == (3, 2)
    assert (model.shape, model.seen, model.table, hasattr(model, "grid")) == (None, [], {"first": 1}, False)
    x = torch.ones(1, 2)
    prune(model, "l2", "channel", Macs(keep=0.6), example=x)
    measure(model, x, what=["macs"])
    assert (model.shape, model.seen, model.table, hasattr(model, "grid")) == (None, [], {"first": 1}, False)


class Collecting(nn.Module):
    """Writes into every collection of Python's that it keeps."""

    def __init__(self):
        super().__init__()
        self.last, self.known, self.counts = deque([1, 2], maxlen=2), {1}, Counter(first=1)
        self.lists, self.order = defaultdict(list, first=[]), OrderedDict(first=1, second=2)

    def forward(self, x):
        self.last.append(3)
        self.known.add(len(x))
        self.counts["last"] += 1
        self.lists["last"].append(1)
        self.order.move_to_end("first")
        return x


@pytest.mark.parametrize("name", ["last", "known", "counts", "lists", "order"])
def test_collections_get_their_items_back(name):
    model, fresh = Collecting(), Collecting()
    held = getattr(model, name)
    with undisturbed(model):
        model(torch.ones(3))
        assert held != getattr(fresh, name)
    assert getattr(model, name) is held
    assert held == getattr(fresh, name)
