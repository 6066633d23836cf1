"""Codebooks by the error of a layer's outputs: `share(data=...)`, layer after layer, on unlabelled inputs. Ordinary
sharing moves every weight as little as possible. Here the squared error of the layer's *outputs* is minimised, on the
real inputs from the already shared layers before it. A layer starts from its least-squares weights. Each feature in
turn is rounded to the nearest values while the weights still free compensate for its error (Frantar et al. 2022,
"GPTQ"). Then two moves alternate, and none raises the error: the values are solved by least squares for the present
assignment, and each weight is assigned to the value of least error given all others.

>>> hessian = torch.tensor([[[4.0, 3.9], [3.9, 4.0]]], dtype=torch.float64)
>>> goal = hessian @ torch.tensor([[[0.4], [0.4]]], dtype=torch.float64)
>>> free = torch.ones(1, 2, 1, dtype=torch.bool)
>>> start = torch.zeros(1, 2, 1, dtype=torch.long)  # both weights at 0.0; their sum should be 0.8
>>> descended(Quadratic(hessian, goal), start, torch.tensor([0.0, 1.0], dtype=torch.float64), free, None).flatten()
tensor([1, 0])
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import nn

from secateur.compensation.calls import Convolution, Geometry, Linear
from secateur.compensation.fitting import LayerProblem, Setting, Solution, fit
from secateur.compensation.least_squares import solve
from secateur.compensation.support import inverse
from secateur.compensation.tuning import Tuning, tune
from secateur.core.codebook import Codebook, index_dtype
from secateur.errors import OptionError
from secateur.execution.example import Batch
from secateur.execution.undisturbed import undisturbed
from secateur.quantize import Quantizer
from secateur.quantize.tuned_values import FixedAssignments, LearntAssignments, SharedWeight

__all__ = [
    "SOLVED_VALUES",
    "Assignments",
    "CodebookSolver",
    "Quadratic",
    "book_of",
    "calibrated",
    "descended",
    "fed_forward",
    "solved_values",
]

Assignments: TypeAlias = Literal["fixed", "learnt"]

_TOGETHER = 64
"""Features whose effect on later ones is added up in one product."""
SOLVED_VALUES = 64
"""Codebooks of up to this number of values are solved by least squares; larger ones are close enough without."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The error as a function of the weights: w H w - 2 w goal, per group and output.

    `hessian` is [groups, features, features], `goal` [groups, features, outputs].
    """

    hessian: torch.Tensor
    goal: torch.Tensor


def calibrated(
    student: nn.Module,
    dense: nn.Module,
    data: Iterable[object],
    batches: Sequence[Batch],
    solver: CodebookSolver,
    only: frozenset[str],
    tuning: Tuning | None = None,
    assignments: Assignments = "fixed",
) -> dict[str, Codebook]:
    """Share the named weights of `student`, in place; their codebooks.

    Args:
        student: The model to share; biases and running means of batch norm follow its layers.
        dense: The model whose outputs are the targets.
        data: Batches of inputs, read again in each pass of tuning.
        batches: The same as first read.
        solver: Shares a layer; it holds the masks.
        only: Names of the weights to share; other layers are not changed.
        tuning: Gradient steps afterwards, on values, biases and norms.
        assignments: Whether tuning moves values alone ("fixed"), or which weight has which value too ("learnt").

    Returns:
        The codebooks of the weights that were called as layers.
    """
    modes = [module.training for module in student.modules()]
    device = next(student.parameters()).device
    with undisturbed(dense, mode="eval"), torch.autocast(device.type, enabled=False):
        student.eval()
        frozen = frozenset(name for name, _ in student.named_parameters() if name not in only)
        with torch.no_grad():
            setting = Setting(dense, student, batches, dict(solver.masks), frozen, device, seed=solver.seed)
            report = fit(setting, solver)
            solver.summed = tuple(layer.name for layer in report if layer.summed)
        books = dict(solver.books)
        if tuning is not None:
            books.update(_tuned(student, dense, data, batches, solver, tuning, assignments))
    for module, training in zip(student.modules(), modes, strict=True):
        module.training = training
    return books


def _tuned(
    student: nn.Module,
    dense: nn.Module,
    data: Iterable[object],
    batches: Sequence[Batch],
    solver: CodebookSolver,
    tuning: Tuning,
    assignments: Assignments,
) -> dict[str, Codebook]:
    """The codebooks with trained values; those of uniform steps, and of several tensors, are not changed."""
    free = {name: book for name, book in solver.books.items() if book.step is None and book.group is None}
    flags = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(flags[name] and (parameter.dim() < 2 or name in free))
    parameters = dict(student.named_parameters())
    shared = [
        SharedWeight(parameters[name], book.indices, solver.masks.get(name), book.axis)
        for name, book in free.items()
    ]
    values = LearntAssignments(shared) if assignments == "learnt" else FixedAssignments(shared)
    with torch.enable_grad():
        tune(dense, student, data, batches, solver.masks, tuning, values=values)
    found = {}
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
        if name not in free:
            continue
        if assignments == "learnt":
            found[name] = _book_of(name, parameter.detach(), solver.masks.get(name), free[name].axis)
        else:
            book = free[name]
            moved = torch.zeros_like(book.values)
            moved[book.indices.reshape(-1).long()] = parameter.detach().reshape(-1)
            found[name] = replace(book, values=moved)
    return found


def _book_of(name: str, weight: torch.Tensor, mask: torch.Tensor | None, axis: int | None = None) -> Codebook:
    """The codebook of a weight that has few distinct values; masked weights point at a 0.0 of their own.

    With an `axis`, one for each slice along it, end to end.
    """
    if axis is not None:
        return _book_of_slices(name, weight, mask, axis)
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device)
    used, flat = torch.unique(weight[mask], return_inverse=True)
    reserved = not bool(mask.all())
    held = torch.cat([used.new_zeros(1), used]) if reserved else used
    spread = torch.zeros(weight.shape, dtype=torch.long, device=mask.device)
    spread[mask] = flat + (1 if reserved else 0)
    return Codebook(name, held, spread.to(index_dtype(held.numel())), reserved=reserved)


def _book_of_slices(name: str, weight: torch.Tensor, mask: torch.Tensor | None, axis: int) -> Codebook:
    """One codebook for each slice of a weight; every one has a 0.0 for masked weights, or none has."""
    whole = mask is None or bool(mask.all())
    slices = weight.movedim(axis, 0)
    masks = [None] * len(slices) if mask is None else mask.to(weight.device).movedim(axis, 0)
    values, parts, offsets = [], [], [0]
    for one, stays in zip(slices, masks, strict=True):
        book = _book_of(name, one, None if whole else stays)
        indices, held = book.indices.long(), book.values
        if not whole and not book.reserved:  # nothing is masked in this slice
            held, indices = torch.cat([held.new_zeros(1), held]), indices + 1
        values.append(held)
        parts.append(indices + offsets[-1])
        offsets.append(offsets[-1] + held.numel())
    joined = torch.stack(parts).movedim(0, axis).contiguous()
    return Codebook(
        name,
        torch.cat(values),
        joined.to(index_dtype(offsets[-1])),
        axis=axis,
        offsets=tuple(offsets),
        reserved=not whole,
    )


@dataclass
class CodebookSolver:
    """Finds a layer's codebook and assignment; `books` holds them by the weight's name.

    With a `rate`, a weight of a tensor that has masked ones may become zero as well: its mask in `masks` changes.
    """

    finder: Quantizer
    masks: dict[str, torch.Tensor]
    rate: float = 0.0
    typical: float | None = None
    """How many weights a layer has whose mean squared weight `rate` refers to; None: as many as each has itself. With
    one number for all layers, one bit costs the same share of the outputs' error in each."""
    seed: int = 0
    per_channel: bool = False
    """Whether each output channel has a codebook of its own."""
    given: Mapping[str, Codebook] = field(default_factory=dict)
    """Codebooks that several tensors have in common: their values stay as they are, only assignments are found."""
    sums: bool = True
    """Whether a layer whose output is added to something is solved for the sum."""
    summed: tuple[str, ...] = ()
    """After the fit: the layers that were."""
    damping: float = 0.01
    rounds: int = 6
    books: dict[str, Codebook] = field(default_factory=dict)
    always: ClassVar[bool] = True

    def __call__(self, layer: LayerProblem) -> Solution:
        """The layer's weight with few values."""
        free = layer.keep
        best, quadratic = self._least_squares(layer)
        live = layer.geometry.weight(best, layer.weight.shape).to(layer.weight.dtype)[layer.mask]
        masked = layer.mask.numel() - live.numel()
        if not live.numel():
            self.books[layer.name] = self._zeros(layer)
            return Solution(torch.zeros_like(layer.weight))
        values, uniform = self._values(layer, best, live)
        fixed = uniform[0] is not None or layer.name in self.given
        indices = fed_forward(quadratic, best, values, free)
        zero = bool(self.rate) and masked > 0 and not fixed
        price = None
        for _ in range(self.rounds):
            if self.rate:
                price = self._prices(quadratic, best, indices, values.shape[-1], free, zero)
            # One more candidate, 0.0: a weight there costs no more than a masked one.
            offered = torch.cat([values, values.new_zeros(1)]) if zero else values
            indices = descended(quadratic, indices, offered, free, price)
            if fixed or values.shape[-1] > SOLVED_VALUES:
                continue
            values = solved_values(quadratic, indices, values, free & (indices < values.shape[-1]))
        free = free & (indices < values.shape[-1])
        if zero:
            self.masks[layer.name] = layer.geometry.weight(free, layer.weight.shape)
        self.books[layer.name] = book = self._book(layer, indices.masked_fill(~free, 0), values, uniform)
        return Solution(book.tensor())

    def _zeros(self, layer: LayerProblem) -> Codebook:
        """The codebook of a layer whose weights are all masked: its group's, or a single 0.0."""
        given = self.given.get(layer.name)
        if given is not None and given.zero is not None:
            return replace(given, indices=torch.full_like(given.indices, given.zero))
        values = torch.zeros(1, dtype=layer.weight.dtype, device=layer.weight.device)
        indices = torch.zeros_like(layer.weight, dtype=torch.uint8)
        return Codebook(layer.name, values, indices, reserved=True)

    def _values(
        self, layer: LayerProblem, best: torch.Tensor, live: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[float | None, int]]:
        """The values to begin with, ascending: [values], or [groups, outputs, values] of each channel; and their step
        and lowest multiple, where they are in uniform steps. Those of channels are the method's for all channels
        brought to one size, improved in each channel by rounds of K-means: one call instead of one for each.
        """
        masked = layer.mask.numel() - live.numel()
        if layer.name in self.given:
            book = self.given[layer.name]
            return book.values[1 if book.reserved else 0 :].to(best), (book.step, book.low)
        if not self.per_channel:
            palette = self.finder.palette(layer.name, live, masked, self.seed)
            return torch.from_numpy(palette.values).to(best), (palette.step, palette.low)
        _out_axis(layer)
        size = (best.square() * layer.keep).sum(1) / layer.keep.sum(1).clamp_min(1)
        size = size.sqrt().clamp_min(1e-30)  # [groups, outputs]
        alike = (best / size[:, None])[layer.keep].to(layer.weight.dtype)
        palette = self.finder.palette(layer.name, alike, masked, self.seed)
        start = torch.from_numpy(palette.values).to(best) * size[:, :, None]
        return _improved(best.mT, layer.keep.mT, start), (None, 0)

    def _book(
        self,
        layer: LayerProblem,
        indices: torch.Tensor,
        values: torch.Tensor,
        uniform: tuple[float | None, int],
    ) -> Codebook:
        """The codebook of a layer from its indices as [groups, features, outputs]."""
        mask, shape = self.masks.get(layer.name, layer.mask), layer.weight.shape
        if self.per_channel:
            weight = layer.geometry.weight(taken(values, indices), shape).to(layer.weight.dtype)
            return _book_of(layer.name, weight * mask, mask, _out_axis(layer))
        placed = layer.geometry.weight(indices, shape)
        if layer.name in self.given and uniform[0] is None:
            book = self.given[layer.name]
            held = placed + 1 if book.reserved else placed
            held = held.masked_fill(~mask, 0) if book.reserved else held
            return replace(book, indices=held.to(book.indices.dtype))
        book = book_of(layer.name, placed, values.to(layer.weight.dtype), mask, uniform)
        return replace(book, group=self.given[layer.name].group) if layer.name in self.given else book

    def _least_squares(self, layer: LayerProblem) -> tuple[torch.Tensor, Quadratic]:
        """The best weights with any value, and the error as a function of the weights, with a small ridge towards
        them.
        """
        problem, start = layer.problem, layer.matrix
        hessian = problem.hessian.clone()
        best = torch.empty_like(problem.cross)
        for group in range(start.shape[0]):
            ridge = self.damping * float(hessian[group].diagonal().mean()) + 1e-30
            best[group] = solve(
                problem.hessian[group], problem.cross[group], start[group], layer.keep[group], ridge
            )
            hessian[group].diagonal().add_(ridge)
        spare = (hessian - problem.hessian).diagonal(dim1=1, dim2=2)[:, :, None]
        return best, Quadratic(hessian, problem.cross + spare * best)

    def _prices(
        self,
        quadratic: Quadratic,
        best: torch.Tensor,
        indices: torch.Tensor,
        count: int,
        free: torch.Tensor,
        zero: bool,
    ) -> torch.Tensor:
        """The cost of each of `count` values: its bits at the present frequencies, times `rate` in mean squared
        weights. With `zero` the last cost is that of zero, among which the masked weights are counted.
        """
        held = torch.bincount(indices[free], minlength=count + 1)
        counts = held[:count].to(best.dtype) + 0.5
        bits = counts.sum().log2() - counts.log2()
        if zero:
            whole, live = float(free.numel()), float(counts.sum())
            none = max(whole - live, 0.5)
            bits = torch.cat([bits + math.log2(whole / live), bits.new_tensor([math.log2(whole / none)])])
        weighted = quadratic.hessian.diagonal(dim1=1, dim2=2)[:, :, None] * best.square()
        return self.rate * float(weighted[free].sum()) / (self.typical or int(free.sum())) * bits


