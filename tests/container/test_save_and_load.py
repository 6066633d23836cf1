"""save and load: bit for bit, by name or by model, folded, shrunk, and never half-written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.container.archive import SavedFile, save
from secateur.container.arrays import TORCH_DTYPES
from secateur.container.codebooks import codebook, gaps_filled
from secateur.container.format import Entry
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.save_options import SaveOptions
from secateur.container.writer import Writer
from secateur.core.codebook import Codebook
from secateur.core.masks import Masks
from secateur.errors import (
    DataError,
    FormatError,
    MaskMismatchError,
    NothingToDoError,
    OptionError,
    UnknownNameError,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def small(model: nn.Sequential) -> nn.Sequential:
    """Pruned and with few distinct values."""
    for layer in (model[0], model[3], model[8]):
        layer.weight.copy_(torch.round(layer.weight * 40) / 40)
        layer.weight[layer.weight.abs() < 0.05] = 0
    return model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape
        and torch.equal(a[n].reshape(-1).view(torch.uint8), b[n].reshape(-1).view(torch.uint8))
        for n in a
    )  # fmt: skip


@pytest.mark.parametrize("make", [network, lambda: small(network())])
@pytest.mark.parametrize("coder", ["fast", "mixed", "strong"])
@pytest.mark.parametrize("names", ["file", "model"])
def test_outputs_are_the_same_to_the_last_bit(make, coder: str, names: str, tmp_path: Path) -> None:
    model = make()
    saved = save(model, tmp_path / "m.sct", names=names, options=SaveOptions(coder=coder))
    assert saved.size == (tmp_path / "m.sct").stat().st_size
    loaded = load(tmp_path / "m.sct", into=network(seed=1))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_few_values_make_a_small_file(tmp_path: Path) -> None:
    dense = save(network(), tmp_path / "dense.sct")
    shared = save(small(network()), tmp_path / "small.sct")
    assert shared.size < 0.35 * dense.size


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    raw = torch.randint(0, 256, (6, 40, 8), dtype=torch.uint8)
    values = (raw % 2 == 0) if dtype == torch.bool else raw.view(dtype)
    state = {
        "many": values.contiguous(),
        "scalar": values.reshape(-1)[0].clone(),
        "empty": values[:0].contiguous(),
        "few": values.reshape(-1)[torch.arange(600) % 3].reshape(20, 30).contiguous(),
        "turned": values.transpose(0, 1),
    }
    save(state, tmp_path / "m.sct")
    assert same(load(tmp_path / "m.sct"), {k: v.contiguous() for k, v in state.items()})


def test_odd_floats_come_back(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38])
    state = {"few": odd.repeat(40).reshape(20, 16), "sparse": torch.zeros(50, 50), "all": odd}
    state["sparse"][3, :8] = odd
    state["sparse"][7] = torch.randn(50)
    save(state, tmp_path / "m.sct")
    assert same(load(tmp_path / "m.sct"), state)


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(200, 100)
    state = {"a": weight, "b": weight, "c": weight.clone()}
    saved = save({"a": weight}, tmp_path / "one.sct")
    assert save({"a": weight, "b": weight}, tmp_path / "two.sct").size < saved.size + 20
    save(state, tmp_path / "m.sct")
    assert same(load(tmp_path / "m.sct"), state)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 2e-2), ("bf16", 2e-1), (8, 2e-1)])
def test_batch_norm_is_folded(precision: object, most: float, tmp_path: Path) -> None:
    model = small(network())
    plain = save(model, tmp_path / "plain.sct")
    folded = save(model, tmp_path / "folded.sct", options=SaveOptions(batch_norm=precision))
    assert folded.size < plain.size
    loaded = load(tmp_path / "folded.sct", into=network(1))
    x = torch.randn(16, 3, 8, 8)
    assert (loaded(x) - model(x)).abs().max() < most
    state = load(tmp_path / "folded.sct")
    assert torch.equal(state["3.weight"], model.state_dict()["3.weight"])  # nothing else is touched
    assert float(state["1.running_var"][0] + model[1].eps) == pytest.approx(1.0, abs=1e-7)


def test_precision_narrows_only_what_is_not_shared(tmp_path: Path) -> None:
    model = small(network())
    save(model, tmp_path / "m.sct", options=SaveOptions(precision="fp16"))
    state = load(tmp_path / "m.sct")
    assert torch.equal(state["3.weight"], model[3].weight)
    assert torch.equal(state["1.weight"], model[1].weight.half().float())
    assert state["1.weight"].dtype == torch.float32
    save(model, tmp_path / "m.sct", options=SaveOptions(precision="bf16"))
    assert torch.equal(load(tmp_path / "m.sct")["1.weight"], model[1].weight.bfloat16().float())


def test_codebooks_are_checked(tmp_path: Path) -> None:
    values, indices = torch.tensor([0.0, 1.0]), torch.randint(0, 2, (8, 8))
    book = Codebook("w", values, indices)
    save({"w": book.tensor()}, tmp_path / "m.sct", {"w": book})
    assert torch.equal(load(tmp_path / "m.sct")["w"], book.tensor())
    with pytest.raises(OptionError, match="codebook of 'w': the model's tensor is not made of"):
        save({"w": book.tensor() + 1}, tmp_path / "n.sct", {"w": book})
    with pytest.raises(OptionError, match="codebook of 'w': the model has no such tensor"):
        save({"v": book.tensor()}, tmp_path / "n.sct", {"w": book})
    assert not (tmp_path / "n.sct").exists()


def test_masks_are_checked(tmp_path: Path) -> None:
    model = small(network())
    masks = Masks({"3.weight": model[3].weight != 0})
    save(model, tmp_path / "m.sct", masks=masks)
    with pytest.raises(MaskMismatchError, match=r"mask of '3.weight': \d+ weights it removes are not zero"):
        save(network(), tmp_path / "n.sct", masks=masks)
    with pytest.raises(MaskMismatchError, match="no such tensor"):
        save({"w": torch.ones(3)}, tmp_path / "n.sct", masks=masks)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_norm": "fp8"}, OptionError, "batch_norm: expected None"),
        ({"precision": "int4"}, OptionError, "precision: expected None"),
        ({"names": "none"}, OptionError, "names: expected"),
        ({"coder": "strng"}, UnknownNameError, "did you mean 'strong'"),
        ({"plan": 3}, OptionError, "plan: expected JSON text"),
    ],
)
def test_wrong_options(options: dict, error: type, message: str, tmp_path: Path) -> None:
    given = {name: value for name, value in options.items() if name in ("plan", "names")}
    with pytest.raises(error, match=message):
        save(
            network(),
            tmp_path / "m.sct",
            **given,
            options=SaveOptions(**{k: v for k, v in options.items() if k not in given}),
        )
    assert os.listdir(tmp_path) == []


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="no tensor to save"):
        save({}, tmp_path / "m.sct")
    with pytest.raises(NothingToDoError, match="there is none"):
        save({"w": torch.ones(3)}, tmp_path / "m.sct", options=SaveOptions(batch_norm="fp16"))


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"w": torch.ones(3)}, tmp_path / "m.sct")
    before = (tmp_path / "m.sct").read_bytes()
    monkeypatch.setattr(Writer, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save({"w": torch.zeros(3)}, tmp_path / "m.sct")
    assert (tmp_path / "m.sct").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.sct"]


def test_files_without_names_need_their_model(tmp_path: Path) -> None:
    with_names = save(network(), tmp_path / "with.sct").size
    without = save(network(), tmp_path / "m.sct", names="model").size
    assert without < with_names - 100
    with pytest.raises(FormatError, match="load it with into="):
        load(tmp_path / "m.sct")
    with pytest.raises(FormatError, match="another model"):
        load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(3, 3)))


def test_the_wrong_model_is_named(tmp_path: Path) -> None:
    save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "m.sct")
    with pytest.raises(DataError, match=r"tensor '0.weight' has shape \[3, 4\] in the file and \[3, 5\]"):
        load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(5, 3)))
    with pytest.raises(DataError, match=r"'0.bias' is not in the model"):
        load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(4, 3, bias=False)))
    with pytest.raises(DataError, match=r"'1.weight' is not in the file"):
        load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)))


def test_another_dtype_is_named(tmp_path: Path) -> None:
    save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "m.sct")
    with pytest.raises(DataError, match=r"'0.weight' is torch.float32 in the file and torch.float16"):
        load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(4, 3)).half())


def test_a_damaged_file_leaves_the_model_alone(tmp_path: Path) -> None:
    save(network(), tmp_path / "m.sct")
    data = bytearray((tmp_path / "m.sct").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "m.sct").write_bytes(data)
    model = network(3)
    with pytest.raises(FormatError, match="checksum"):
        load(tmp_path / "m.sct", into=model)
    assert same(dict(model.state_dict()), dict(network(3).state_dict()))


def test_a_shrink_plan_is_applied_to_a_fresh_model(tmp_path: Path) -> None:
    from secateur.structure.cut.plan import ShrinkPlan

    plan = ShrinkPlan(
        keep={"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)}}, attributes={"0": {"out_features": 2}}
    )
    shrunk = plan.apply_(nn.Sequential(nn.Linear(4, 3)))
    for names in ("file", "model"):
        save(shrunk, tmp_path / "m.sct", plan=plan, names=names)
        fresh = load(tmp_path / "m.sct", into=nn.Sequential(nn.Linear(4, 3)))
        assert fresh[0].out_features == 2
        assert torch.equal(fresh[0].weight, shrunk[0].weight)
        wrong = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        with pytest.raises((DataError, FormatError)):
            load(tmp_path / "m.sct", into=wrong)
        assert wrong[0].out_features == 3  # a refusal leaves the model as it was


def test_a_file_with_more_zeros_than_bytes_is_padded(tmp_path: Path) -> None:
    state = {"zeros": torch.zeros(12_000_000), "w": torch.ones(3)}
    saved = save(state, tmp_path / "m.sct")
    assert inspect(tmp_path / "m.sct").parts["padding"] > 0
    assert saved.size < 5000
    assert same(load(tmp_path / "m.sct"), state)


@pytest.mark.parametrize("coder", ["mixed", "strong", "fast"])
def test_multiples_of_one_step_with_gaps_take_a_step_and_a_start(tmp_path: Path, coder: str) -> None:
    random = torch.Generator().manual_seed(0)
    whole = (torch.randn(64, 64, generator=random) ** 3 * 2).round()
    step = torch.tensor(0.011718750596046448)  # no multiple of a power of two
    state = {"w": whole * step + 0.0}
    values = len(whole.unique())
    assert values < whole.max() - whole.min() + 1, "the case has no gaps"

    size = save(state, tmp_path / "even.sct", options=SaveOptions(coder=coder)).size
    assert torch.equal(load(tmp_path / "even.sct")["w"], state["w"])
    report = inspect(tmp_path / "even.sct")
    assert report.rows[0].distinct == values
    assert report.parts["codebooks"] <= 12

    # One value off the grid by its last bit, and every value is written as itself.
    odd = state["w"].clone()
    odd.view(-1)[int(odd.argmax())] = torch.nextafter(odd.max(), torch.tensor(9e9))
    longer = save({"w": odd}, tmp_path / "odd.sct", options=SaveOptions(coder=coder)).size
    assert torch.equal(load(tmp_path / "odd.sct")["w"], odd)
    assert inspect(tmp_path / "odd.sct").parts["codebooks"] > 2 * values
    assert longer > size + values


@pytest.mark.parametrize("start", [-40, 2, 300])
def test_gaps_are_filled_wherever_the_steps_start(start: int) -> None:
    """Twenty multiples of a step with four gaps, 2, 3, 2 and 2 wide; the steps need not lie around zero."""
    entry = Entry("w", "F32", (20,))
    whole = start + np.array([i for i in range(25) if i not in (3, 7, 8, 14, 20)])
    values = (np.float32(0.3) * whole.astype(np.float32)).view(np.uint32)
    filled, levels = gaps_filled(values, np.arange(20, dtype=np.uint8), entry)
    assert len(filled) == 25
    assert codebook(filled, entry)[0] == 1
    assert (filled[levels] == values).all()


def test_gaps_wider_than_what_they_save_stay() -> None:
    """Two values and their zero, thousands of steps apart: three keys are shorter than all that lies between."""
    entry = Entry("w", "F32", (3,))
    values = (np.float32(0.3) * np.array([-500, 0, 400, 401], dtype=np.float32)).view(np.uint32)
    filled, levels = gaps_filled(values, np.array([0, 1, 3], dtype=np.uint8), entry)
    assert filled is values
    assert levels.tolist() == [0, 1, 3]
    alone = values[:1]
    assert gaps_filled(alone, levels[:1], entry)[0] is alone


def test_a_file_larger_than_its_tensors_is_not_called_smaller():
    assert (
        str(SavedFile(Path("a.sct"), 50, 100))
        == "a.sct: 50 bytes, 2.00 times fewer than the 100 of its tensors"
    )
    assert str(SavedFile(Path("a.sct"), 100, 96)) == "a.sct: 100 bytes, not fewer than the 96 of its tensors"


def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path) -> None:
    good = save(network(), tmp_path / "good.sct").path.read_bytes()
    broken = {
        "empty": b"",
        "short": good[: len(good) // 2],
        "flipped": bytes([*good[:-9], good[-9] ^ 1, *good[-8:]]),
    }
    said = {"empty": "not a .sct file: it is empty", "short": "", "flipped": ""}
    for name, data in broken.items():
        path = tmp_path / f"{name}.sct"
        path.write_bytes(data)
        for read in (lambda path: load(path, into=network()), load, inspect):
            with pytest.raises(FormatError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: {said[name]}")
            assert str(caught.value).count(str(path)) == 1
