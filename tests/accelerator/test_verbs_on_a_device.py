"""The verbs on a simulated accelerator: the same results as on the CPU, and nothing fetched inside loops.

What this cannot show: kernels of a real device, their numbers, their speed. It shows that no verb mixes devices, and
counts where one waits for the device.
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

pytestmark = needs_python_back_ends


@pytest.fixture
def here() -> nn.Module:
    return network()


@pytest.fixture
def there(here: nn.Module) -> nn.Module:
    simulated.register()
    return copy.deepcopy(here).to("sim")


@pytest.fixture
def example() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batches(example: torch.Tensor, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(example + index, torch.tensor([index % 4, 1])) for index in range(count)]


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k].cpu(), theirs[k].cpu()) for k in mine)


def hidden(work: Callable[[], object]) -> int:
    simulated.TRANSFERS.reset()
    work()
    return int(simulated.TRANSFERS.hidden)


def test_the_device_refuses_to_mix_and_counts_what_is_fetched(there: nn.Module) -> None:
    x = torch.ones(3).to("sim")
    assert str(x.device) == "sim:0"
    assert str((x * 2.0 + torch.tensor(1.0)).device) == "sim:0"  # a number may come from the CPU
    with pytest.raises(RuntimeError, match="same device, but found sim:0 and cpu"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="can't convert"):
        x.numpy()
    assert hidden(lambda: float(x.sum())) == 1
    assert hidden(lambda: x[x > 0]) >= 1
    assert hidden(lambda: torch.equal(x, x)) == 1
    assert hidden(lambda: (x + x).relu_()) == 0
    simulated.TRANSFERS.reset()
    x.cpu()
    torch.ones(2).to("sim")
    assert (simulated.TRANSFERS.fetched, simulated.TRANSFERS.sent, simulated.TRANSFERS.hidden) == (1, 1, 0)


@pytest.mark.parametrize(
    ("criterion", "granularity"),
    [
        ("l1", "channel"), ("l2", "channel"), ("fpgm", "channel"), ("magnitude", "element"), ("random", "element"),
        ("taylor", "element"), ("snip", "element"), ("grasp", "element"), ("synflow", "element"),
        ("wanda", "element"), ("l2", "kernel"),
    ],
)  # fmt: skip
def test_prune(
    here: nn.Module, there: nn.Module, example: torch.Tensor, criterion: str, granularity: str
) -> None:
    data = batches(example)
    kwargs = {"loss": F.cross_entropy} if criterion in ("taylor", "snip", "grasp") else {}
    found = [
        sc.prune(model, criterion, granularity, 0.5, example=x, data=given, **kwargs)
        for model, x, given in (
            (here, example, data), (there, example.to("sim"), simulated.on_device(data)), (there, example, data),
        )
    ]  # fmt: skip
    for masks in found[1:]:  # data on the device, and data on the CPU for a model there
        assert all(torch.equal(found[0][name].cpu(), masks[name].cpu()) for name in found[0])
    found[1].apply_(there)
    assert {p.device.type for p in there.parameters()} == {"sim"}


def test_hold_fetches_nothing_while_it_trains(there: nn.Module, example: torch.Tensor) -> None:
    masks = sc.prune(there, "l1", "channel", 0.5, example=example)
    for optimizer in (
        torch.optim.SGD(there.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(there.parameters(), foreach=False),
    ):  # fmt: skip
        x, y = simulated.on_device(batches(example)[0])
        with sc.hold(there, masks, optimizer):

            def step() -> None:
                optimizer.zero_grad()  # noqa: B023
                F.cross_entropy(there(x), y).backward()  # noqa: B023
                optimizer.step()  # noqa: B023

            step()
            assert hidden(lambda: [step() for _ in range(3)]) == 0
        weight = there[0].weight.detach().cpu()
        assert bool((weight[~masks["0.weight"].cpu()] == 0).all())


def test_shrink_share_compensate(here: nn.Module, there: nn.Module, example: torch.Tensor) -> None:
    results = []
    for model, x in ((here, example), (there, example.to("sim"))):
        masks = sc.prune(model, "l1", "channel", 0.5, example=x)
        sc.compensate(model, masks, [x])
        small = sc.shrink(model, masks, x)
        assert small.proof.holds
        results.append((small.model, sc.share(small.model, bits=3, start="linear")))
    (one, shared), (other, shared_there) = results
    assert next(other.parameters()).device.type == "sim"
    assert next(shared_there.model.parameters()).device.type == "sim"
    assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]
    for mine, theirs in zip(one.parameters(), other.parameters()):
        assert torch.allclose(mine, theirs.cpu(), atol=1e-5)
    assert {len(book.values) for book in shared_there.codebooks.values()} == {
        len(book.values) for book in shared.codebooks.values()
    }


def test_save_and_load_give_the_same_bytes(
    here: nn.Module, there: nn.Module, example: torch.Tensor, tmp_path: Path
) -> None:
    sc.save(here, tmp_path / "here.sct")
    sc.save(there, tmp_path / "there.sct")
    assert (tmp_path / "here.sct").read_bytes() == (tmp_path / "there.sct").read_bytes()
    empty = copy.deepcopy(there)
    with torch.no_grad():
        empty[0].weight.zero_()
    again = sc.load(tmp_path / "there.sct", into=empty)
    assert same(again, here)
    assert next(again.parameters()).device.type == "sim"


def test_scan_and_measure(here: nn.Module, there: nn.Module, example: torch.Tensor) -> None:
    data = batches(example)
    cells = [
        sc.scan(model, given, "filter", [0.25, 0.5]).cells
        for model, given in ((here, data), (there, simulated.on_device(data)))
    ]
    assert [cell.value for cell in cells[0]] == [cell.value for cell in cells[1]]
    what = ["params", "macs", "sparsity", "accuracy"]  # a file as torch writes it names the device
    measured = [
        sc.measure(model, x, given, what=what)
        for model, x, given in ((here, example, data), (there, example.to("sim"), simulated.on_device(data)))
    ]
    assert [(row.name, row.value) for row in measured[0]] == [(row.name, row.value) for row in measured[1]]


@pytest.mark.parametrize("verb", ["accuracy", "compensate", "latency"])
def test_what_is_fetched_does_not_grow_with_the_batches(
    there: nn.Module, example: torch.Tensor, verb: str
) -> None:
    """Three times the batches, or readings, and not one hidden transfer more."""
    x = example.to("sim")
    masks = sc.prune(there, "l1", "channel", 0.5, example=x)

    def work(count: int) -> object:
        data = simulated.on_device(batches(example, count))
        if verb == "accuracy":
            return sc.measure(there, evaluate=data, what="accuracy")
        if verb == "latency":
            return sc.measure(there, x, what="latency", repetitions=count)
        return sc.compensate(copy.deepcopy(there), masks, [x for x, _ in data])

    assert hidden(lambda: work(9)) == hidden(lambda: work(3))
