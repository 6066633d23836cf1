"""What verbs accept as a model and as masks, and what they say of all else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import OptionError
from secateur.execution.arguments import Arguments

EXAMPLE = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def given() -> tuple[Net, sc.Masks, sc.Shrunk]:
    torch.manual_seed(0)
    model = Net().eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=EXAMPLE)
    return model, masks, sc.shrink(model, masks, EXAMPLE)


def test_verbs_take_the_model_out_of_a_result() -> None:
    model, _, small = given()
    assert sc.measure(small, what=["params"])["params"].value == 4 * 6 + 4 + 2 * 4 + 2
    assert sc.compare(model, small, EXAMPLE, repetitions=3).names() == ["latency", "speedup"]
    assert [target.shape for target in sc.select(small)] == [(4, 6), (2, 4)]
    shared = sc.share(small, bits=1)
    assert sc.measure(shared, what="params")["params"].value == 38
    masks = sc.prune(small, budget=0.5)
    with sc.hold(small, masks):
        assert sc.compensate(small, masks, [EXAMPLE]).layers
    assert masks.check(small) is None


class Named(nn.Module):
    """A module whose only child is called `model`, as those of ultralytics and of language models are."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(6, 2)


def test_a_module_with_a_module_called_model_is_meant_itself() -> None:
    def written(model: nn.Module | sc.Shrunk) -> None: ...

    whole, (_, _, small) = Named(), given()
    arguments = Arguments(written)
    assert arguments.read((whole,), {})[0][0] is whole
    assert arguments.read((small,), {})[0][0] is small
    shared = sc.share(Net(), bits=3)
    assert arguments.read((shared,), {})[0][0] is shared.model  # not among what it takes: its model is


def test_save_takes_plan_and_codebooks_out_of_a_result(tmp_path: Path) -> None:
    _, _, small = given()
    sc.save(small, tmp_path / "small.sct")
    assert torch.equal(sc.load(tmp_path / "small.sct", into=Net())(EXAMPLE), small.model(EXAMPLE))
    shared = sc.share(small, bits=1)
    sc.save(shared, tmp_path / "shared.sct", plan=small.plan)
    again = sc.load(tmp_path / "shared.sct", into=Net())
    assert torch.equal(again(EXAMPLE), shared.model(EXAMPLE))
    with pytest.raises(OptionError, match="model: expected a model, a state dict, or the result of shrink"):
        sc.save(3, tmp_path / "x.sct")  # type: ignore[arg-type]


def test_a_class_in_place_of_a_model_is_refused_everywhere(tmp_path: Path) -> None:
    model, masks, _ = given()
    sc.save(model, tmp_path / "m.sct")
    calls = {
        "into": lambda: sc.load(tmp_path / "m.sct", into=Net),  # type: ignore[call-overload]
        "model": lambda: sc.save(Net, tmp_path / "n.sct"),  # type: ignore[arg-type]
        "b": lambda: sc.compare(model, Net, EXAMPLE),  # type: ignore[arg-type]
        "dense": lambda: sc.compensate(model, masks, [EXAMPLE], dense=Net),  # type: ignore[arg-type]
    }
    for name, call in calls.items():
        with pytest.raises(
            OptionError, match=rf"{name}: expected .*got the class Net; make one first: Net\(\.\.\.\)"
        ):
            call()


def test_what_is_no_mask_is_refused_with_the_order_of_the_arguments() -> None:
    model, masks, _ = given()
    with pytest.raises(OptionError, match=r"masks: expected the masks that sc\.prune returns, got NoneType"):
        sc.shrink(model, None, EXAMPLE)  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match=r"got Tensor; pass these\. The order of the arguments is model, masks, example"
    ):
        sc.shrink(model, EXAMPLE, masks)  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match=r"model: expected a torch\.nn\.Module, got Masks; .*model, masks, example"
    ):
        sc.shrink(masks, model, EXAMPLE)  # type: ignore[arg-type]
    for verb in (sc.check_connected, sc.hold):
        with pytest.raises(OptionError, match=r"masks: expected the masks that sc\.prune returns"):
            verb(model, None)  # type: ignore[operator]
    assert sc.shrink(model, dict(masks), EXAMPLE).proof.holds  # type: ignore[arg-type]
    assert sc.measure(model, masks=None, what="params")["params"].value == 74


def test_a_dict_is_the_one_argument_of_a_model_that_takes_it_whole():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, batch):
            return self.b(self.a(batch["x"]).relu())

    batch = {"x": torch.randn(2, 4)}
    model = Tower().eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=batch)
    small = sc.shrink(model, masks, batch)  # by position as well
    assert small.model.a.out_features == 8
    assert small.model(batch).shape == (2, 3)
    assert (
        sc.prune(Tower(), "l2", "channel", 0.5, example={"batch": batch}).sparsity == masks.sparsity
    )  # as keyword