def book_of(
    name: str,
    indices: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    uniform: tuple[float | None, int],
) -> Codebook:
    """The codebook as the rest of the package knows it.

    Args:
        name: The weight's name.
        indices: Which value each weight has, in the weight's shape.
        values: The values, in the weight's type.
        mask: True where a weight is not masked; None where all are kept.
        uniform: (step, lowest multiple) of values in uniform steps; the step is None for any others.
    """
    step, low = uniform
    if step is None:
        return _book_of(name, values[indices], mask)
    held = indices if mask is None else indices.masked_fill(~mask, -low)
    return Codebook(name, values, held.to(index_dtype(values.numel())), step, low)


def _improved(rows: torch.Tensor, keep: torch.Tensor, values: torch.Tensor, rounds: int = 10) -> torch.Tensor:
    """Rounds of K-means in each row of [groups, outputs, features]: a value becomes the mean of the nearest numbers."""
    rows, there = rows.contiguous(), keep.to(rows.dtype)
    for _ in range(rounds):
        index = torch.searchsorted(((values[..., 1:] + values[..., :-1]) / 2).contiguous(), rows)
        counts = torch.zeros_like(values).scatter_add_(2, index, there)
        sums = torch.zeros_like(values).scatter_add_(2, index, rows * there)
        values = torch.where(counts > 0, sums / counts.clamp_min(1), values).sort(-1).values
    return values


