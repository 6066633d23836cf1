"""Edited source: made once for equal edits, and bound anew for every model."""

from __future__ import annotations

import torch
from torch import nn

from secateur.structure.cut import call_sites
from secateur.structure.cut.call_sites import edited, site_of
from secateur.structure.cut.edited_calls import EditedCall
from secateur.structure.cut.rewrite_data import Rewrite
from secateur.structure.trace.trace import trace

WIDTH = 8


def folded(x: torch.Tensor) -> torch.Tensor:
    return torch.reshape(x, (-1, 8)) * WIDTH


class Folds(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return folded(x)


def edits_to(*sizes: object) -> list[tuple[call_sites.Site, EditedCall]]:
    """The edits that give the reshape these sizes."""
    call = trace(Folds(), torch.zeros(2, 8)).calls[0]
    site = site_of(Folds, call.chain)
    assert site is not None
    assert len(site) == 2
    return [(site, EditedCall(Rewrite("reshape", 0, tuple(enumerate(sizes)), site)))]


def test_equal_edits_are_compiled_once() -> None:
    call_sites._edited_code.cache_clear()
    first, second = edited(Folds, edits_to(-1, 4)), edited(Folds, edits_to(-1, 4))
    assert first is not None
    assert second is not None
    assert first["forward"].__code__ is second["forward"].__code__
    assert first["forward"] is not second["forward"]  # each class has functions of its own
    assert call_sites._edited_code.cache_info().misses == 2
    assert first["forward"](None, torch.ones(2, 8)).shape == (4, 4)


def test_numbers_that_are_equal_and_differ_in_kind_are_told_apart() -> None:
    assert edits_to(-1, 4)[0][1] != edits_to(-1, 4.0)[0][1]
    assert edited(Folds, edits_to(-1, 4.0)) is not None  # a plan may say so; torch refuses it when it runs
    made = edited(Folds, edits_to(-1, 4))
    assert made is not None
    assert made["forward"](None, torch.ones(1, 8)).shape == (2, 4)


def test_names_mean_what_they_mean_when_the_model_is_cut(monkeypatch: object) -> None:
    """The compiled code is shared; its globals are read anew."""
    x = torch.ones(1, 8)
    before = edited(Folds, edits_to(-1, 4))
    monkeypatch.setitem(globals(), "WIDTH", 2)  # type: ignore[attr-defined]
    after = edited(Folds, edits_to(-1, 4))
    assert before is not None
    assert after is not None
    assert (before["forward"](None, x)[0, 0], after["forward"](None, x)[0, 0]) == (8, 2)
