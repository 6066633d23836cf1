"""From weights to codebooks: one for a group of tensors, one for each channel, or an assignment by rate.

>>> from torch import nn
>>> from secateur.core.targets import select
>>> from secateur.quantize.methods.kmeans import Kmeans
>>> model = nn.Linear(4, 1, bias=False)
>>> _ = model.weight.data.copy_(torch.tensor([[0.0, 0.0, 1.0, 3.0]]))
>>> books = codebook_of_group(Kmeans(1), "weight", select(model), dict(model.named_parameters()), {}, seed=0)
>>> books["weight"].values.tolist()
[0.3333333432674408, 3.0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from secateur.core.codebook import Codebook, index_dtype
from secateur.core.targets import Target
from secateur.errors import OptionError, near
from secateur.quantize import Palette, Quantizer
from secateur.quantize.rate_distortion import assign_by_rate

__all__ = ["codebook_of_group", "codebook_per_channel", "reassigned_by_rate"]


def codebook_of_group(
    method: Quantizer,
    label: str,
    members: Sequence[Target],
    named: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    seed: int,
) -> dict[str, Codebook]:
    """Make one codebook for all members of a group.

    Args:
        method: Finds the values.
        label: The group's label, for errors.
        members: The tensors of the group.
        named: The model's parameters by name.
        kept: True where a weight is not masked, for tensors with masked weights.
        seed: For methods that draw at random.

    Returns:
        The codebook of each member; all have the same values.
    """
    weights = {member.name: named[member.name].detach() for member in members}
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1:
        raise OptionError(
            f"group {label!r}: expected tensors of one dtype, got {', '.join(sorted(map(str, dtypes)))}; "
            f"share them separately"
        )
    parts = [weight[kept[name]] if name in kept else weight.reshape(-1) for name, weight in weights.items()]
    whole = torch.cat([part.cpu() for part in parts]) if len(parts) > 1 else parts[0]
    zeros = sum(weight.numel() for weight in weights.values()) - whole.numel()
    palette = method.palette(label, whole, zeros, seed) if whole.numel() else None
    group = label if len(members) > 1 else None
    return {
        name: _book(method, name, weight, kept.get(name), palette, zeros > 0, group)
        for name, weight in weights.items()
    }


def codebook_per_channel(
    method: Quantizer, target: Target, weight: torch.Tensor, mask: torch.Tensor | None, seed: int
) -> Codebook:
    """Make one codebook for each output channel of a tensor; their values are stored end to end.

    Args:
        method: Finds the values.
        target: The tensor.
        weight: Its weights.
        mask: True where a weight is not masked; None where all are kept.
        seed: For methods that draw at random.
    """
    if weight.dim() < 2:
        raise OptionError(
            f"{target.name}: per='channel' needs a tensor with an output axis and another, got shape "
            f"{tuple(weight.shape)}"
        )
    if method.holds_zero:
        raise OptionError(f"{target.name}: per='channel' is for K-means; share uniform steps per='tensor'")
    slices = weight.detach().movedim(target.out_axis, 0)
    masks = mask.movedim(target.out_axis, 0) if mask is not None else None
    values, parts, offsets = [], [], [0]
    for channel in range(slices.shape[0]):
        here = slices[channel]
        stays = masks[channel] if masks is not None else None
        kept = here[stays] if stays is not None else here.reshape(-1)
        name = f"{target.name}[channel {channel}]"
        palette = method.palette(name, kept, here.numel() - kept.numel(), seed) if kept.numel() else None
        book = _book(method, name, here, stays, palette, masks is not None)
        values.append(book.values)
        parts.append(book.indices.long() + offsets[-1])
        offsets.append(offsets[-1] + book.values.numel())
    indices = torch.stack(parts).movedim(0, target.out_axis).contiguous()
    return Codebook(
        target.name,
        torch.cat(values),
        indices.to(index_dtype(offsets[-1])),
        axis=target.out_axis,
        offsets=tuple(offsets),
        reserved=masks is not None,
    )


def reassigned_by_rate(
    book: Codebook,
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    rate: float,
    importance: Mapping[str, torch.Tensor] | None,
) -> Codebook:
    """Assign each weight to the value where error and cost together are least; the values do not change.

    Args:
        book: The codebook as the method made it.
        weight: The weights.
        kept: True where a weight is not masked; None where all are kept.
        rate: The cost of a bit, in mean squared weights.
        importance: Weighs the squared error of each weight, by parameter name.

    Returns:
        The codebook with new indices.
    """
    if book.axis is not None:
        raise OptionError(
            f"{book.name}: rate and importance are for codebooks per='tensor', 'model' or groups"
        )
    if importance is not None and book.name not in importance:
        raise OptionError(f"{book.name}: importance is given, but not for it; {near(book.name, importance)}")
    weighed = None if importance is None else importance[book.name].to(weight.device)
    if weighed is not None and weighed.shape != weight.shape:
        raise OptionError(
            f"{book.name}: expected importance of shape {tuple(weight.shape)}, got {tuple(weighed.shape)}"
        )
    price = rate * _mean_square(weight.detach(), weighed, kept)
    indices = assign_by_rate(weight, book.values, book.zero, price, weighed, book.indices, kept)
    return replace(book, indices=indices.to(book.indices.dtype))


def _mean_square(weight: torch.Tensor, weighed: torch.Tensor | None, kept: torch.Tensor | None) -> float:
    """The mean square of the kept weights, each weighed by its importance: the unit of a rate. 0.0 of none."""
    live = weight if kept is None else weight[kept]
    if not live.numel():
        return 0.0
    factor = 1.0 if weighed is None else weighed if kept is None else weighed[kept]
    return float((live.double().square() * factor).mean())


def _book(
    method: Quantizer,
    name: str,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    palette: Palette | None,
    zeros: bool,
    group: str | None = None,
) -> Codebook:
    """The codebook of one tensor: masked weights first, at 0.0, where the method has no zero of its own."""
    if palette is None:
        values, first = torch.zeros(1, dtype=weight.dtype, device=weight.device), 0
        return Codebook(name, values, torch.zeros_like(weight, dtype=torch.uint8), group=group, reserved=True)
    values = torch.from_numpy(palette.values).to(weight.dtype).to(weight.device)
    reserved = zeros and not method.holds_zero
    first = 1 if reserved else 0
    if reserved:
        values = torch.cat([values.new_zeros(1), values])
    indices = (palette.assign(weight) + first).to(index_dtype(values.numel()))
    if mask is not None:
        indices.masked_fill_(~mask, -palette.low if method.holds_zero else 0)
    return Codebook(name, values, indices, palette.step, palette.low, group, reserved=reserved)
