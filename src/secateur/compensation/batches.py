"""Calibration data: read once and kept, read again for further passes, and which of its tokens are padding.

>>> batch = Batch((), {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}, None, 1)
>>> leading_mask(batch, torch.Size([1, 3, 8]))
tensor([ True,  True, False])
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from secateur.compensation.recombined import RecombinedTokens
from secateur.compensation.waiting import WaitingTensors
from secateur.core.context import Context
from secateur.core.nested import tensors_in
from secateur.errors import DataError, NonFiniteError
from secateur.execution.example import Batch, read_batch
from secateur.execution.gradients import batches, move

__all__ = ["leading_mask", "read_all", "reread", "without_padding"]


def read_all(who: str, data: Iterable[Any], model: nn.Module) -> list[Batch]:
    """Every batch, on the model's device and in its floating-point type, without targets; checked for NaN.

    Args:
        who: the verb, for messages.
        data: batches of inputs, of (inputs, targets), or dicts of keywords; targets are ignored. A `Batch` is used as
            it is. `RecombinedTokens` begin with their first pass. Batches that are made as they are read, and that
            nobody else keeps, are kept in temporary files beyond an eighth of a gibibyte.
        model: the model they are for.

    Raises:
        DataError: where there is no batch.
        NonFiniteError: where an input holds NaN or infinity.
    """
    if isinstance(data, RecombinedTokens):
        data.begin()
    read = (_for(model, raw, index) for index, raw in enumerate(batches(who, Context(data=data))))
    with WaitingTensors() as waiting:
        found = list(read) if isinstance(data, (list, tuple)) else [waiting.kept(batch) for batch in read]
    checked = [
        (index, torch.isfinite(tensor).all())
        for index, batch in enumerate(found)
        for tensor in tensors_in([*batch.args, batch.kwargs])
        if tensor.is_floating_point()
    ]
    finite = torch.stack([one for _, one in checked]).tolist() if checked else []  # fetched at once
    for (index, _), good in zip(checked, finite, strict=True):
        if not good:
            raise NonFiniteError(
                f"{who}: batch {index} of the data holds NaN or infinity; leave that input out, or correct it"
            )
    return found


def reread(data: Iterable[Any], first: Sequence[Batch], model: nn.Module) -> Iterator[Batch]:
    """The data again; the batches already read, if it is an exhausted iterator."""
    if isinstance(data, Iterator):
        yield from first
        return
    for index, raw in enumerate(data):
        yield _for(model, raw, index)


def _for(model: nn.Module, raw: Any, index: int) -> Batch:
    """One batch as the model takes it."""
    if isinstance(raw, Batch):
        return raw
    place = next(iter(model.parameters()), None)
    if place is None:
        raise DataError(f"{type(model).__name__} has no parameter; pass a model with weights")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    batch = read_batch(raw, index, labels_apart=True, model=model)
    if index == 0 and isinstance(raw, (list, tuple)):
        _check_arguments(model, batch)
    return Batch(
        move(batch.args, place.device, dtype), move(batch.kwargs, place.device, dtype), None, batch.size
    )


def _check_arguments(model: nn.Module, batch: Batch) -> None:
    """Raise where the last of a batch's parts was read as its targets, and the model needs it as an argument."""
    try:
        needed = inspect.signature(model.forward)
    except (TypeError, ValueError):  # some callables have no signature; the call itself will tell
        return
    given = len(batch.args)
    try:
        needed.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        try:
            needed.bind(*batch.args, None, **batch.kwargs)
        except TypeError:
            return
        raise DataError(
            f"batch 0 of the data: a tuple or list is read as (inputs, targets), so that {type(model).__name__} would "
            f"be called with {given} argument{'s' if given > 1 else ''} ({error}); for a model of several inputs give "
            "((a, b), None), or a dict of its keywords"
        ) from error


def leading_mask(batch: Batch, shape: torch.Size) -> torch.Tensor | None:
    """For every row of a tensor of this shape, flattened, whether it is a token and not padding.

    None where the batch brings no attention mask of [examples, tokens] that fits the tensor's leading axes.
    """
    masks = [value for name, value in batch.kwargs.items() if name.endswith("attention_mask")]
    for value in masks if batch.valid is None else [batch.valid]:
        if not torch.is_tensor(value) or value.dim() != 2:
            continue
        if (len(shape) == 2 and shape[0] == value.numel()) or (len(shape) == 3 and shape[:2] == value.shape):
            return value.reshape(-1) != 0
    return None


def without_padding(tensor: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The rows of a tensor that stand for tokens, flattened; the tensor itself where the batch tells of no padding."""
    valid = leading_mask(batch, tensor.shape)
    return tensor if valid is None else tensor.reshape(-1, tensor.shape[-1])[valid]
