"""Codebook: values, indices, and what they must be."""

from __future__ import annotations

import pytest
import torch

from secateur.core.codebook import Codebook
from secateur.errors import NonFiniteError, OptionError


def test_the_tensor_is_values_at_indices():
    values = torch.tensor([0.0, 0.5, -1.5])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        book = Codebook("w", values, torch.tensor([[2, 0, 1], [1, 1, 0]], dtype=dtype))
        assert torch.equal(book.tensor(), torch.tensor([[-1.5, 0.0, 0.5], [0.5, 0.5, 0.0]]))
        assert book.tensor().dtype == values.dtype


def test_empty_tensor_and_single_value():
    assert Codebook("w", torch.tensor([0.0]), torch.zeros(0, 3, dtype=torch.long)).tensor().shape == (0, 3)
    assert Codebook("w", torch.tensor([2.0]), torch.tensor(0)).tensor().item() == 2.0


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        (
            torch.zeros(2, 2),
            torch.tensor([0]),
            "codebook of 'w': expected a one-dimensional, non-empty tensor of values, got shape (2, 2)",
        ),
        (
            torch.zeros(0),
            torch.tensor([0]),
            "codebook of 'w': expected a one-dimensional, non-empty tensor of values, got shape (0,)",
        ),
        (torch.zeros(2), torch.tensor([0.0]), "codebook of 'w': expected integer indices, got torch.float32"),
        (torch.zeros(2), torch.tensor([True]), "codebook of 'w': expected integer indices, got torch.bool"),
        (torch.zeros(2), torch.tensor([0, 2]), "codebook of 'w': expected indices in 0..1, got 0..2"),
        (torch.zeros(2), torch.tensor([-1, 1]), "codebook of 'w': expected indices in 0..1, got -1..1"),
    ],
)
def test_what_is_refused(values, indices, message):
    with pytest.raises(OptionError) as error:
        Codebook("w", values, indices)
    assert str(error.value) == message


def test_values_that_are_not_finite():
    with pytest.raises(NonFiniteError) as error:
        Codebook("w", torch.tensor([0.0, float("nan")]), torch.tensor([0]))
    assert str(error.value) == "codebook of 'w': 1 of 2 are NaN or infinite; share finite weights only"
