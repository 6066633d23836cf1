"""One meaning of an example everywhere, and the first of the data is taken without using anything up."""

from __future__ import annotations

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.errors import DataError, OptionError
from secateur.execution.calling import call
from secateur.execution.devices import chosen_device, device_of, device_word
from secateur.execution.example import call_arguments, first_example, read_batch

Point = namedtuple("Point", ["x", "y"])
X, Y = torch.arange(6.0).reshape(3, 2), torch.zeros(3)


def test_a_tuple_is_arguments_a_mapping_keywords_and_all_else_one_argument() -> None:
    assert call_arguments((1, 2)) == ((1, 2), {})
    assert call_arguments(UserDict(a=1)) == ((), {"a": 1})
    assert call_arguments([1, 2]) == (([1, 2],), {})
    assert call_arguments(Point(1, 2)) == ((Point(1, 2),), {})
    assert call_arguments({0: 1}) == (({0: 1},), {})


def test_the_first_example_is_that_of_the_first_batch() -> None:
    assert torch.equal(first_example([(X, Y)]), X)
    assert torch.equal(first_example([X]), X)
    one, two = first_example([(X, X + 1, Y)])
    assert torch.equal(two, one + 1)
    one, two = first_example([([X, X + 1], Y)])
    assert torch.equal(two, one + 1)
    assert list(first_example([{"input": X, "labels": Y}])) == ["input"]
    assert list(first_example([{"input": X, "labels": Y}], labels_apart=False)) == ["input", "labels"]
    assert first_example([(X, Y)], single=True).shape == (1, 2)
    assert first_example([(torch.zeros(3, 2), torch.zeros(5, 2), Y)], single=True)[1].shape == (5, 2)


def test_an_example_runs_as_the_batch_it_came_from_does() -> None:
    model = nn.Bilinear(2, 2, 1)
    batch = read_batch((X, X + 1, Y), 0, labels_apart=True)
    assert torch.equal(call(model, batch.example), model(*batch.args))
    tupled = read_batch((((X, X),), Y), 0, labels_apart=True)
    assert call_arguments(tupled.example) == (tupled.args, {})


def test_looking_at_the_data_uses_nothing_up() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    assert first_example(loader).shape == (2, 2)
    assert torch.equal(torch.get_rng_state(), before)
    stream = iter([(X, Y)])
    assert first_example(stream) is None
    assert next(stream)[0] is X
    assert first_example(None) is None
    assert first_example([]) is None


def test_a_batch_without_a_tensor_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"batch 0 of the data: expected .* with a tensor among them, got str"
    ):
        first_example(["words"])


def test_a_device_is_named_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert (device_word("auto"), str(chosen_device("auto"))) == ("cpu", "cpu")
    with pytest.raises(OptionError, match="device 'cuda:1': this machine, or this torch, has no CUDA"):
        device_word("cuda:1")
    with pytest.raises(OptionError, match="has no Apple MPS"):
        chosen_device("mps")
    with pytest.raises(OptionError, match="expected auto, cpu, cuda, cuda:1 or mps, got 'gpu'"):
        chosen_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert (device_word("auto"), str(chosen_device("auto"))) == ("cuda", "cuda:3")
    assert (device_word("cuda"), str(chosen_device("cuda:1"))) == ("cuda", "cuda:1")


def test_an_argument_that_the_model_needs_is_no_label() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, labels: object = None) -> torch.Tensor:
            return x + y

    batch = {"x": torch.ones(2, 3), "y": torch.zeros(2, 3), "labels": torch.ones(2)}
    read = read_batch(dict(batch), 0, labels_apart=True, model=Pair())
    assert sorted(read.kwargs) == ["x", "y"]
    assert read.targets is batch["labels"]
    assert sorted(read_batch(dict(batch), 0, labels_apart=True).kwargs) == ["x", "y"]  # `labels` comes first
    alone = {"x": torch.ones(2, 3), "y": torch.zeros(2, 3)}
    assert sorted(read_batch(dict(alone), 0, labels_apart=True, model=Pair()).kwargs) == ["x", "y"]
    assert sorted(read_batch(dict(alone), 0, labels_apart=True).kwargs) == ["x"]
    assert sorted(first_example([alone], model=Pair())) == ["x", "y"]

    class Named(nn.Module):
        def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
            return x + y

    assert sorted(read_batch(dict(alone), 0, labels_apart=True, model=Named()).kwargs) == ["x", "y"]


class Towers(nn.Module):
    """Takes all of its inputs as one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(3, 8), nn.Linear(3, 8)

    def forward(self, batch: dict[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
        return (self.user(batch["user"]) * self.item(batch["item"])).sum(1) * scale


def test_a_dict_is_the_argument_of_a_model_that_has_none_of_its_keys() -> None:
    model, batch = Towers(), {"user": torch.ones(2, 3), "item": torch.ones(2, 3), "label": torch.ones(2)}
    for data in (batch, (batch, batch["label"]), (batch, None), [batch], ((batch,), None)):
        read = read_batch(data, 0, labels_apart=True, model=model)
        assert len(read.args) == 1
        assert read.args[0] is batch or dict(read.args[0]) == batch
        assert read.kwargs == {}
        assert torch.equal(call(model, read.example), model(batch))
    assert read_batch(batch, 0, labels_apart=True, model=model).targets is batch["label"]
    named = read_batch({"batch": batch}, 0, labels_apart=True, model=model)
    assert (named.args, list(named.kwargs)) == ((), ["batch"])


def test_a_dict_as_the_argument_is_data_of_every_verb() -> None:
    torch.manual_seed(0)
    model = Towers().eval()
    data = [{"user": torch.randn(16, 3), "item": torch.randn(16, 3)} for _ in range(2)]
    masks = sc.prune(model, "wanda", budget=0.5, data=data)
    plain = sc.prune(model, "wanda", budget=0.5, data=[{"batch": batch} for batch in data])
    assert all(torch.equal(masks[name], plain[name]) for name in plain)
    assert sc.compensate(model, masks, data).model(data[0]).shape == (16,)
    assert len(sc.share(model, 2, data=data).codebooks) == 2
