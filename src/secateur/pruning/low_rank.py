"""`factorise`: a linear layer or convolution as two smaller ones, with ranks given, by a share, or by a budget.

With a budget the ranks are chosen over all layers together: removing a singular value adds an error, its share of its
layer's squared outputs, and saves the cost of a rank in that layer. The values with the least error for the cost they
save are removed first, until the budget is met; the rest of the budget is spent on the ranks that lower the error most.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> small = sc.factorise(model, {"0": 4}, torch.randn(2, 16))
>>> tuple(small.model[0][0].weight.shape), tuple(small.model[0][1].weight.shape), small.proof_error < 1e-9
((4, 16), (32, 4), True)
>>> small = sc.factorise(model, sc.budget.Macs(keep=0.5), torch.randn(1, 16))
>>> sc.measure(small.model, torch.zeros(1, 16), what="macs")["macs"].value <= 640 / 2
True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.budget.macs import Macs
from secateur.budget.params import Params
from secateur.compensation.low_rank import (
    Decomposition,
    Layer,
    check_ranks,
    decompositions,
    factorisable,
    most_rank,
    replaced,
    sides,
    spatial_layers,
)
from secateur.core.model_kinds import plain_model
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError
from secateur.execution.example import Example
from secateur.execution.verb import verb
from secateur.metrics.macs import uses
from secateur.structure.cut.plan import ShrinkPlan, mark_model

__all__ = ["Factorised", "RanksLike", "factorise"]

RanksLike = Mapping[str, int] | float | Macs | Params
"""Every form in which ranks are given: a table by layer, the share of weights that every layer keeps, or a budget
over all layers.
"""


@dataclass(frozen=True, eq=False)
class Factorised:
    """The result of `factorise`: the model with two layers for one, and how far it is from the truncated dense weights.

    Attributes:
        model: A copy in which each factorised layer is an `nn.Sequential` of two.
        ranks: Each factorised layer's rank. `factorise` with these gives a fresh model the same layers.
        parameters_before: Parameters of the model given.
        parameters_after: Parameters of the copy.
        proof_error: Largest difference from the model with truncated dense weights, in float64 on the example, as a
            share of the largest output.
        errors: For each factorised layer the share of its squared outputs (of its squared weights without data) that
            the truncation loses.
        plan: The plan that gives a freshly built model the same layers: `sc.save(model, file, plan=plan)`.
    """

    model: nn.Module
    ranks: dict[str, int]
    parameters_before: int
    parameters_after: int
    proof_error: float
    errors: dict[str, float]
    plan: ShrinkPlan


@verb
def factorise(
    model: nn.Module,
    ranks: RanksLike,
    example: Example,
    *,
    data: Iterable[Any] | None = None,
    spatial: bool = False,
) -> Factorised:
    """Replace linear layers and convolutions by two smaller ones each, by truncated SVD of their weights.

    A convolution becomes one with its own kernel and `rank` outputs, and a 1x1 convolution after it; or, in the spatial
    form, one along the height and one along the width. Layers with
    groups, padding other than zeros, or a weight that is used elsewhere too are not changed. Neither is the model
    given.

    Args:
        model: The model to factorise.
        ranks: Each layer's rank, by the layer's name; or the share of weights that every layer keeps at most; or
            `sc.budget.Macs(keep)` or `Params(keep)`: the ranks of least error at which that share of the whole model
            remains. With a share, the layers in which it is less than one rank are not changed; with a budget,
            those that need not change.
        example: An input of the model, or a tuple of inputs, on which the result is proved.
        data: Batches of inputs that weight the decomposition by the layers' real inputs; without, all inputs count
            alike.
        spatial: Whether convolutions that keep the width take the spatial form: a 3x3 kernel as 3x1 and 1x3. Other
            layers are factorised as without.

    Returns:
        A `Factorised`: the copy, its ranks, its parameters, the proof's error and the plan for a file.

    Raises:
        OptionError: A rank or share is out of range, or a rank saves no weights.
        PatternError: A name is not that of a layer that can be factorised.
        BudgetNotMetError: Even rank 1 everywhere costs more than the budget.
        NothingToDoError: No layer is left to factorise.
        NonFiniteError: A weight, or a layer's input, holds NaN or infinity.
        StructureError: The model reads a layer's weight itself, or the data never reach a layer.
        ProofError: The result and the truncated dense weights compute different outputs.
    """
    model = plain_model(model)
    layers = factorisable(model)
    forms = _spatial(layers, data) if spatial else frozenset()
    if isinstance(ranks, Macs | Params):
        costs = _Costs.of(model, layers, ranks, example)
        layers = {name: layer for name, layer in layers.items() if name in costs.each}
        found = decompositions(model, layers, data, forms)
        chosen = _by_budget(layers, found, costs, ranks, forms)
    else:
        chosen = _by_hand(layers, ranks, forms)
        found = decompositions(model, {name: layers[name] for name in chosen}, data, forms)
    if not chosen:
        raise NothingToDoError(
            "factorise: no layer is left to factorise; give ranks by layer, or a larger share"
        )
    forms &= chosen.keys()
    small, error = replaced(model, found, chosen, example, forms)
    lost = {name: _error(found[name], rank) for name, rank in chosen.items()}
    plan = ShrinkPlan(keep={}, factors=chosen, spatial=tuple(sorted(forms)), model=type(model).__name__)
    mark_model(small, plan, model)
    return Factorised(small, chosen, _count(model), _count(small), error, lost, plan)


def _spatial(layers: Mapping[str, Layer], data: Iterable[Any] | None) -> frozenset[str]:
    """The layers that take the spatial form; an error where none does, or where data would weight them."""
    if data is not None:
        raise OptionError(
            "factorise: expected data or spatial=True, got both; the spatial form cannot be weighted by inputs"
        )
    forms = spatial_layers(layers)
    if not forms:
        raise NothingToDoError(
            "factorise: spatial=True found no convolution with a kernel of two axes that keeps the width; leave it out"
        )
    return forms


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _by_hand(
    layers: Mapping[str, Layer], ranks: Mapping[str, int] | float, forms: frozenset[str]
) -> dict[str, int]:
    """Each layer's rank, in the order of the model's layers; checked."""
    if isinstance(ranks, Mapping):
        check_ranks(layers, ranks, forms & ranks.keys())
        return {name: ranks[name] for name in layers if name in ranks}
    if isinstance(ranks, bool) or not isinstance(ranks, (int, float)) or not 0 < ranks < 1:
        raise OptionError(
            "ranks: expected ranks by layer, a share of weights kept in (0, 1), sc.budget.Macs or sc.budget.Params, "
            f"got {ranks!r}"
        )
    shared = {
        name: int(ranks * layer.weight.numel() / sum(sides(layer, name in forms)))
        for name, layer in layers.items()
    }
    return {name: rank for name, rank in shared.items() if rank >= 1}


def _error(found: Decomposition, rank: int) -> float:
    """The share of the squared outputs that is lost at a rank."""
    whole = float(found.squares.sum())
    return float(found.squares[rank:].sum()) / whole if whole else 0.0


@dataclass(frozen=True)
class _Costs:
    """The cost of one weight of each layer, and of the whole model."""

    each: dict[str, float]
    total: float
    what: str

    @classmethod
    def of(
        cls, model: nn.Module, layers: Mapping[str, Layer], budget: Macs | Params, example: Example
    ) -> _Costs:
        if isinstance(budget, Params):
            return cls(dict.fromkeys(layers, 1.0), float(_count(model)), "parameters")
        counted, rest = uses(model, example)
        parameters = dict(model.named_parameters())
        total = rest + sum(parameters[name].numel() * times for name, times in counted.items())
        each = {name: counted[f"{name}.weight"] for name in layers if f"{name}.weight" in counted}
        return cls(each, float(total), "multiply-accumulates")


Option = tuple[float, float, int]
"""A rank of a layer: its cost, its error, and the rank; 0 means dense."""


def _by_budget(
    layers: Mapping[str, Layer],
    found: Mapping[str, Decomposition],
    costs: _Costs,
    budget: Macs | Params,
    forms: frozenset[str],
) -> dict[str, int]:
    """The ranks of least error at which the budget is met."""
    options = {name: _options(layers[name], found[name], costs.each[name], name in forms) for name in layers}
    options = {name: several for name, several in options.items() if len(several) > 1}
    at = dict.fromkeys(options, 0)
    limit = budget.keep * costs.total * (1 + 1e-12)
    total = costs.total
    steps = [step for layer, several in options.items() for step in _steps(layer, several)]
    for _, name, index in sorted(steps):
        if total <= limit:
            break
        total += options[name][index][0] - options[name][at[name]][0]
        at[name] = index
    if total > limit:
        raise BudgetNotMetError(
            f"{budget}: {total:,.0f} of {costs.total:,.0f} {costs.what} remain ({total / costs.total:.4f}) at rank 1 "
            f"everywhere, and {limit:,.0f} were asked; keep more, or prune channels first"
        )
    _spend(options, at, limit - total)
    return {name: options[name][index][2] for name, index in at.items() if options[name][index][2]}


def _options(layer: Layer, found: Decomposition, cost: float, spatial: bool) -> list[Option]:
    """The options of a layer: dense, then every rank that saves, from the largest to 1."""
    one = sum(sides(layer, spatial)) * cost
    ranks = range(min(most_rank(layer, spatial), len(found.squares)), 0, -1)
    dense = layer.weight.numel() * cost
    return [(dense, 0.0, 0), *((rank * one, _error(found, rank), rank) for rank in ranks)]


def _steps(name: str, options: list[Option]) -> list[tuple[float, str, int]]:
    """The steps along the lower hull of a layer's options: (error for each unit of cost saved, layer, option)."""
    found, here = [], 0
    while here < len(options) - 1:
        slope, to = min(
            ((options[k][1] - options[here][1]) / (options[here][0] - options[k][0]), -k)
            for k in range(here + 1, len(options))
        )
        here = -to
        found.append((slope, name, here))
    return found


def _spend(options: Mapping[str, list[Option]], at: dict[str, int], left: float) -> None:
    """Raise ranks while the budget allows it, the one that lowers the error most for its cost first."""
    while True:
        better = [
            ((now[1] - then[1]) / (then[0] - now[0]), name, index)
            for name, several in options.items()
            for now in [several[at[name]]]
            for index, then in enumerate(several[: at[name]])
            if then[0] - now[0] <= left and then[1] < now[1]
        ]
        if not better:
            return
        _, name, index = max(better, key=lambda step: step[0])
        left -= options[name][index][0] - options[name][at[name]][0]
        at[name] = index
