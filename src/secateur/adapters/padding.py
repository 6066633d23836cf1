"""Padding: the positions of an example that hold no token, as a mask of its says, and on which no token depends.

Softmax over no key at all is undefined: PyTorch gives zeros there and other runtimes a mean of the values. In a decoder
whose rows are padded on the left, that is the case at the padding, whose outputs nobody reads.

>>> class Sums(nn.Module):
...     def forward(self, x, mask):
...         return (x * mask[..., None]).cumsum(1)
>>> example = torch.ones(1, 3, 2), torch.tensor([[0, 1, 1]])
>>> padding_mask(Sums(), example)
1
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.calling import call
from secateur.execution.example import Example

__all__ = ["at_tokens", "padding_mask", "with_tokens"]

_SAME = 1e-5  # of the largest output


def padding_mask(model: nn.Module, example: Example) -> int | None:
    """Which input says where rows hold a token, one of zeros and ones; None where none does, or all are tokens.

    It is found by trial: with other contents at the positions of the zeros, every output at those of the ones stays.

    Args:
        model: The model, in evaluation mode.
        example: What it is called with.

    Returns:
        Its position among the tensors of the example.
    """
    expected = None
    for place, tensor in enumerate(tensors_in(example)):
        if not _is_mask(tensor):
            continue
        tokens = tensor.bool()
        expected = tensors_in(call(model, example)) if expected is None else expected
        found = tensors_in(call(model, _filled(example, tokens, place)))
        pairs = [(a, b) for a, b in zip(expected, found) if _by_position(a, tokens)]
        if pairs and all(_alike(at_tokens(a, tokens), at_tokens(b, tokens)) for a, b in pairs):
            return place
    return None


def at_tokens(output: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An output where tokens are; one that has no such positions as it is.

    Args:
        output: The output.
        tokens: True at tokens.
    """
    return output[tokens] if _by_position(output, tokens) else output


def with_tokens(example: Example, mask: int) -> Example:
    """The example with tokens alone in rows that hold none, as those that were cut to a shorter length may.

    Args:
        example: The example.
        mask: The position of the mask among its tensors.
    """
    count = iter(range(len(tensors_in(example))))

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if next(count) != mask:
            return tensor
        return torch.where((tensor != 0).any(1, keepdim=True), tensor, torch.ones_like(tensor))

    return map_tensors(one, example)


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor has two axes, and holds both zeros and ones and nothing else, with a one in each row."""
    if tensor.dim() != 2 or tensor.is_floating_point() or tensor.is_complex():
        return False
    ones = tensor == 1
    return bool((ones | (tensor == 0)).all()) and bool(ones.any(1).all()) and not bool(ones.all())


def _by_position(output: torch.Tensor, tokens: torch.Tensor) -> bool:
    return output.shape[:2] == tokens.shape


def _filled(example: Example, tokens: torch.Tensor, mask: int) -> Example:
    """The example with a token of the same row in place of every padding, in all inputs but the mask."""
    first = tokens.int().argmax(1)
    rows = torch.arange(len(tokens))
    count = iter(range(len(tensors_in(example))))

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if next(count) == mask or not _by_position(tensor, tokens):
            return tensor
        taken = tensor[rows, first].unsqueeze(1).expand_as(tensor)
        return torch.where(tokens.reshape(*tokens.shape, *(1,) * (tensor.dim() - 2)), tensor, taken)

    return map_tensors(one, example)


def _alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    if not expected.is_floating_point():
        return bool(torch.equal(expected, found))
    largest = float(expected.abs().nan_to_num(0.0, 0.0).max()) if expected.numel() else 0.0
    return bool(torch.allclose(expected, found, rtol=0.0, atol=_SAME * largest, equal_nan=True))
