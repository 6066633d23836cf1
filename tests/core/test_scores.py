"""Scores are finite, always; the error says which tensor and how many."""

from __future__ import annotations

import pytest
import torch

from secateur.core.scores import Scores, check_finite
from secateur.errors import NonFiniteError


def test_a_read_only_mapping_without_gradients():
    weight = torch.ones(2, 3, requires_grad=True)
    scores = Scores({"a": weight * 2, "b": torch.zeros(4)})
    assert list(scores) == ["a", "b"]
    assert len(scores) == 2
    assert not scores["a"].requires_grad
    assert repr(scores) == "Scores(2 tensors, 10 scores)"
    with pytest.raises(TypeError):
        scores["a"] = weight


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(NonFiniteError) as error:
        Scores({"ok": torch.ones(2), "fc.weight": torch.tensor([1.0, bad, bad, 2.0])})
    assert str(error.value) == (
        "scores of 'fc.weight': 2 of 4 are NaN or infinite; check the loss and the data, or use a criterion "
        "without gradients"
    )


def test_infinities_that_cancel_are_found():
    with pytest.raises(NonFiniteError, match="2 of 2"):
        check_finite("w", torch.tensor([float("inf"), float("-inf")]), "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finite_numbers_whose_sum_overflows_are_fine(dtype):
    check_finite("w", torch.full((100,), torch.finfo(dtype).max, dtype=dtype), "x")


def test_integers_and_empty_tensors_are_finite():
    check_finite("w", torch.arange(3), "x")
    check_finite("w", torch.zeros(0), "x")
    check_finite("w", torch.tensor([True]), "x")
    with pytest.raises(NonFiniteError, match="1 of 1"):
        check_finite("w", torch.tensor([complex("nan")]), "x")
