"""Weight sharing: `share` gives every tensor few distinct values, and `Shared` says which, and at what cost.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
>>> shared = sc.share(model, bits=3)
>>> [len(set(layer.weight.flatten().tolist())) for layer in (shared.model[0], shared.model[2])]
[8, 8]
>>> shared.codebooks["0.weight"].indices.shape
torch.Size([32, 64])

`shared.model` is a copy; `shared.apply_(model)` writes the same values into any model with those parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from secateur import quantize
from secateur.core.codebook import Codebook, index_dtype
from secateur.core.masks import Masks
from secateur.core.scores import check_finite
from secateur.core.targets import Pattern, Target, matches, patterns_of, select
from secateur.errors import NothingToDoError, OptionError, PatternError, near
from secateur.quantize.rate_distortion import assign_by_rate, check_rate
from secateur.quantize.result import Shared, SharedTensor, zeroed

__all__ = ["Shared", "SharedTensor", "share"]

Groups = str | Sequence[Pattern | Sequence[Pattern]]


def share(
    model: nn.Module,
    bits: int | None = None,
    start: str | quantize.starts.Start | None = None,
    masks: Masks | Mapping[str, torch.Tensor] | str | None = "zeros",
    *,
    method: str | quantize.Quantizer = "kmeans",
    per: Groups = "tensor",
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
    rate: float = 0.0,
    importance: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    **options: Any,
) -> Shared:
    """Give the weights of every tensor few distinct values; the model itself stays as it is.

    `bits` (5 unless given) is the size of a codebook: 2**bits values for the weights that are not masked.
    Masked weights are exactly 0.0 and cost no value. `masks` is a `Masks`, or "zeros" (each tensor's exact
    zeros stay zero; the default, so that a pruned model stays pruned), or None (zeros are weights like any
    other).

    `method` is `kmeans`, `uniform`, `exact`, or a value of `sc.quantize`; `start` is a start of K-means;
    further keywords go to the method. `per` is "tensor", "channel" (one codebook per output channel), "model"
    (one for all), or a list of groups, each a pattern or a list of patterns, whose tensors share one
    codebook; the others have their own.

    `rate` is what a bit costs, in mean squared weights of a tensor: each weight then goes to the value of least
    squared error and price together, the bits being those of its place and its value as the others now stand
    (`quantize.Prices`). Where a tensor has masked weights, more may become zero: `Shared.masks` says which are
    left. `importance`, by parameter name, weighs the squared error of each weight, by its curvature for example.

    >>> model = nn.Linear(3, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[0.0, 1.0, 3.0]]))
    >>> share(model, bits=1, masks=None).model.weight.tolist()
    [[0.5, 0.5, 3.0]]
    >>> share(model, bits=1, masks="zeros")
    Traceback (most recent call last):
    ...
    secateur.errors.NothingToDoError: ...
    """
    check_rate(rate)
    finder, targets, groups = prepared(
        model, bits, start, method=method, per=per, only=only, skip=skip, parameters=parameters, **options
    )
    named = dict(model.named_parameters(remove_duplicate=False))
    for target in targets:
        _check(target, named[target.name])
    kept = _kept_masks(model, targets, masks)
    books: dict[str, Codebook] = {}
    for label, members in groups:
        if per == "channel":
            books[label] = _per_channel(finder, members[0], named[label], kept.get(label), seed)
        else:
            books.update(_together(finder, label, members, named, kept, seed))
    books = {target.name: books[target.name] for target in targets}
    if rate or importance:
        books = {
            name: _shared_by_rate(book, named[name], kept.get(name), rate, importance)
            for name, book in books.items()
        }
    distortion, changed = {}, False
    for name, book in books.items():
        before, after = named[name].detach(), book.tensor()
        changed = changed or not torch.equal(before, after)
        mask = kept.get(name)
        if mask is not None:
            before, after = before[mask], after[mask]
        wide = torch.float32 if before.device.type == "mps" else torch.float64
        away = before.to(wide) - after.to(wide)
        distortion[name] = float((away * away).mean()) if away.numel() else 0.0
    if not changed and not isinstance(finder, quantize.registry.get("exact")):
        most = max(len(torch.unique(named[name].detach())) for name in books)
        raise NothingToDoError(
            f"sharing with {finder} would change no weight of {type(model).__name__}: no tensor has more "
            f"distinct values (at most {most}) than its codebook; ask for fewer bits, or for method='exact' "
            "to read the values as they are"
        )
    if rate:
        kept |= zeroed(books)
    shared = Shared(
        model=copy.deepcopy(model),
        codebooks=MappingProxyType(books),
        masks=MappingProxyType(kept),
        distortion=MappingProxyType(distortion),
        method=finder,
    )
    shared.apply_(shared.model)
    return shared


def prepared(
    model: nn.Module,
    bits: int | None = None,
    start: str | quantize.starts.Start | None = None,
    *,
    method: str | quantize.Quantizer = "kmeans",
    per: Groups = "tensor",
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
    **options: Any,
) -> tuple[quantize.Quantizer, Sequence[Target], list[tuple[str, list[Target]]]]:
    """What `share` makes of its options before it looks at a weight: the method, the tensors, and who has one codebook
    together.

    >>> prepared(nn.Linear(3, 1), bits=9)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: bits of K-means: expected a whole number from 1 to 8, got 9
    """
    finder = _method(method, bits, start, options)
    targets = select(model, only, skip, parameters)
    return finder, targets, _groups(model, targets, per)


def _method(
    method: str | quantize.Quantizer, bits: int | None, start: Any, options: dict[str, Any]
) -> quantize.Quantizer:
    """The method as a value; options belong to names, a value brings its own."""
    given = {
        **options,
        **({"bits": bits} if bits is not None else {}),
        **({"start": start} if start is not None else {}),
    }
    if isinstance(method, str):
        try:
            return quantize.registry.make(method, **given)
        except TypeError as error:
            raise OptionError(
                f"method {method!r} does not take the options {sorted(given)} ({error}); see "
                f"help(secateur.quantize.{quantize.registry.get(method).__name__})"
            ) from error
    if given:
        raise OptionError(
            f"expected the options {sorted(given)} inside the value {method!r}, got them beside it"
        )
    return quantize.registry.make(method)


def _check(target: Target, weight: torch.Tensor) -> None:
    """Raise unless the tensor holds finite real numbers that are really there."""
    if weight.device.type == "meta":
        raise OptionError(
            f"{target.name}: expected real weights, got a tensor on the meta device; load the model first"
        )
    if not torch.is_floating_point(weight):
        raise OptionError(
            f"{target.name}: expected floating-point weights, got {weight.dtype}; leave it out with skip="
        )
    check_finite(
        f"weights of {target.name!r}", weight, "repair or retrain the model, or leave it out with skip="
    )


def _kept_masks(
    model: nn.Module, targets: Iterable[Target], masks: Masks | Mapping[str, torch.Tensor] | str | None
) -> dict[str, torch.Tensor]:
    """True where a weight is kept, for every target in which some weight is not."""
    if masks is None:
        return {}
    if isinstance(masks, str):
        if masks != "zeros":
            raise OptionError(f"masks: expected a Masks, 'zeros' or None, got {masks!r}")
        found = {target.name: target.of(model).detach() != 0 for target in targets}
    else:
        given = masks if isinstance(masks, Masks) else Masks(masks)
        given.check(model)
        # A tied weight has several names; the mask may carry any of them.
        names = dict(model.named_parameters(remove_duplicate=False))
        by_tensor = {id(names[name]): mask for name, mask in given.items()}
        found = {}
        for target in targets:
            mask = by_tensor.get(id(names[target.name]))
            if mask is not None:
                found[target.name] = mask.to(names[target.name].device)
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def _groups(model: nn.Module, targets: Sequence[Target], per: Groups) -> list[tuple[str, list[Target]]]:
    """Which targets have one codebook together: (label, members), in the model's order."""
    if isinstance(per, str):
        if per == "model":
            return [("model", list(targets))]
        if per in ("tensor", "channel"):
            return [(target.name, [target]) for target in targets]
        raise OptionError(
            f"per: expected 'tensor', 'channel', 'model' or a list of groups of patterns, got {per!r}"
        )
    modules = dict(model.named_modules())
    groups: list[tuple[str, list[Target]]] = []
    owner: dict[str, str] = {}
    for entry in per:
        patterns = patterns_of(entry)
        label = "+".join(p if isinstance(p, str) else p.__name__ for p in patterns)
        members = []
        for pattern in patterns:
            hits = [t for t in targets if matches(pattern, t.layer, t.name, modules[t.layer])]
            if not hits:
                raise PatternError(
                    f"per: pattern {pattern!r} matches no tensor that is shared: "
                    f"{near(str(pattern), [t.layer for t in targets])}"
                )
            members += [hit for hit in hits if hit not in members]
        for member in members:
            if member.name in owner:
                raise OptionError(
                    f"per: {member.name} is in the groups {owner[member.name]!r} and {label!r}; expected "
                    f"one group each"
                )
            owner[member.name] = label
        groups.append((label, members))
    return groups + [(target.name, [target]) for target in targets if target.name not in owner]


