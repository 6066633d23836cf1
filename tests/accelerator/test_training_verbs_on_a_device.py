"""Sparse training, tuning, sharing on data, allocation and INT8 on the simulated accelerator: no transfer more for more
steps or batches, and the results of the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.accelerator import simulated
from tests.accelerator.small_network import needs_python_back_ends, network
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.sensitivity import distributed
from secateur.sensitivity.evaluation import Evaluation

pytestmark = needs_python_back_ends

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Work = Callable[[nn.Module, torch.Tensor, Batches], object]
METHODS = {
    "bn_l1": {}, "group_lasso": {}, "group_sparse": {}, "growing": {},
    "straight_through": {"every": 10},
    "movement_scores": {"sparsity": 0.5}, "set": {"sparsity": 0.5}, "rigl": {"sparsity": 0.5}, "admm": {},
}  # fmt: skip


def given(count: int) -> tuple[nn.Module, torch.Tensor, Batches]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return network(), x, [(x + index, torch.tensor([index % 4, 1])) for index in range(count)]


def on_the_device(work: Work, count: int) -> tuple[object, int]:
    """What the work gives on the device, and how many transfers it hides."""
    simulated.register()
    model, x, data = given(count)
    simulated.TRANSFERS.reset()
    found = work(model.to("sim"), x.to("sim"), simulated.on_device(data))
    return found, int(simulated.TRANSFERS.hidden)


def numbers(model: nn.Module) -> list[torch.Tensor]:
    return [each.detach().cpu().double() for each in model.state_dict().values()]


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in zip(one, other)
    )


def test_every_method_of_sparse_training_is_here() -> None:
    assert set(METHODS) == set(sc.sparsify.registry.names())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_of_sparse_training_hides_no_transfer(name: str) -> None:
    """Masks change at every so many steps; what that takes is counted once, what every step takes not at all."""

    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        method = sc.sparsify.registry.make(name, **METHODS[name])
        model.train()
        with method.start(model, example=x, steps=1000) as active:
            for index, (inputs, labels) in enumerate(data):
                if index == 1:  # at step 0 masks are made
                    simulated.TRANSFERS.reset()
                optimizer.zero_grad()
                active.before_forward()
                (F.cross_entropy(model(inputs), labels) + active.penalty()).backward()
                active.before_step()
                optimizer.step()
                active.after_step()
        return numbers(model)

    expected = work(*given(4))
    found, few = on_the_device(work, 4)
    assert close(found, expected)  # type: ignore[arg-type]
    assert few == 0, simulated.TRANSFERS.places


@pytest.mark.parametrize("tune", [2, sc.Tuning(passes=2)])
def test_tuning_fetches_no_more_for_more_batches(tune: object) -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        masks = sc.prune(copy.deepcopy(model), "l1", "channel", 0.5, example=x)
        return numbers(sc.compensate(model, masks, [i for i, _ in data], tune=tune).model)

    expected = work(*given(2))
    found, few = on_the_device(work, 2)
    assert close(found, expected)  # type: ignore[arg-type]
    assert on_the_device(work, 5)[1] == few, simulated.TRANSFERS.places


def test_sharing_on_data_fetches_no_more_for_more_batches() -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        shared = sc.share(model, bits=2, start="linear", data=[i for i, _ in data])
        return [book.values.cpu().double() for book in shared.codebooks.values()]

    expected = work(*given(2))
    found, few = on_the_device(work, 2)
    assert close(found, expected)  # type: ignore[arg-type]
    assert on_the_device(work, 5)[1] == few, simulated.TRANSFERS.places


def test_int8_fetches_no_more_that_is_hidden_for_more_batches(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        written = sc.export(model, tmp_path / f"{len(data)}.onnx", x, int8=data)
        assert written.path.stat().st_size > 0
        return written.format

    found, few = on_the_device(work, 2)
    assert found == "onnx int8"
    assert on_the_device(work, 5)[1] == few, simulated.TRANSFERS.places


def test_a_scan_of_batches_fetches_no_more_for_more_batches() -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        return [cell.value for cell in sc.scan(model, data, "filter", [0.25, 0.5]).cells]

    expected = work(*given(2))
    found, few = on_the_device(work, 2)
    assert found == expected
    assert on_the_device(work, 5)[1] == few, simulated.TRANSFERS.places


def test_a_scan_uses_no_threads_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads would wait for one device; on the CPU the same scan would use them."""
    simulated.register()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    model, _, data = given(2)
    threads = [
        distributed.worth_threads(each, Evaluation.of(batches), 100, 1e6, 0)
        for each, batches in ((model, data), (copy.deepcopy(model).to("sim"), simulated.on_device(data)))
    ]
    assert threads[0] > 1
    assert threads[1] == 1


@pytest.mark.parametrize("method", sorted(sc.allocation.registry.names()))
def test_an_allocation_fetches_no_more_for_more_batches(method: str) -> None:
    """The same batch again and again: every accuracy, and so every step of the search, is the same."""

    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        repeated = [data[0]] * len(data)

        def correct(candidate: nn.Module) -> float:
            found = [(candidate(inputs).argmax(1) == labels).sum() for inputs, labels in repeated]
            return float(torch.stack(found).sum()) / (2 * len(found))

        gradients = sc.AllocateOptions(data=repeated, loss=F.cross_entropy) if method == "grad_nas" else None
        return sc.allocate(model, correct, method, keep=0.5, example=x, options=gradients).shares

    expected = work(*given(2))
    found, few = on_the_device(work, 2)
    assert found == expected
    assert on_the_device(work, 5)[1] == few, simulated.TRANSFERS.places
