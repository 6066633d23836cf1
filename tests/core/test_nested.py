"""Tensors are found and replaced in every kind of nested value, and the value keeps its type."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch

from secateur.core.nested import map_tensors, tensors_in

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Sample:
    image: torch.Tensor
    name: str


class Insisting(dict):
    """A mapping whose constructor takes no mapping."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self["a"] = torch.tensor(number)


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def test_every_kind_of_nest_keeps_its_type() -> None:
    one, two = torch.tensor(1), torch.tensor(2)
    value = {
        "pair": Pair(one, "x"),
        "sample": Sample(two, "y"),
        "ordered": OrderedDict(a=[one, (two, None)]),
        "size": torch.Size([3, 4]),
        "top": torch.max(torch.tensor([[1.0, 5.0]]), 1),
    }
    found = map_tensors(doubled, value)
    assert [int(t) for t in tensors_in(value)] == [1, 2, 1, 2, 5, 1]
    assert [int(t) for t in tensors_in(found)] == [2, 4, 2, 4, 10, 2]
    assert isinstance(found["pair"], Pair)
    assert isinstance(found["sample"], Sample)
    assert isinstance(found["ordered"], OrderedDict)
    assert isinstance(found["size"], torch.Size)
    assert int(found["top"].values) == 10
    assert int(value["sample"].image) == 2


def test_a_mapping_that_cannot_be_built_anew_becomes_a_dict() -> None:
    found = map_tensors(doubled, Insisting(3))
    assert type(found) is dict
    assert int(found["a"]) == 6
