"""A twin is what copy.deepcopy gives, whatever a module keeps and however it asks to be copied."""

from __future__ import annotations

import copy
import gc
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from secateur.execution.fast_copy import collector_paused, copy_module, modules_of, tensors_of


class Keeper(nn.Module):
    """Keeps all sorts of things."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.again = self.part
        self.loose = torch.arange(3.0)
        self.views = [self.loose, self.loose]
        self.table = {"a": {"b": [1, 2]}, (1, 2): "pair"}
        self.shared = self.table["a"]
        self.empty: dict[str, int] = {}
        self.same_empty = self.empty
        self.order = OrderedDict(x=1)
        self.kinds = {1, 2}
        self.bound = self.forward
        self.register_buffer("counts", torch.zeros(2))
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.register_parameter("none", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.part(x)) + self.counts


class OwnWay(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnWay:
        made = OwnWay(self.in_features, self.out_features)
        made.own = True  # type: ignore[assignment]
        memo[id(self)] = made
        return made


class OwnState(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.unpacked = True  # type: ignore[assignment]


class Slotted(nn.Linear):
    __slots__ = ("extra",)


def alike(a: Any, b: Any, seen: set[int] | None = None) -> bool:
    """Equal by value all the way down."""
    seen = set() if seen is None else seen
    if id(a) in seen:
        return True
    seen.add(id(a))
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and torch.equal(a, b) and a.requires_grad == b.requires_grad
    if isinstance(a, nn.Module):
        return type(a) is type(b) and alike(vars(a), vars(b), seen)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(alike(a[key], b[key], seen) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(lambda x, y: alike(x, y, seen), a, b))
    return callable(a) or bool(a == b)


@pytest.mark.parametrize(
    "build", [Keeper, lambda: nn.Sequential(OwnState(2, 2), nn.ReLU()), lambda: Slotted(2, 2)]
)
def test_a_twin_is_a_deep_copy(build: Any) -> None:
    model = build()
    twin, copied = copy_module(model, {}), copy.deepcopy(model)
    assert alike(twin, copied)
    assert list(twin.state_dict()) == list(copied.state_dict())
    shared = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert all(tensor.data_ptr() not in shared for tensor in twin.state_dict().values())


def test_what_was_one_object_stays_one() -> None:
    model = Keeper()
    twin: Any = copy_module(model, {})
    assert twin.part is twin.again
    assert twin.views[0] is twin.views[1] is twin.loose
    assert twin.loose is not model.loose
    assert twin.shared is twin.table["a"]
    assert twin.shared is not model.shared
    assert twin.empty is twin.same_empty
    assert twin.empty is not model.empty
    assert twin.bound.__self__ is twin
    assert twin._non_persistent_buffers_set == {"fleeting"}


def test_a_class_that_copies_itself_is_asked() -> None:
    twin = copy_module(nn.Sequential(OwnWay(2, 3)), {})
    assert twin[0].own


def test_what_the_memo_holds_is_put_in() -> None:
    model = Keeper()
    other = nn.Parameter(torch.zeros(1, 2))
    twin: Any = copy_module(model, {id(model.part.weight): other})
    assert twin.part.weight is other
    assert twin.again.weight is other
    assert model.part.weight is not other


def test_hooks_and_parametrizations_go_along() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(model[1])
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    twin = copy_module(model, {})
    x = torch.randn(3, 2)
    assert torch.equal(twin(x), model(x))
    assert len(calls) == 2
    assert nn.utils.parametrize.is_parametrized(twin[1])


def test_names_are_those_of_torch() -> None:
    model = Keeper()
    assert list(modules_of(model)) == [name for name, _ in model.named_modules(remove_duplicate=False)]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    buffers = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    assert list(tensors_of(model)) == [*parameters, *buffers]


def test_the_collector_runs_again_whatever_happens() -> None:
    assert gc.isenabled()
    running = []
    with pytest.raises(ZeroDivisionError), collector_paused():
        running.append(gc.isenabled() / 0)
    with collector_paused():
        running.append(gc.isenabled())
    assert running == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()  # who had it off finds it off
    finally:
        gc.enable()
