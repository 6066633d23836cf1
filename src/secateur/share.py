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
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur import quantize
from secateur.core.codebook import Codebook, index_dtype
from secateur.core.masks import Masks
from secateur.core.scores import check_finite
from secateur.core.targets import Pattern, Target, matches, patterns_of, select
from secateur.errors import MaskMismatchError, NothingToDoError, OptionError, PatternError, near
from secateur.quantize._rates import entropy_bits, huffman_bits
from secateur.quantize._training import Training

__all__ = ["Shared", "SharedTensor", "share"]

Groups = str | Sequence[Pattern | Sequence[Pattern]]


@dataclass(frozen=True)
class SharedTensor:
    """One row of `Shared.summary()`: what sharing did to a tensor."""

    name: str
    shape: tuple[int, ...]
    numel: int
    kept: int
    """Weights that are not masked."""
    values: int
    """Distinct values of the kept weights."""
    distortion: float
    """Mean squared difference between the kept weights before and after."""
    entropy: float
    """Bits per kept weight of an ideal code of the indices (per channel: of a code for each channel)."""
    huffman: float
    """Bits per kept weight of a Huffman code of this tensor's indices, its table not counted."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What `share` found: a model with few distinct weights, its codebooks and what they cost.

    `model` is the shared model, `codebooks` maps a parameter's name to its `Codebook`, `masks` says which
    weights of each are kept, `distortion` maps a name to the mean squared change of its kept weights.
    """

    model: nn.Module
    codebooks: Mapping[str, Codebook]
    masks: Mapping[str, torch.Tensor]
    distortion: Mapping[str, float]
    method: quantize.Base

    def __repr__(self) -> str:
        return (
            f"Shared({len(self.codebooks)} tensors, {self.numel:,} weights, {self.kept:,} kept, "
            f"{self.bits_per_weight:.3f} bits per kept weight by Huffman)"
        )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Write the shared weights into a model, in place; returns it. Checked first, so all or nothing."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, book in self.codebooks.items():
            if name not in parameters:
                raise MaskMismatchError(
                    f"codebook of {name!r}: {type(model).__name__} has no such parameter; "
                    f"{near(name, parameters)}"
                )
            if tuple(parameters[name].shape) != tuple(book.indices.shape):
                raise MaskMismatchError(
                    f"codebook of {name!r}: expected shape {tuple(book.indices.shape)}, got "
                    f"{tuple(parameters[name].shape)} in {type(model).__name__}; are these the codebooks "
                    f"of another model?"
                )
        for name, book in self.codebooks.items():
            parameters[name].copy_(book.tensor())
        return model

    def train(
        self,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        remake_every: int | None = None,
    ) -> Training:
        """Train the centroids: `with shared.train(model) as training: ...`, around any loop.

        Inside the block the parameters of the shared layers are their centroids, and each centroid's gradient is the
        sum over its weights; masked weights stay 0.0. Make the optimizer inside, from `model.parameters()` (centroids and
        all that is not shared) or `training.parameters()` (centroids alone), or hand over one made before: in its groups
        the centroids stand for the weights until the block is left. Wrap the model (DistributedDataParallel) inside.
        Leaving puts plain parameters back, under their own names, with no more distinct values than centroids.

        Assignments are frozen. With `remake_every=n` the weights live on behind the centroids, are trained too
        (straight-through), and go to their nearest centroid anew after every n optimizer steps.

        `model` is `shared.model` unless given; `shared.trained(training)` gives the result with its new codebooks.

        >>> model = nn.Linear(16, 4, bias=False)
        >>> shared = share(model, bits=2)
        >>> with shared.train() as training:
        ...     optimizer = torch.optim.SGD(training.parameters(), lr=0.01)
        ...     shared.model(torch.ones(8, 16)).square().mean().backward()
        ...     optimizer.step()
        >>> len(shared.model.weight.unique()), list(shared.model.state_dict())
        (4, ['weight'])
        """
        model = self.model if model is None else model
        if remake_every is None:
            self.apply_(model)
        return Training(model, self.codebooks, self.masks, optimizer, remake_every)

    def trained(self, training: Training) -> Shared:
        """This result after `training`: its model, its codebooks. `distortion` then counts from the shared weights."""
        books = {**self.codebooks, **training.codebooks()}
        distortion = {}
        for name, book in books.items():
            away = (book.tensor().cpu().double() - self.codebooks[name].tensor().cpu().double()).square()
            kept = self.masks[name].cpu() if name in self.masks else torch.ones_like(away, dtype=torch.bool)
            distortion[name] = float(away[kept].mean()) if bool(kept.any()) else 0.0
        return Shared(
            training.model, MappingProxyType(books), self.masks, MappingProxyType(distortion), self.method
        )

    def summary(self) -> list[SharedTensor]:
        """One row per tensor, in order."""
        rows = []
        for name, book in self.codebooks.items():
            codes = self._counts(name)
            kept = sum(int(counts.sum()) for counts in codes)
            per = max(1, kept)
            rows.append(
                SharedTensor(
                    name=name,
                    shape=tuple(book.indices.shape),
                    numel=book.indices.numel(),
                    kept=kept,
                    values=sum(int((counts > 0).sum()) for counts in codes),
                    distortion=self.distortion[name],
                    entropy=sum(map(entropy_bits, codes)) / per,
                    huffman=sum(map(huffman_bits, codes)) / per,
                )
            )
        return rows

    def _counts(self, name: str) -> list[npt.NDArray[np.int64]]:
        """How many kept weights point at each value, for each code: one of the tensor, or one per channel."""
        book = self.codebooks[name]
        kept = book.indices[self.masks[name].to(book.indices.device)] if name in self.masks else book.indices
        counts = torch.bincount(kept.reshape(-1).long().cpu(), minlength=book.values.numel()).numpy()
        return np.split(counts, book.offsets[1:-1]) if book.offsets is not None else [counts]

    @property
    def numel(self) -> int:
        """How many weights were shared, masked ones included."""
        return sum(book.indices.numel() for book in self.codebooks.values())

    @property
    def kept(self) -> int:
        """How many of them are not masked."""
        return sum(row.kept for row in self.summary())

    @property
    def entropy(self) -> float:
        """Bits per kept weight of an ideal code, one code per tensor; positions not counted."""
        rows = self.summary()
        return sum(row.entropy * row.kept for row in rows) / max(1, sum(row.kept for row in rows))

    @property
    def bits_per_weight(self) -> float:
        """Bits per kept weight of Huffman codes, one per tensor; tables and positions not counted."""
        rows = self.summary()
        return sum(row.huffman * row.kept for row in rows) / max(1, sum(row.kept for row in rows))

    @property
    def formula_ratio(self) -> float:
        """A formula, not a file: 1 / (nonzero share x Huffman bits / 32), of the shared tensors alone.

        It is "nonzero share x bits/32 x huffman/bits", turned over. It leaves out the positions of the kept
        weights, the codebooks, the code tables and every parameter that is not shared; a real file is larger.
        With 36 % of the weights kept at 4.298 bits it is 20.7:

        >>> round(1 / (0.36 * 4.298 / 32), 2)
        20.68
        """
        rows = self.summary()
        share_kept = sum(row.kept for row in rows) / max(1, sum(row.numel for row in rows))
        return (
            32.0 / (share_kept * self.bits_per_weight)
            if share_kept and self.bits_per_weight
            else float("inf")
        )

    def table(self) -> str:
        """The summary as text: one line per tensor, a total, and the formula under its name."""
        rows = self.summary()
        width = max(len("total"), *(len(row.name) for row in rows))
        head = f"{'weights':>12}  {'kept':>12}  values  {'distortion':>10}  entropy  huffman"
        lines = [f"{'tensor':<{width}}  {head}"]
        lines += [
            f"{r.name:<{width}}  {r.numel:>12,}  {r.kept:>12,}  {r.values:>6}  {r.distortion:>10.3e}  "
            f"{r.entropy:>7.4f}  {r.huffman:>7.4f}"
            for r in rows
        ]
        kept = sum(row.kept for row in rows)
        error = sum(row.distortion * row.kept for row in rows) / max(1, kept)
        lines.append(
            f"{'total':<{width}}  {self.numel:>12,}  {kept:>12,}  {'':>6}  {error:>10.3e}  "
            f"{self.entropy:>7.4f}  {self.bits_per_weight:>7.4f}"
        )
        lines.append(
            f"formula, not a file (nonzero share x huffman bits / 32; no positions, codebooks, tables or "
            f"other parameters): {self.formula_ratio:.2f}x"
        )
        return "\n".join(lines)


