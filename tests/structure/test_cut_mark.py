"""A model that was cut bears a mark, so that a file without its plan, or with the last of several, is warned about."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.cut_mark import shapes_before, warn_of_plan

EXAMPLE = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def cut(model: nn.Module) -> sc.Shrunk:
    return sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=EXAMPLE), EXAMPLE)


def test_a_cut_model_saved_without_its_plan_is_warned_about(tmp_path: Path) -> None:
    model = net()
    small = cut(model)
    assert shapes_before(model) is None
    shared = sc.share(small.model, bits=1).model
    for each in (small.model, copy.deepcopy(small.model), pickle.loads(pickle.dumps(small.model)), shared):
        with pytest.warns(
            UserWarning, match=r"x\.sct: Sequential was cut and no plan= was given.*plan=small\.plan"
        ):
            sc.save(each, tmp_path / "x.sct")
    sc.save(small, tmp_path / "y.sct")
    again = sc.load(tmp_path / "y.sct", into=net())
    with pytest.warns(UserWarning, match="no plan= was given"):
        sc.save(again, tmp_path / "x.sct")


def test_files_that_can_be_loaded_are_saved_in_silence(tmp_path: Path) -> None:
    model = net()
    small = cut(model)
    second = cut(small.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.save(model, tmp_path / "a.sct")
        sc.save(small.model, tmp_path / "a.sct", plan=small.plan)
        sc.save(small.model.state_dict(), tmp_path / "a.sct")
        sc.save(small.model, tmp_path / "a.sct", names="model")
        sc.save(second.model, tmp_path / "a.sct", plan=small.plan.then(second.plan))
        small.save(tmp_path / "a.safetensors")


def test_the_plan_of_the_last_cut_alone_is_warned_about(tmp_path: Path) -> None:
    second = cut(cut(net()).model)
    said = r"the plan cuts '0\.(bias|weight)' of shape .*before the first cut, .*first\.plan\.then"
    for save in (
        lambda: sc.save(second, tmp_path / "a.sct"),
        lambda: second.save(tmp_path / "a.safetensors"),
    ):
        with pytest.warns(UserWarning, match=said):
            save()


def test_factorised_models_bear_the_mark(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
    found = sc.factorise(model, {"0": 4}, torch.randn(3, 32))
    with pytest.warns(UserWarning, match="no plan= was given"):
        sc.save(found.model, tmp_path / "a.sct")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.save(found, tmp_path / "a.sct")


def test_endings_of_other_formats_are_refused(tmp_path: Path) -> None:
    model = net()
    masks = sc.prune(model, "l2", "channel", 0.5, example=EXAMPLE)
    small = sc.shrink(model, masks, EXAMPLE)
    for save, name, said in (
        (
            lambda path: sc.save(model, path),
            "x.pt",
            r"a \.sct file, and torch\.load reads no such .*'x\.sct'",
        ),
        (lambda path: sc.save(model, path), "x.safetensors", r"name it 'x\.sct'"),
        (
            small.save,
            "x.sct",
            r"a safetensors file, and sc\.load reads.*'x\.safetensors', or write a \.sct file",
        ),
        (masks.save, "m.pt", r"a safetensors file, and torch\.load reads.*'m\.safetensors'"),
    ):
        with pytest.raises(sc.errors.OptionError, match=said):
            save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_what_shrink_prints() -> None:
    small = cut(net())
    assert "Sequential: equal to the masked model: largest difference" in str(small)
    assert "3 tensors cut: 72 elements before, 36 after" in str(small)


def test_the_plan_of_a_last_cut_of_other_tensors_alone_is_told() -> None:
    """The first cut is of layers that the second leaves alone."""
    model = nn.Sequential(*(nn.Linear(8, 8) if at % 2 == 0 else nn.ReLU() for at in range(7))).eval()
    x = torch.randn(2, 8)
    one = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, skip=["2", "4", "6"], example=x), x)
    two = sc.shrink(one.model, sc.prune(one.model, "l2", "channel", 0.5, skip=["0", "2", "6"], example=x), x)
    with pytest.warns(
        UserWarning, match=r"before an earlier cut, .* sc.save\(model, path, plan=first.plan.then"
    ):
        warn_of_plan(two.model, two.plan.shapes, "x.sct")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_plan(two.model, one.plan.then(two.plan).shapes, "x.sct")


class Block(nn.Module):
    """A block that a model can do without: it adds to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(4)), nn.Linear(6, 2)).eval()


def fewer(model: nn.Module) -> sc.Shrunk:
    """The model without a quarter of its layers."""
    return sc.shrink(model, sc.prune(model, "l2", "layer", 0.3, example=EXAMPLE), EXAMPLE)


@pytest.mark.parametrize("turns", [(fewer, cut), (cut, fewer), (fewer, fewer)], ids=["first", "last", "both"])
def test_the_last_plan_alone_is_told_where_layers_left(turns, tmp_path: Path) -> None:
    one = turns[0](blocks())
    two = turns[1](one.model)
    assert any(len(each.plan.layers) for each in (one, two))
    for save in (
        lambda: sc.save(two, tmp_path / "a.sct"),
        lambda: two.save(tmp_path / "a.safetensors"),
    ):
        with pytest.warns(UserWarning, match=r"cannot be loaded into a freshly .*first\.plan\.then"):
            save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.save(one, tmp_path / "a.sct")
        sc.save(two.model, tmp_path / "a.sct", plan=one.plan.then(two.plan))
    again = sc.load(tmp_path / "a.sct", into=blocks())
    assert torch.equal(again(EXAMPLE), two.model(EXAMPLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.save(again, tmp_path / "b.sct", plan=one.plan.then(two.plan))
