"""Weight sharing: `share` gives every tensor few distinct values; `Shared` holds them, and their cost in bits.

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
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import nn

from secateur import quantize
from secateur.compensation.batches import read_all
from secateur.compensation.compensate import as_tuning, check_dense
from secateur.compensation.tuning import Tuning
from secateur.core.codebook import Codebook
from secateur.core.left_alone import say_left_alone
from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.core.scores import check_finite
from secateur.core.targets import Pattern, Target, select
from secateur.errors import NothingToDoError, OptionError, PatternError, near
from secateur.execution.verb import verb
from secateur.quantize import QuantizerLike
from secateur.quantize.calibrated import Assignments, CodebookSolver, calibrated
from secateur.quantize.codebooks import codebook_of_group, codebook_per_channel, reassigned_by_rate
from secateur.quantize.groups import Groups, codebook_groups
from secateur.quantize.rate_distortion import check_rate
from secateur.quantize.result import Shared, SharedTensor, zeroed
from secateur.quantize.tables import curvatures, table_codebook

__all__ = ["ShareOptions", "Shared", "SharedTensor", "share"]

MasksLike: TypeAlias = Masks | Mapping[str, torch.Tensor] | str | None


@dataclass(frozen=True, eq=False)
class ShareOptions:
    """Which tensors `share` takes, and how errors are weighed.

    Attributes:
        only: Layers to share, by name or pattern; all prunable ones unless given.
        skip: Layers to leave alone.
        parameters: Parameters to share besides the weights of layers, by name or pattern.
        importance: Weighs the squared error of each weight, by parameter name; its curvature, for example.
        seed: For starts of K-means that draw at random.
        dense: With `data`: the model whose outputs are the targets, as it was before pruning, for example. By default
            the model given.
        tune: With `data`: gradient steps on the values, biases and norms afterwards, as of `sc.compensate`: a `Tuning`,
            or a number of passes over the data.
        assignments: With `tune`: "fixed" moves the values alone; "learnt" also lets each weight take another, by the
            straight-through estimator.
        sums: With `data`: solve a layer whose output is added to something, as in a residual connection, for the sum.
            Without it every layer reproduces its own output, as `error_bits` asks for.

    >>> model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))
    >>> list(share(model, bits=2, options=ShareOptions(skip="1")).codebooks)
    ['0.weight']
    """

    only: Pattern | Sequence[Pattern] | None = None
    skip: Pattern | Sequence[Pattern] | None = None
    parameters: Pattern | Sequence[Pattern] | None = None
    importance: Mapping[str, torch.Tensor] | None = None
    seed: int = 0
    dense: nn.Module | None = None
    tune: Tuning | int | None = None
    assignments: Assignments = "fixed"
    sums: bool = True

    def __post_init__(self) -> None:
        if self.assignments not in ("fixed", "learnt"):
            raise OptionError(
                f"assignments of ShareOptions: expected 'fixed' or 'learnt', got {self.assignments!r}"
            )
        if self.assignments == "learnt" and not self.tune:
            raise OptionError(
                "assignments='learnt' of ShareOptions is for tune=: give a Tuning, or a number of passes"
            )


@verb
def share(
    model: nn.Module,
    bits: int | None = None,
    masks: MasksLike = "zeros",
    *,
    method: QuantizerLike = "kmeans",
    per: Groups = "tensor",
    rate: float = 0.0,
    data: Iterable[object] | None = None,
    options: ShareOptions | None = None,
    **method_options: object,
) -> Shared:
    """Give the weights of every tensor few distinct values; the model itself is not changed.

    Args:
        model: The model.
        bits: The size of a codebook: 2**bits values for the weights that are not masked. The method's default is 5.
        masks: Masked weights are exactly 0.0 and use no value. A `Masks`; or "zeros", which keeps each tensor's zeros
            at zero, so that a pruned model stays pruned; or None, which takes zeros as weights like any other.
        method: `kmeans`, `uniform`, `exact`, or a value of `sc.quantize`.
        per: Which tensors have one codebook: "tensor" (each its own), "channel" (one for each output channel),
            "model" (one for all), or a list of groups, each of one or more patterns; other tensors have their own.
        rate: The cost of a bit, in mean squared weights of a tensor. Each weight is assigned to the value where squared
            error and cost together are least; its bits are those of its position and its value given all others
            (`quantize.Prices`). Where a tensor has masked weights, more may become zero: see `Shared.masks`.
        data: A few hundred inputs or more, without labels, in batches: then the error of each layer's outputs on them
            is minimised, not that of its weights. Biases and the running means of batch norm follow, so `Shared.model`
            differs in more than its codebooks. The values of a codebook for several tensors are found as without data,
            and only assigned by the outputs; with "channel", tables keep one codebook each. `rate` counts the bits of
            each value by how often it occurs, and errors as shares of a layer's outputs: it is the cost of a bit in a
            layer with as many weights as the mean of all. Embedding tables are rounded by the error of the model's
            outputs, read from gradients; other tensors that do not belong to a layer are shared as without data.
        options: Which tensors are shared, and the rest.
        **method_options: Options of the method, such as `start="linear"` of K-means or `step=0.01` of uniform. K-means
            takes `bits_of`, other numbers of bits for some layers, as `sc.error_bits` gives them.

    Returns:
        The shared model, its codebooks, and their cost in bits.

    Raises:
        NothingToDoError: No weight would change.
        OptionError: An option is wrong, or a tensor cannot be shared.
        PatternError: A pattern matches nothing.

    >>> model = nn.Linear(3, 1, bias=False); _ = model.weight.data.copy_(torch.tensor([[0.0, 1.0, 3.0]]))
    >>> share(model, bits=1, masks=None).model.weight.tolist()
    [[0.5, 0.5, 3.0]]
    """
    model = plain_model(model)
    options = options or ShareOptions()
    check_rate(rate)
    plan = plan_sharing(model, bits, method, per=per, options=options, **method_options)
    if options.only is None and options.parameters is None:
        say_left_alone("share", model, plan.targets, options.skip, "options=sc.ShareOptions(")
    named = dict(model.named_parameters(remove_duplicate=False))
    _check_weights(plan.targets, named)
    kept = _kept_masks(model, plan.targets, masks)
    if data is not None:
        return _share_on_data(model, plan, kept, rate, data, options)
    return _share_weights(model, plan, kept, rate, options)


def _share_weights(
    model: nn.Module, plan: SharingPlan, kept: dict[str, torch.Tensor], rate: float, options: ShareOptions
) -> Shared:
    """Share by the error of the weights themselves, without data."""
    if options.dense is not None or options.tune is not None:
        raise OptionError("share: dense and tune need data=, the inputs on which outputs are compared")
    named = dict(model.named_parameters(remove_duplicate=False))
    books = _codebooks(plan, named, kept, rate, options)
    _check_changed(model, plan.method, books, named)
    shared = _shared(copy.deepcopy(model), model, plan, books, kept)
    return replace(shared, masks=MappingProxyType(kept | zeroed(books))) if rate else shared


def _shared(
    student: nn.Module,
    model: nn.Module,
    plan: SharingPlan,
    books: dict[str, Codebook],
    kept: dict[str, torch.Tensor],
) -> Shared:
    """The result: `student` with the values of the codebooks, which are compared with the weights of `model`."""
    named = dict(model.named_parameters(remove_duplicate=False))
    distortion = {name: _distortion(book, named[name], kept.get(name)) for name, book in books.items()}
    shared = Shared(
        model=student,
        codebooks=MappingProxyType(books),
        masks=MappingProxyType(kept),
        distortion=MappingProxyType(distortion),
        method=plan.method,
    )
    shared.apply_(shared.model)
    return shared


def _share_on_data(
    model: nn.Module,
    plan: SharingPlan,
    kept: dict[str, torch.Tensor],
    rate: float,
    data: Iterable[object],
    options: ShareOptions,
) -> Shared:
    """Sharing by the error of outputs; tensors other than weights of layers are shared first, as without data."""
    if plan.per_channel and rate:
        raise OptionError("share: rate is for per='tensor' and groups; leave it out with per='channel'")
    if plan.per_channel and plan.method.holds_zero:
        raise OptionError("share: per='channel' is for K-means; share uniform steps per='tensor'")
    if options.importance:
        raise OptionError("share: importance is what data= finds by itself; give one of the two")
    if isinstance(plan.method, quantize.registry.get("exact")):
        raise OptionError("share: method='exact' reads values as they are; leave data= out")
    named = dict(model.named_parameters(remove_duplicate=False))
    layers = frozenset(t.name for t in plan.targets if t.kind not in ("embedding", "parameter"))
    student = copy.deepcopy(model)
    dense = model if options.dense is None else check_dense(model, options.dense)
    batches = read_all("share", data, dense)
    tuning = as_tuning(options.tune)
    given = {
        name: book
        for label, members in plan.groups
        if len(members) > 1
        for name, book in codebook_of_group(plan.method, label, members, named, kept, options.seed).items()
    }
    books = {name: book for name, book in given.items() if name not in layers}
    others = [t.name for t in plan.targets if t.name not in layers and t.name not in books]
    curved = curvatures(dense, batches, others, tuning, options.seed) if others else {}
    for name, curvature in curved.items():
        weight = named[name].detach()
        books[name] = table_codebook(plan.method, name, weight, kept.get(name), curvature, options.seed)

    def plainly(names: Iterable[str]) -> None:
        for name in names:
            member = next(target for target in plan.targets if target.name == name)
            books.update(codebook_of_group(plan.method, name, [member], named, kept, options.seed))

    plainly([name for name in others if name not in books])
    for name, book in books.items():
        student.get_parameter(name).data.copy_(book.tensor())
    sizes = [int(kept[name].sum()) if name in kept else named[name].numel() for name in layers]
    typical = sum(sizes) / max(1, len(sizes))
    solver = CodebookSolver(
        plan.method, dict(kept), rate, typical, options.seed, plan.per_channel, given, options.sums
    )
    books.update(calibrated(student, dense, data, batches, solver, layers, tuning, options.assignments))
    for name, book in given.items():
        books.setdefault(name, book)  # a member that the forward does not call keeps its group's values
    plainly([target.name for target in plan.targets if target.name not in books])
    books = {target.name: books[target.name] for target in plan.targets}
    shared = replace(_shared(student, model, plan, books, kept), summed=solver.summed)
    return replace(shared, masks=MappingProxyType(kept | zeroed(books))) if rate else shared


@dataclass(frozen=True)
class SharingPlan:
    """The decisions of `share` before it reads a weight.

    Attributes:
        method: How the values are found.
        targets: The tensors that are shared, in the model's order.
        groups: (label, members) of every codebook, or of every tensor where each channel has its own.
        per_channel: Whether each output channel has a codebook.
    """

    method: quantize.Quantizer
    targets: Sequence[Target]
    groups: list[tuple[str, list[Target]]]
    per_channel: bool


def plan_sharing(
    model: nn.Module,
    bits: int | None = None,
    method: QuantizerLike = "kmeans",
    *,
    per: Groups = "tensor",
    options: ShareOptions | None = None,
    **method_options: object,
) -> SharingPlan:
    """Check the options of `share` against a model, without reading its weights.

    Args:
        model: The model.
        bits: As of `share`.
        method: As of `share`.
        per: As of `share`.
        options: As of `share`.
        **method_options: As of `share`.

    >>> plan_sharing(nn.Linear(3, 1), bits=9)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: bits of K-means: expected a whole number from 1 to 8, got 9
    """
    options = options or ShareOptions()
    given = {**method_options, "bits": bits}
    finder = _method(method, {name: value for name, value in given.items() if value is not None})
    targets = select(model, options.only, options.skip, options.parameters)
    groups = codebook_groups(model, targets, per)
    known = {name for target in targets for name in (target.layer, target.name)}
    for name, _ in getattr(finder, "bits_of", ()):
        if name not in known:
            raise PatternError(
                f"bits_of: {name!r} is no tensor that is shared: {near(name, [t.layer for t in targets])}"
            )
        for label, members in groups:
            if len(members) > 1 and any(name in (member.layer, member.name) for member in members):
                raise OptionError(
                    f"bits_of: {name!r} is in the group {label!r}, whose tensors have one codebook; expected a tensor "
                    "with a codebook of its own"
                )
    return SharingPlan(finder, targets, groups, per == "channel")


def _method(method: QuantizerLike, given: dict[str, object]) -> quantize.Quantizer:
    """The method as a value; options go with names, a value has its own."""
    misplaced = sorted(set(given) & {field.name for field in fields(ShareOptions)})
    if misplaced:
        raise OptionError(
            f"share: {', '.join(misplaced)} belong{'s' * (len(misplaced) == 1)} in options=ShareOptions(...), got "
            f"{'it' if len(misplaced) == 1 else 'them'} as options of the method"
        )
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
            f"expected the options {sorted(given)} inside the value {method!r}, got them in addition to it"
        )
    return quantize.registry.make(method)


def _check_weights(targets: Iterable[Target], named: Mapping[str, torch.Tensor]) -> None:
    """Raise unless every tensor holds finite real numbers, in memory."""
    for target in targets:
        weight = named[target.name]
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


def _kept_masks(model: nn.Module, targets: Iterable[Target], masks: MasksLike) -> dict[str, torch.Tensor]:
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


def _codebooks(
    plan: SharingPlan,
    named: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    rate: float,
    options: ShareOptions,
) -> dict[str, Codebook]:
    """The codebook of every target, in the targets' order; weights assigned by rate where bits have a cost."""
    books: dict[str, Codebook] = {}
    for label, members in plan.groups:
        if plan.per_channel:
            mask = kept.get(label)
            books[label] = codebook_per_channel(plan.method, members[0], named[label], mask, options.seed)
        else:
            books.update(codebook_of_group(plan.method, label, members, named, kept, options.seed))
    books = {target.name: books[target.name] for target in plan.targets}
    if not rate and not options.importance:
        return books
    return {
        name: reassigned_by_rate(book, named[name], kept.get(name), rate, options.importance)
        for name, book in books.items()
    }


def _check_changed(
    model: nn.Module,
    method: quantize.Quantizer,
    books: Mapping[str, Codebook],
    named: Mapping[str, torch.Tensor],
) -> None:
    """Raise unless some weight changes, or the method only reads the present values."""
    if isinstance(method, quantize.registry.get("exact")) or any(
        not torch.equal(named[name].detach(), book.tensor()) for name, book in books.items()
    ):
        return
    most = max(len(torch.unique(named[name].detach())) for name in books)
    raise NothingToDoError(
        f"sharing with {method} would change no weight of {type(model).__name__}: no tensor has more "
        f"distinct values (at most {most}) than its codebook; ask for fewer bits, or for method='exact' "
        "to read the values as they are"
    )


def _distortion(book: Codebook, weight: torch.Tensor, kept: torch.Tensor | None) -> float:
    """The mean squared change of the kept weights."""
    before, after = weight.detach(), book.tensor()
    if kept is not None:
        before, after = before[kept], after[kept]
    wide = torch.float32 if before.device.type == "mps" else torch.float64
    away = before.to(wide) - after.to(wide)
    return float((away * away).mean()) if away.numel() else 0.0