def _together(
    finder: quantize.Quantizer,
    label: str,
    members: Sequence[Target],
    named: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    seed: int,
) -> dict[str, Codebook]:
    """One codebook for all members."""
    weights = {member.name: named[member.name].detach() for member in members}
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1:
        raise OptionError(
            f"group {label!r}: expected tensors of one dtype, got {', '.join(sorted(map(str, dtypes)))}; "
            f"share them apart"
        )
    parts = [weight[kept[name]] if name in kept else weight.reshape(-1) for name, weight in weights.items()]
    whole = torch.cat([part.cpu() for part in parts]) if len(parts) > 1 else parts[0]
    zeros = sum(weight.numel() for weight in weights.values()) - whole.numel()
    palette = finder.palette(label, whole, zeros, seed) if whole.numel() else None
    group = label if len(members) > 1 else None
    return {
        name: _book(finder, name, weight, kept.get(name), palette, zeros > 0, group)
        for name, weight in weights.items()
    }


def _book(
    finder: quantize.Quantizer,
    name: str,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    palette: quantize.Palette | None,
    zeros: bool,
    group: str | None = None,
) -> Codebook:
    """The codebook of one tensor: masked weights first, at 0.0, where the method has no zero of its own."""
    if palette is None:
        values, first = torch.zeros(1, dtype=weight.dtype, device=weight.device), 0
        return Codebook(name, values, torch.zeros_like(weight, dtype=torch.uint8), group=group, reserved=True)
    values = torch.from_numpy(palette.values).to(weight.dtype).to(weight.device)
    reserved = zeros and not finder.holds_zero
    first = 1 if reserved else 0
    if reserved:
        values = torch.cat([values.new_zeros(1), values])
    indices = (palette.assign(weight) + first).to(index_dtype(values.numel()))
    if mask is not None:
        indices.masked_fill_(~mask, -palette.low if finder.holds_zero else 0)
    return Codebook(name, values, indices, palette.step, palette.low, group, reserved=reserved)


