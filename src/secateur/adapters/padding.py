"""Padding before the tokens of a row: positions where attention sees nothing, and on which no token depends.

Softmax over no key at all is undefined: PyTorch gives zeros there and other runtimes a mean of the values. In a decoder
whose rows are padded on the left, that is the case before the first token, where nobody reads outputs.

>>> class Sums(nn.Module):
...     def forward(self, x, mask):
...         return x + (x * mask).cumsum(1)
>>> example = torch.tensor([[7, 1, 2]]), torch.tensor([[0, 1, 1]])
>>> padding_mask(Sums(), example)
1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.calling import call
from secateur.execution.example import Example

__all__ = ["at_tokens", "padding_mask", "said_tokens", "tokens_of", "with_tokens"]

_SAME = 1e-5  # of the largest output


def padding_mask(model: nn.Module, example: Example) -> int | None:
    """Which input says where rows begin, one of zeros and ones with zeros before them; None where none does.

    It is found by trial, of the outputs before the rows' first ones and of those from there on. Other contents before
    change the outputs there and no others; other contents from there on change no output before. With ones in place of
    the zeros, the others change as well: it is the mask that keeps them apart.

    Args:
        model: The model, in evaluation mode.
        example: What it is called with.

    Returns:
        Its position among the tensors of the example.
    """
    tensors = tensors_in(example)
    masks = [place for place, tensor in enumerate(tensors) if len(tensors) > 1 and _is_mask(tensor)]
    return next((place for place in masks if _keeps_apart(model, example, place)), None)


def _keeps_apart(model: nn.Module, example: Example, mask: int) -> bool:
    """Whether the positions before the rows' first ones neither reach the others nor see them, because of the mask."""
    tokens = tokens_of(tensors_in(example)[mask])
    before, after, open_ = (
        _changed(example, change)
        for change in (
            lambda place, tensor: tensor if place == mask else _filled(tensor, tokens),
            lambda place, tensor: tensor if place == mask else _shifted(tensor, tokens),
            lambda place, tensor: (
                tensor.masked_fill(~tokens, 1) if place == mask else _filled(tensor, tokens)
            ),
        )
    )
    if not (_differ(example, before) and _differ(example, after)):
        return False
    expected = tensors_in(call(model, example))

    def changes(other: Example, where: torch.Tensor) -> bool:
        found = tensors_in(call(model, other))
        if [each.shape for each in found] != [each.shape for each in expected]:
            return True
        pairs = [(a, b) for a, b in zip(expected, found, strict=True) if _by_position(a, tokens)]
        return not all(_alike(a, a[where], b[where]) for a, b in pairs)

    return (
        changes(before, ~tokens)
        and not changes(before, tokens)
        and not changes(after, ~tokens)
        and changes(open_, tokens)
    )


def tokens_of(mask: torch.Tensor) -> torch.Tensor:
    """Where outputs count: from the first one of each row on. Zeros after it see the tokens before them.

    Args:
        mask: The mask.

    >>> tokens_of(torch.tensor([[0, 1, 0]])).tolist()
    [[False, True, True]]
    """
    return (mask != 0).cumsum(1) > 0


def at_tokens(output: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An output where tokens are; one that has no such positions as it is.

    Args:
        output: The output.
        tokens: True at tokens.
    """
    return output[tokens] if _by_position(output, tokens) else output


def said_tokens(example: Example) -> torch.Tensor | None:
    """Where the tokens of a dict of arguments are, by its `attention_mask` of [examples, tokens]; None without one.

    Args:
        example: What a model is called with.

    >>> said_tokens({"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}).tolist()
    [[True, True, False]]
    """
    masks = example.items() if isinstance(example, Mapping) else ()
    for name, mask in masks:
        if str(name).endswith("attention_mask") and isinstance(mask, torch.Tensor) and mask.dim() == 2:
            return mask != 0
    return None


def with_tokens(example: Example, mask: int) -> Example:
    """The example with tokens alone in rows that hold none, as those that were cut to a shorter length may.

    Args:
        example: The example.
        mask: The position of the mask among its tensors.
    """

    def filled(place: int, tensor: torch.Tensor) -> torch.Tensor:
        if place != mask:
            return tensor
        return torch.where((tensor != 0).any(1, keepdim=True), tensor, torch.ones_like(tensor))

    return _changed(example, filled)


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor has two axes, zeros and ones alone, a one in each row, and zeros before the first of some."""
    if tensor.dim() != 2 or tensor.is_floating_point() or tensor.is_complex():
        return False
    ones = tensor == 1
    return bool((ones | (tensor == 0)).all()) and bool(ones.any(1).all()) and not bool(ones[:, 0].all())


def _by_position(output: torch.Tensor, tokens: torch.Tensor) -> bool:
    return output.shape[:2] == tokens.shape


def _changed(example: Example, change: Callable[[int, torch.Tensor], torch.Tensor]) -> Example:
    """The example with other tensors, by their position among its tensors."""
    count = iter(range(len(tensors_in(example))))
    return map_tensors(lambda tensor: change(next(count), tensor), example)


def _differ(example: Example, other: Example) -> bool:
    """Whether any tensor of two examples differs."""
    return not all(torch.equal(a, b) for a, b in zip(tensors_in(example), tensors_in(other), strict=True))


def _filled(tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An input with a token of the same row before the first one: with one that differs from what is there."""
    if not _by_position(tensor, tokens):
        return tensor
    other = (tensor != tensor[:, :1]).flatten(2).any(2) if tensor.dim() > 2 else tensor != tensor[:, :1]
    first = (other & tokens).int().argmax(1)
    taken = tensor[torch.arange(len(tokens)), first].unsqueeze(1).expand_as(tensor)
    return torch.where(_over(tokens, tensor), tensor, taken)


def _shifted(tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An input whose tokens are each the one before it."""
    return (
        torch.where(_over(tokens, tensor), tensor.roll(1, 1), tensor)
        if _by_position(tensor, tokens)
        else tensor
    )


def _over(tokens: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The mask of tokens with as many axes as an input has."""
    return tokens.reshape(*tokens.shape, *(1,) * (tensor.dim() - 2))


def _alike(whole: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two parts of an output are the same, but for rounding at the size of the whole output."""
    if not expected.is_floating_point():
        return bool(torch.equal(expected, found))
    largest = float(whole.abs().nan_to_num(0.0, 0.0).max()) if whole.numel() else 0.0
    return bool(torch.allclose(expected, found, rtol=0.0, atol=_SAME * largest, equal_nan=True))
