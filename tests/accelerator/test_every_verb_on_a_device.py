"""Every public verb on the simulated accelerator: what it returns as on the CPU, and no transfer more for more batches.

`ON_DEVICE` runs a verb on a model, an example and batches; `ELSEWHERE` says of the other names why none is run here. A
new public name has to be in one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.accelerator import simulated
from tests.accelerator.small_network import needs_python_back_ends, network
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.quantize.latent_training import LatentOptions, LatentTraining
from secateur.sensitivity.prefix_cache import PrefixCache

pytestmark = needs_python_back_ends

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Residual(nn.Module):
    """x + fc2(relu(fc1(x))): a layer that may leave whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.fc1(x).relu())


def given(count: int) -> tuple[nn.Module, torch.Tensor, Batches]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return network(), x, [(x + index, torch.tensor([index % 4, 1])) for index in range(count)]


def channels(model: nn.Module, x: torch.Tensor) -> sc.Masks:
    return sc.prune(copy.deepcopy(model), "l1", "channel", 0.5, example=x)


def correct(data: Batches) -> Callable[[nn.Module], float]:
    """A function that fetches one number for all batches."""

    def share(model: nn.Module) -> float:
        return float(torch.stack([(model(x).argmax(1) == y).sum() for x, y in data]).sum()) / (2 * len(data))

    return share


def numbers(model: nn.Module) -> list[torch.Tensor]:
    return [each.detach().cpu() for each in model.state_dict().values()]


