"""Masks made of lines say what whole masks say, and are read as lines only as long as that is so."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.lines import Lines
from secateur.core.masks import Masks
from secateur.criteria._weights import line_norms, norms
from secateur.structure.cut import choose
from secateur.structure.groups.couplings import analyse


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def whole(masks: Masks) -> Masks:
    """The same masks without their lines."""
    return Masks({name: mask.clone(memory_format=torch.contiguous_format) for name, mask in masks.items()})


def test_lines_and_whole_masks_say_the_same() -> None:
    model = net()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    assert all(masks.lines(name) is not None for name in masks)
    plain = whole(masks)
    assert all(plain.lines(name) is None for name in plain)
    assert masks == plain
    assert masks.digest() == plain.digest()
    assert (masks.kept, masks.numel) == (plain.kept, plain.numel)
    found = analyse(model, X)
    told, read = choose.dropped_lines(found, masks), choose.dropped_lines(found, plain)
    assert told.keys() == read.keys()
    assert all(np.array_equal(told[key], read[key]) for key in read)
    one, two = sc.shrink(model, masks, X), sc.shrink(model, plain, X)
    assert one.plan == two.plan
    assert torch.equal(one.model(X), two.model(X))
    assert one.masks == two.masks


def test_a_line_that_drops_everything_drops_every_slice_of_the_other() -> None:
    model = net()
    none, some = torch.zeros(6, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    masks = Masks({"3.weight": Lines({0: none, 1: some}, (6, 8, 3, 3))})
    assert choose.dropped_lines(analyse(model, X), masks)["3.weight", 1].all()


def test_a_mask_written_into_is_read_again() -> None:
    masks = Masks({"w": Lines({0: torch.tensor([True, False]), 1: torch.ones(2, dtype=torch.bool)}, (2, 2))})
    assert masks["w"].tolist() == [[True, True], [False, False]]
    assert masks.lines("w") is not None
    masks["w"][0, 0] = False
    assert masks.lines("w") is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_masks_of_lines_copy_and_travel(copied) -> None:  # type: ignore[no-untyped-def]
    masks = sc.prune(net(), "l2", "channel", 0.5, example=X)
    assert copied(masks) == masks


def test_a_mask_of_the_wrong_shape_is_still_refused() -> None:
    from secateur.errors import MaskMismatchError

    masks = Masks({"0.weight": Lines({0: torch.ones(9, dtype=torch.bool)}, (9, 3, 3, 3))})
    with pytest.raises(MaskMismatchError, match=r"expected shape \(8, 3, 3, 3\).*got \(9, 3, 3, 3\)"):
        masks.check(net())


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_norms_of_slices(axis: int, dtype: torch.dtype, scale: float) -> None:
    weight = (torch.randn(70, 6, 3, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    want = norms(weight.double().movedim(axis, 0).reshape(weight.shape[axis], -1))
    got = line_norms(weight, axis).double()
    assert torch.allclose(got, want, rtol=1e-6 if dtype != torch.float64 else 1e-13, atol=0)


def test_equal_slices_are_worth_exactly_the_same() -> None:
    """So that ties are broken by position and not by rounding."""
    weight = torch.randn(70, 1, 3).expand(70, 37, 3).contiguous()
    assert line_norms(weight, 1).unique().numel() == 1