def _out_axis(layer: LayerProblem) -> int:
    """The axis of a weight along which its output channels lie."""
    geometry: Geometry = layer.geometry
    if isinstance(geometry, Linear):
        return 1 if geometry.transposed else 0
    if isinstance(geometry, Convolution) and geometry.spread is not None:
        if geometry.groups > 1:
            raise OptionError(
                f"{layer.name}: per='channel' with data= is not for grouped transposed convolutions, whose groups "
                "share an axis; leave it out with skip=, or share it per='tensor'"
            )
        return 1
    return 0


def _nearest(wanted: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The index of the nearest of ascending values; the lower one half way between.

    `values` is one list for all, or has one for each element of `wanted`, along its last axis.
    """
    cuts = (values[..., 1:] + values[..., :-1]) / 2
    if values.dim() == 1:
        return torch.bucketize(wanted, cuts)
    return torch.searchsorted(cuts.contiguous(), wanted[..., None])[..., 0]


def taken(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The values at indices [groups, features, outputs]: of one list, or of [groups, outputs, values].

    >>> taken(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0, 1], [1, 1]]])).tolist()
    [[[1.0, 4.0], [2.0, 4.0]]]
    """
    return values[indices] if values.dim() == 1 else values.mT.gather(1, indices)


def fed_forward(
    quadratic: Quadratic, best: torch.Tensor, values: torch.Tensor, free: torch.Tensor
) -> torch.Tensor:
    """The nearest values, feature by feature, the error of each compensated for by the later ones."""
    found = torch.empty_like(best, dtype=torch.long)
    for group in range(best.shape[0]):
        hessian = quadratic.hessian[group]
        order = hessian.diagonal().argsort(descending=True, stable=True)
        wide = hessian if hessian.device.type == "mps" else hessian.double()
        factor = torch.linalg.cholesky_ex(inverse(wide[order][:, order], 1e-6), upper=True)[0].to(best)
        weights, held = best[group][order].clone(), free[group][order]
        indices = torch.empty_like(weights, dtype=torch.long)
        errors = torch.empty_like(weights)
        own = values if values.dim() == 1 else values[group]
        for start in range(0, len(order), _TOGETHER):
            stop = min(start + _TOGETHER, len(order))
            for at in range(start, stop):
                indices[at] = _nearest(weights[at].contiguous(), own)
                now = taken(values if own is values else own[None], indices[None, at : at + 1])[0, 0]
                off = weights[at] - torch.where(held[at], now, 0.0)
                errors[at] = off / factor[at, at]
                weights[at + 1 : stop] -= factor[at, at + 1 : stop, None] * errors[at]
            weights[stop:] -= factor[start:stop, stop:].mT @ errors[start:stop]
        found[group, order] = indices
    return found


def descended(
    quadratic: Quadratic,
    indices: torch.Tensor,
    values: torch.Tensor,
    free: torch.Tensor,
    price: torch.Tensor | None,
) -> torch.Tensor:
    """One sweep over the features: each weight to the value of least error and price, given all others."""
    hessian = quadratic.hessian
    weights = torch.where(free, taken(values, indices), 0.0)
    slope = hessian @ weights - quadratic.goal
    found, moved = indices.clone(), torch.zeros_like(weights)
    features = hessian.shape[1]
    for start in range(0, features, _TOGETHER):
        stop = min(start + _TOGETHER, features)
        for at in range(start, stop):
            bend = hessian[:, at, at, None].clamp_min(1e-30)  # [groups, 1]
            wanted = weights[:, at] - slope[:, at] / bend
            if price is None:
                new = _nearest(wanted.contiguous(), values)
            else:
                new = (bend[:, :, None] * (wanted[:, :, None] - values).square() + price).argmin(2)
            now = torch.where(free[:, at], taken(values, new[:, None])[:, 0], 0.0)
            moved[:, at] = now - weights[:, at]
            slope[:, at + 1 : stop] += hessian[:, at + 1 : stop, at, None] * moved[:, at, None, :]
            found[:, at] = new
        slope[:, stop:] += hessian[:, stop:, start:stop] @ moved[:, start:stop]
    return found


def solved_values(
    quadratic: Quadratic, indices: torch.Tensor, values: torch.Tensor, free: torch.Tensor
) -> torch.Tensor:
    """The values of least error for an assignment, ascending as before; the present ones if that fails."""
    count = values.shape[-1]
    alone = values.dim() == 1  # one list for all outputs: sums run over them too
    square = values.new_zeros(*values.shape, count)
    right = values.new_zeros(values.shape)
    places = [((indices == value) & free).to(values.dtype) for value in range(count)]

    def summed(products: torch.Tensor) -> torch.Tensor:
        return products.sum() if alone else products.sum(1)

    for value in range(count):
        pushed = quadratic.hessian @ places[value]
        right[..., value] = summed(places[value] * quadratic.goal)
        for other in range(value + 1):
            found = summed(places[other] * pushed)
            square[..., value, other] = square[..., other, value] = found
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(-1, keepdim=True).clamp_min(1e-30)
    unused = diagonal == 0
    square = square + torch.diag_embed(torch.where(unused, level, 1e-9 * level))
    right = torch.where(unused, level * values, right + 1e-9 * level * values)
    new, failed = torch.linalg.solve_ex(square, right[..., None])
    new = new[..., 0]
    good = (new[..., 1:] >= new[..., :-1]).all(-1) & torch.isfinite(new).all(-1) & (failed == 0)
    return torch.where(good[..., None], new, values)