def share(
    model: nn.Module,
    bits: int | None = None,
    start: str | quantize.starts.Base | None = None,
    masks: Masks | Mapping[str, torch.Tensor] | str | None = "zeros",
    *,
    method: str | quantize.Base = "kmeans",
    per: Groups = "tensor",
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
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

    >>> model = nn.Linear(3, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[0.0, 1.0, 3.0]]))
    >>> share(model, bits=1, masks=None).model.weight.tolist()
    [[0.5, 0.5, 3.0]]
    >>> share(model, bits=1, masks="zeros")
    Traceback (most recent call last):
    ...
    secateur.errors.NothingToDoError: ...
    """
    finder = _method(method, bits, start, options)
    targets = select(model, only, skip, parameters)
    named = dict(model.named_parameters(remove_duplicate=False))
    for target in targets:
        _check(target, named[target.name])
    kept = _kept_masks(model, targets, masks)
    books: dict[str, Codebook] = {}
    for label, members in _groups(model, targets, per):
        if per == "channel":
            books[label] = _per_channel(finder, members[0], named[label], kept.get(label), seed)
        else:
            books.update(_together(finder, label, members, named, kept, seed))
    books = {target.name: books[target.name] for target in targets}
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
    shared = Shared(
        model=copy.deepcopy(model),
        codebooks=MappingProxyType(books),
        masks=MappingProxyType(kept),
        distortion=MappingProxyType(distortion),
        method=finder,
    )
    shared.apply_(shared.model)
    return shared


def _method(
    method: str | quantize.Base, bits: int | None, start: Any, options: dict[str, Any]
) -> quantize.Base:
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
    finder: quantize.Base,
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
    finder: quantize.Base,
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


def _per_channel(
    finder: quantize.Base, target: Target, weight: torch.Tensor, mask: torch.Tensor | None, seed: int
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
