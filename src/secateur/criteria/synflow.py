"""SynFlow: the share of the flow from input to output that passes through a weight. Needs no data.

(Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow".) R is
the sum of the outputs for an input of all ones when every weight is replaced by its absolute value; the score of a
weight is |w| * dR/d|w|. R is a product over layers: in float32 a deep or wide network takes it past the largest number,
or to zero, and every score with it. Here the flow is carried in float64 with an exponent beside every tensor (see
`_ranged`), so that a network of hundreds of layers keeps its ranking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call

from secateur.core.context import Context
from secateur.core.nested import map_tensors, tensors_in
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._ranged import Ranged, times_power
from secateur.criteria._weights import weights
from secateur.errors import CollapseError, DataError, NonFiniteError, OptionError, StructureError
from secateur.execution.example import read_batch
from secateur.execution.gradients import (
    accumulator_dtype,
    batches,
    explained,
    first_call,
)
from secateur.execution.undisturbed import undisturbed

__all__ = ["Synflow"]


@dataclass(frozen=True)
class Synflow(Criterion):
    """|w| * dR/d|w|, as a share of R.

    The input is all ones, one example, in the shape of `Context.example` (or of the first batch of the data);
    integer inputs such as token ids are used as given. The model runs in eval mode: no dropout, batch norm by
    its running statistics.

    `biases` says how terms are treated that add to the flow instead of multiplying it (biases, batch norm's running
    mean): "zero", the definition, leaves them out, and then the scores of each layer that all paths cross sum to the
    same R; "abs" takes their absolute values, as the authors' code does. A bias that is itself a target is always kept.
    `normalize` divides by R, which changes no order; without it the plain numbers are returned, if they are in range.

    `input` is the input of the flow: "ones", the definition, "size", the mean absolute value of every input element
    over `Context.data`, or "spread", its standard deviation there. The last two read the data, though neither
    labels nor a loss: a weight that reads a pixel which is dark in every image ranks low by "size" where dark is
    0, and by "spread" whatever dark is.

    >>> from secateur.core.targets import select
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[-3.0, 1.0]])); _ = model[1].weight.data.fill_(-2.0)
    >>> scores = Synflow(normalize=False).scores(model, select(model), Context(example=torch.zeros(1, 2)))
    >>> scores["0.weight"].tolist(), scores["1.weight"].tolist()
    ([[6.0, 2.0]], [[8.0]])
    """

    needs_loss: ClassVar[bool] = False
    needs_example: ClassVar[bool] = True
    rescore: ClassVar[bool] = True

    biases: str = "zero"
    normalize: bool = True
    input: str = "ones"

    def __post_init__(self) -> None:
        if self.biases not in ("zero", "abs"):
            raise OptionError(f"biases: expected 'zero' or 'abs', got {self.biases!r}")
        if self.input not in ("ones", "size", "spread"):
            raise OptionError(f"input: expected 'ones', 'size' or 'spread', got {self.input!r}")
        object.__setattr__(self, "needs_data", self.input != "ones")

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The share of the flow that passes through each weight."""
        held = weights(model, targets)
        device = next(iter(held.values())).device
        with undisturbed(model, mode="eval"):
            call = (
                first_call("synflow", context, model)
                if self.input == "ones"
                else _of_data(self.input, context, model)
            )
            try:
                flow = self._flow(model, set(held), call, accumulator_dtype(device))
            except RuntimeError:
                # A forward that names a type itself cannot run in another; the exponents serve in any.
                flow = self._flow(model, set(held), call, next(iter(held.values())).dtype)
        return self._shared_out(model, held, *flow)

    def _flow(
        self,
        model: nn.Module,
        names: set[str],
        call: tuple[tuple[Any, ...], dict[str, Any]],
        dtype: torch.dtype,
    ) -> tuple[dict[str, torch.Tensor | None], float, int]:
        """(|w| * dR'/d|w| by name, R', exponent), with R = R' * 2**exponent."""
        state: dict[str, torch.Tensor] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            state[name] = self._linear(name, tensor.detach(), name in names, dtype)
        leaves = {name: state[name].requires_grad_(True) for name in names}
        args, kwargs = self._poured(call, next(iter(leaves.values())).device, dtype)
        with Ranged() as ranged:
            with explained(
                f"synflow: {type(model).__name__} failed on an input of {self.input}", args, kwargs
            ):
                outputs = functional_call(model, state, args, kwargs)
            sums = [ranged.split(t.sum()) for t in tensors_in(outputs) if t.is_floating_point()]
        if not any(value.requires_grad for value, _ in sums):
            raise StructureError(
                f"synflow: the output of {type(model).__name__} does not depend on any of the {len(names)} "
                "targets"
            )
        exponent = max(exponent for value, exponent in sums if value.requires_grad)
        total = sum(times_power(value, power - exponent) for value, power in sums)
        assert isinstance(total, torch.Tensor)
        order = list(leaves)
        slopes = torch.autograd.grad(total, [leaves[name] for name in order], allow_unused=True)
        flow: dict[str, torch.Tensor | None] = {}
        for name, slope in zip(order, slopes, strict=True):
            flow[name] = None if slope is None else slope.to_dense().mul_(leaves[name].detach())
        return flow, float(total.detach()), exponent

    def _poured(
        self, call: tuple[tuple[Any, ...], dict[str, Any]], device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The input of the flow: one example, by the definition ones in place of floating-point numbers; integers
        unchanged.
        """

        def one(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor[:1] if tensor.dim() else tensor
            if not tensor.is_floating_point():
                return tensor.to(device)
            if self.input == "ones":
                return torch.ones(tensor.shape, device=device, dtype=dtype)
            return tensor.to(device, dtype)

        return map_tensors(one, call)

    def _linear(self, name: str, tensor: torch.Tensor, wanted: bool, dtype: torch.dtype) -> torch.Tensor:
        """The replacement of one parameter or buffer while the flow is measured."""
        if not tensor.is_floating_point():
            return tensor.clone()
        leaf = name.rpartition(".")[2]
        if self.biases == "zero" and not wanted and ("bias" in leaf or leaf == "running_mean"):
            return torch.zeros_like(tensor, dtype=dtype)
        return tensor.to(dtype).abs()

    def _shared_out(
        self,
        model: nn.Module,
        held: Mapping[str, torch.Tensor],
        flow: Mapping[str, torch.Tensor | None],
        total: float,
        exponent: int,
    ) -> Scores:
        """Scores from flows: checked, and divided by the total or returned unscaled."""
        unreached = [name for name in held if flow[name] is None]
        if unreached:
            raise StructureError(
                f"synflow: the output does not depend on {', '.join(map(repr, unreached[:5]))}: an unused "
                "layer, or a "
                "detach() on the way; leave it out with skip=[...]"
            )
        if not math.isfinite(total):
            raise NonFiniteError(
                f"synflow: the flow through {type(model).__name__} is {total}; an operator on the way "
                "cannot be carried "
                "beyond the range of its type: use another criterion, or fewer layers at a time with "
                "only=[...]"
            )
        found = {name: tensor for name, tensor in flow.items() if tensor is not None}
        if total == 0.0 or not any(bool(tensor.any()) for tensor in found.values()):
            empty = [name for name, tensor in held.items() if not bool(tensor.any())]
            where = f"{empty[0]!r} has no weight left but zeros" if empty else "no single layer is empty"
            raise CollapseError(
                f"synflow: nothing flows from the input to the output of {type(model).__name__}: {where}; a "
                "network that "
                "is already disconnected cannot be ranked"
            )
        if self.normalize:
            return Scores({name: found[name].div_(total) for name in held})
        scores = {name: times_power(found[name], exponent) for name in held}
        peak = max(float(tensor.max()) for tensor in scores.values())
        if not math.isfinite(peak) or peak < torch.finfo(next(iter(scores.values())).dtype).tiny:
            raise NonFiniteError(
                f"synflow: the plain scores leave the number range (their sum is 2**{exponent} times "
                f"{total:.4g}); "
                "use normalize=True, which changes no order"
            )
        return Scores(scores)


def _join(part: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, seen: int, more: int) -> None:
    """Add `more` examples to the mean and to the sum of squared distances from it of the `seen` before, in place."""
    own = part.mean(0, keepdim=True)
    apart = own - mean
    mean += apart * (more / (seen + more))
    square += (part - own).square().sum(0, keepdim=True)
    square += apart.square() * (seen * more / (seen + more))


def _check_data(kind: str, found: list[torch.Tensor], seen: int) -> None:
    """Raise if the data cannot be used: no floating-point input, or all examples zero or equal."""
    if not any(bool(part.any()) for part in found):
        what = "are zero" if kind == "size" else "are one and the same"
        why = f"all {seen} examples {what}" if found else "the inputs hold no floating-point numbers"
        raise DataError(f"synflow: input {kind!r} is undefined: {why}; use input='ones', or other data")


def _of_data(
    kind: str, context: Context, model: nn.Module | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of one example: of every input element the mean size or the spread over the data; integers as found.

    >>> pairs = [(torch.tensor([[-1.0, 2.0]]), None), (torch.tensor([[3.0, 2.0]]), None)]
    >>> (size,), _ = _of_data("size", Context(data=pairs)); (spread,), _ = _of_data("spread", Context(data=pairs))
    >>> size.tolist(), spread.tolist()
    ([[2.0, 2.0]], [[2.0, 0.0]])
    """
    if context.data is None:
        raise DataError(f"synflow: input {kind!r} is taken from data: pass data=<batches>, or input='ones'")
    seen = 0
    found: list[torch.Tensor] = []
    squares: list[torch.Tensor] = []
    first: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    for index, raw in enumerate(batches("synflow", context)):
        batch = read_batch(raw, index, labels_apart=True, model=model)
        call = (batch.args, batch.kwargs)
        parts = [t.to(accumulator_dtype(t.device)) for t in tensors_in(call) if t.is_floating_point()]
        if first is None:
            first = call
            found = [torch.zeros_like(part[:1]) for part in parts]
            squares = [torch.zeros_like(part[:1]) for part in parts]
        if [part[:1].shape for part in parts] != [mean.shape for mean in found]:
            raise DataError(
                f"synflow: batch {index} has examples of other shapes than the first: give inputs of one size, or "
                "input='ones'"
            )
        # Means and squared distances from them, joined batch by batch: sums of squares would lose the small variation
        # of a nearly constant element.
        for part, mean, square in zip(parts, found, squares, strict=True):
            _join(part.abs() if kind == "size" else part, mean, square, seen, batch.size)
        seen += batch.size
    assert first is not None
    found = found if kind == "size" else [(square / seen).sqrt() for square in squares]
    _check_data(kind, found, seen)
    taken = iter(found)
    return map_tensors(lambda t: next(taken) if t.is_floating_point() else t, first)
