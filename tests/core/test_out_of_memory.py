"""Want of memory is told from other errors, and no function takes it for "this cannot be done"."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.out_of_memory import is_out_of_memory, raise_if_out_of_memory
from secateur.pruning.connectivity import check_connected
from secateur.sensitivity import folded_forward


def test_what_torch_really_raises_is_known():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(ValueError("not enough memory"))
    with pytest.raises(MemoryError):
        raise_if_out_of_memory(MemoryError())
    raise_if_out_of_memory(KeyError("a"))


class Fails(nn.Module):
    """A model whose forward pass finds no memory, or fails otherwise."""

    def __init__(self, error: Exception):
        super().__init__()
        self.fc, self.error = nn.Linear(2, 2), error

    def forward(self, x):
        raise self.error


def test_a_model_without_memory_is_not_taken_for_one_that_cannot_be_followed():
    assert "cannot be recorded" in folded_forward.record(
        Fails(ValueError("a")).eval(), [torch.zeros(1, 2)], 1 << 20
    )
    with pytest.raises(MemoryError):
        folded_forward.record(Fails(MemoryError()).eval(), [torch.zeros(1, 2)], 1 << 20)
    model = Fails(MemoryError())
    masks = Masks({"fc.weight": torch.tensor([[True, False], [True, True]])})
    with pytest.raises(MemoryError):
        check_connected(model, masks, torch.zeros(1, 2))
    with pytest.warns(UserWarning, match="could not be followed"):
        check_connected(Fails(ValueError("a")), masks, torch.zeros(1, 2))