def _shared_by_rate(
    book: Codebook,
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    rate: float,
    importance: Mapping[str, torch.Tensor] | None,
) -> Codebook:
    """The same values, each weight at the one where error and price together are least."""
    if book.axis is not None:
        raise OptionError(
            f"{book.name}: rate and importance are for codebooks per='tensor', 'model' or groups"
        )
    if importance is not None and book.name not in importance:
        raise OptionError(f"{book.name}: importance is given, but not for it; {near(book.name, importance)}")
    worth = None if importance is None else importance[book.name].to(weight.device)
    if worth is not None and worth.shape != weight.shape:
        raise OptionError(
            f"{book.name}: expected importance of shape {tuple(weight.shape)}, got {tuple(worth.shape)}"
        )
    live = weight.detach() if kept is None else weight.detach()[kept]
    unit = float(
        (live.double().square() * (1.0 if worth is None else worth if kept is None else worth[kept])).mean()
    )
    indices = assign_by_rate(
        weight, book.values, book.zero, rate * unit if live.numel() else 0.0, worth, book.indices, kept
    )
    return replace(book, indices=indices.to(book.indices.dtype))


def _per_channel(
    finder: quantize.Quantizer, target: Target, weight: torch.Tensor, mask: torch.Tensor | None, seed: int
) -> Codebook:
    """One codebook per slice along the output axis, laid end to end."""
    if weight.dim() < 2:
        raise OptionError(
            f"{target.name}: per='channel' needs a tensor with an output axis and another, got shape "
            f"{tuple(weight.shape)}"
        )
    if finder.holds_zero:
        raise OptionError(f"{target.name}: per='channel' is for K-means; share uniform steps per='tensor'")
    slices = weight.detach().movedim(target.out_axis, 0)
    masks = mask.movedim(target.out_axis, 0) if mask is not None else None
    values, parts, offsets = [], [], [0]
    for channel in range(slices.shape[0]):
        here = slices[channel]
        stays = masks[channel] if masks is not None else None
        kept = here[stays] if stays is not None else here.reshape(-1)
        name = f"{target.name}[channel {channel}]"
        palette = finder.palette(name, kept, here.numel() - kept.numel(), seed) if kept.numel() else None
        book = _book(finder, name, here, stays, palette, masks is not None)
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
