"""The fast walk gives what torch's own gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateur.core.parameters import parameters_of


def test_names_and_order_are_torchs() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.BatchNorm1d(2), shared)})
    model.register_parameter("own", nn.Parameter(torch.ones(1)))
    model.register_parameter("none", None)
    model["b"].weight = shared.weight
    found = parameters_of(model)
    wanted = dict(model.named_parameters(remove_duplicate=False))
    assert list(found) == list(wanted)
    assert all(found[name] is each for name, each in wanted.items())


def test_a_class_with_names_of_its_own_is_asked() -> None:
    class Wrapper(nn.Linear):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
            yield "renamed", self.weight

    assert list(parameters_of(Wrapper(1, 1))) == ["renamed"]