def bypassed(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
    stack = nn.Sequential(Residual(), Residual(), nn.Linear(4, 2)).to(x.device)
    rows = x[:, 0, 0, :4].contiguous()
    for index, parameter in enumerate(stack.parameters()):
        parameter.data.fill_(0.1 + 0.01 * index)
    masks = sc.prune(stack, "l2", "layer", sc.budget.Overall(0.4), example=rows)
    return numbers(sc.bypassed(stack, masks, rows))


def hold(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
    masks = channels(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sc.hold(model, masks, optimizer):
        for inputs, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return numbers(model)


def share(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
    shared = sc.share(model, bits=2, start="linear")
    return [book.values.cpu() for book in shared.codebooks.values()]


def saved(model: nn.Module, x: torch.Tensor, folder: Path) -> object:
    sc.save(model, folder / "m.sct")
    empty = copy.deepcopy(model)
    for parameter in empty.parameters():
        parameter.data.zero_()
    return numbers(sc.load(folder / "m.sct", into=empty))


def int8_saved(model: nn.Module, x: torch.Tensor, folder: Path) -> object:
    sc.save(model, folder / "i.sct", options=sc.SaveOptions(int8=True))
    return sc.load_int8(folder / "i.sct", into=copy.deepcopy(model))(x.cpu())


def shrunk(model: nn.Module, x: torch.Tensor, folder: Path) -> object:
    small = sc.shrink(model, channels(model, x), x)
    small.save(folder / "small.safetensors")
    return numbers(sc.load_shrunk(folder / "small.safetensors", into=copy.deepcopy(model)))


ON_DEVICE: dict[str, Callable[[nn.Module, torch.Tensor, Batches], object]] = {
    "allocate": lambda m, x, d: sc.allocate(m, correct(d), "net_adapt", keep=0.5, example=x).shares,
    "bypassed": bypassed,
    "check_connected": lambda m, x, d: sc.check_connected(m, channels(m, x), x),
    "compare": lambda m, x, d: len(sc.compare(m, copy.deepcopy(m), x, repetitions=len(d))),
    "compensate": lambda m, x, d: numbers(sc.compensate(m, channels(m, x), [i for i, _ in d]).model),
    "error_bits": lambda m, x, d: sc.error_bits(
        m, sc.share(m, bits=3, data=[i for i, _ in d]), [i for i, _ in d], 3
    ),
    "error_shares": lambda m, x, d: sc.error_shares(
        m, sc.compensate(m, channels(m, x), [i for i, _ in d]), [i for i, _ in d], 0.4
    ),
    "compress": lambda m, x, d: numbers(
        sc.compress(m, x, correct(d), lost=1e9, options=sc.CompressOptions(attempts=1)).model
    ),
    "explain": lambda m, x, d: str(sc.explain(m, x)),
    "factorise": lambda m, x, d: [
        p.shape for p in sc.factorise(m, 0.5, x, data=[i for i, _ in d]).model.parameters()
    ],
    "hold": hold,
    "measure": lambda m, x, d: [
        (row.name, row.value)
        for row in sc.measure(m, x, d, what=["params", "macs", "sparsity", "accuracy"])
    ],
    "prune": lambda m, x, d: dict(sc.prune(m, "wanda", "element", 0.5, data=d)),
    "reestimate_batch_norm": lambda m, x, d: numbers(sc.reestimate_batch_norm(m, [i for i, _ in d])),
    "scan": lambda m, x, d: [cell.value for cell in sc.scan(m, correct(d), "filter", [0.25, 0.5]).cells],
    "select": lambda m, x, d: [target.name for target in sc.select(m)],
    "share": share,
    "shrink": lambda m, x, d: numbers(sc.shrink(m, channels(m, x), x).model),
    "two_of_four": lambda m, x, d: type(sc.two_of_four(m, x, repetitions=len(d))),
    "why": lambda m, x, d: type(sc.why(m, copy.deepcopy(m), x, repetitions=len(d))),
    "zero_dead_neurons": lambda m, x, d: dict(sc.zero_dead_neurons(m, [i for i, _ in d])),
}  # fmt: skip
FILES: dict[str, Callable[[nn.Module, torch.Tensor, Path], object]] = {
    "save": saved,
    "load": saved,
    "load_int8": int8_saved,
    "load_shrunk": shrunk,
    "export": lambda m, x, folder: sc.export(m, folder / "m.onnx", x).path.stat().st_size,
}
ELSEWHERE = {
    "auto": "runs recipes: their trainings are placed by accelerate, which knows real devices only",
    "smallest": "runs recipes, as auto",
    "inspect": "reads a file", "pack": "reads and writes files", "unpack": "reads and writes files",
    "inspect_checkpoint": "reads a file", "prune_checkpoint": "reads and writes files",
    "share_checkpoint": "reads and writes files", "shrink_checkpoint": "reads and writes files",
    "compensate_checkpoint": "reads and writes files, and computes on the CPU",
    "serve_check": "reads a file", "push_to_hub": "sends a folder",
    "save_pretrained": "writes by `save`'s code, and needs transformers", "save_yolo": "needs ultralytics",
    "yolo_trainer": "needs ultralytics", "trainer_callback": "needs transformers; holds by `hold`",
    "lightning_callback": "needs lightning; holds by `hold`",
}  # fmt: skip


def alike(one: object, other: object) -> bool:
    """Whether results are the same; numbers that are computed, within rounding."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.allclose(
            one.cpu().double(), other.cpu().double(), atol=1e-5
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(alike(one[k], other[k]) for k in one)
        )
    if isinstance(one, (list, tuple)):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(alike, one, other))
    return one == other


def run_on_device(work: Callable[..., object], count: int, *others: Any) -> tuple[object, int]:
    """What a verb gives on the device, and how many transfers it hides."""
    simulated.register()
    model, x, data = given(count)
    arguments = others or (simulated.on_device(data),)
    model, x = model.to("sim"), x.to("sim")
    simulated.TRANSFERS.reset()
    found = work(model, x, *arguments)
    return found, int(simulated.TRANSFERS.hidden)


def test_every_public_verb_is_run_here_or_said_why_not() -> None:
    public = {name for name in sc.__all__ if name[0].islower() and callable(getattr(sc, name))}
    assert public == ON_DEVICE.keys() | FILES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("verb", sorted(ON_DEVICE))
def test_a_verb_gives_the_same_and_fetches_no_more_for_more_batches(verb: str) -> None:
    expected = ON_DEVICE[verb](*given(2))
    found, few = run_on_device(ON_DEVICE[verb], 2)
    assert alike(expected, found)
    _, many = run_on_device(ON_DEVICE[verb], 5)
    assert many == few, simulated.TRANSFERS.places


@pytest.mark.parametrize("verb", sorted(FILES))
def test_a_verb_that_writes_a_file(verb: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    model, x, _ = given(1)
    expected = FILES[verb](model, x, tmp_path / "here")
    found, _ = run_on_device(FILES[verb], 1, tmp_path / "there")
    assert alike(expected, found)


@pytest.mark.parametrize(
    "criterion", ["taylor", "snip", "grasp", "fisher", "hessian", "movement", "wanda", "activation"]
)
def test_a_criterion_fetches_no_more_for_more_batches(criterion: str) -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        loss = None if criterion in ("wanda", "activation") else F.cross_entropy
        return dict(sc.prune(model, criterion, "element", 0.5, data=data, loss=loss))

    expected = work(*given(2))
    found, few = run_on_device(work, 2)
    assert alike(expected, found)
    assert run_on_device(work, 6)[1] == few, simulated.TRANSFERS.places


def test_training_for_bytes_fetches_no_more_for_more_steps() -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with LatentTraining(model, LatentOptions(target=200, steps=100)):
            simulated.TRANSFERS.reset()
            for inputs, labels in data:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
            return None

    _, few = run_on_device(work, 2)
    _, many = run_on_device(work, 8)  # within one estimate of the bits, which is made every ten steps
    assert many == few, simulated.TRANSFERS.places


def test_a_loss_that_is_not_finite_is_found_after_the_pass_and_named_by_its_batch() -> None:
    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        data[1][0].fill_(float("nan"))
        return sc.prune(model, "snip", "element", 0.5, data=data, loss=F.cross_entropy)

    with pytest.raises(sc.errors.NonFiniteError, match=r"^snip: the loss of batch 1 is nan"):
        run_on_device(work, 4)


def test_a_scan_whose_inputs_change_gives_up_what_it_kept() -> None:
    """After the second evaluation the inputs are others: as on the CPU, every value is that of the new ones."""

    def work(model: nn.Module, x: torch.Tensor, data: Batches) -> object:
        with PrefixCache(model) as cache, torch.no_grad():
            inputs = [x]
            first = cache.first(lambda: float(model(inputs[0]).sum()))
            with cache.before(["6.weight"]):
                same = [cache.run(lambda: float(model(inputs[0]).sum())) for _ in range(2)]
                skipped = cache.skipped
                inputs[0] = x + 1
                other = [cache.run(lambda: float(model(inputs[0]).sum())) for _ in range(2)]
        assert same == [first, first]
        assert skipped > 0
        assert other == [float(model(x + 1).detach().sum())] * 2
        assert other[0] != first
        return other

    assert alike(work(*given(1)), run_on_device(work, 1)[0])
