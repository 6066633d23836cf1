"""Weights of no layer, as those of an LSTM, are named where they take no part, with the option that takes them in."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import secateur as sc


class Recurrent(nn.Module):
    """Nearly all weights are those of a recurrent layer and of a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.cell, self.last = nn.GRUCell(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.cell(self.layer(x)[0][:, -1]))


def named(text: str) -> list[str]:
    """The patterns that a message says to give as `parameters`."""
    return re.findall(r'"([^"]+)"', text[text.index("parameters=[") :])


@pytest.mark.parametrize("verb", ["share", "prune", "wanda"])
def test_weights_of_recurrent_layers_are_named_and_taken_in_as_said(verb: str) -> None:
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(6, 5, 8)
    verbs = {
        "share": lambda: sc.share(model, 3),
        "prune": lambda: sc.prune(model, budget=0.5),
        "wanda": lambda: sc.prune(model, "wanda", budget=0.5, data=[x]),
    }
    with pytest.warns(UserWarning, match=r"\d+% of the weights .*'layer\.weight_ih_l0'") as caught:
        verbs[verb]()
    (text,) = [str(each.message) for each in caught if "take no part" in str(each.message)]
    assert "*weight_[ih]h*" in named(text)
    every = {name for name, value in model.named_parameters() if value.dim() > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if verb == "share":
            assert set(sc.share(model, 3, options=sc.ShareOptions(parameters=named(text))).codebooks) == every
        else:
            options = sc.PruneOptions(parameters=named(text))
            assert set(sc.prune(model, budget=0.5, options=options)) == every


def test_projections_of_attention_are_named() -> None:
    with pytest.warns(UserWarning, match=r'36% of the weights.*parameters=\["\*\.in_proj_weight"\]'):
        sc.share(nn.TransformerEncoderLayer(32, 4, 64), 3)


def test_nothing_is_said_where_it_was_chosen_or_is_little() -> None:
    model, x = Recurrent().eval(), torch.randn(2, 5, 8)
    little = nn.Sequential(nn.Linear(64, 64), nn.Module())
    little[1].table = nn.Parameter(torch.zeros(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.share(model, 3, options=sc.ShareOptions(only="last"))
        sc.prune(model, budget=0.5, options=sc.PruneOptions(only="last"))
        sc.prune(model, "l2", "channel", 0.5, example=x)
        sc.share(little, 3)


def test_a_part_that_is_skipped_is_not_counted() -> None:
    inner = Recurrent()
    model = nn.ModuleDict({"inner": inner, "last": nn.Linear(8, 8)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.share(model, 3, options=sc.ShareOptions(skip="inner"))
