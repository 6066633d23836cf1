"""`FoldedForward`: a classifier's outputs with one part of the model changed, in fewer steps than the model takes.

A scan runs the same images through the same model many times, each time with one layer changed. `FoldedForward` records
the forward pass once as a list of steps. For every batch it keeps the values that cross the step under test and runs
only what comes after it, with batch norm folded into the convolution before it, channels last, and in bfloat16 if
asked. The result is the model's output up to rounding, not bit for bit. `secateur.sensitivity.screened_top1` compares
margins with the rounding and runs the model itself where they are too small.

>>> import torch
>>> from torch import nn
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
>>> images = [torch.randn(5, 3, 4, 4), torch.randn(2, 3, 4, 4)]
>>> folded = record(model, images, limit=1 << 20)
>>> [step.name for step in folded.steps]  # three modules in one step, then the two others
['_2', '_3', '_4']
>>> with torch.no_grad(), folded.changing(["4.weight"]):
...     _ = model[4].weight.mul_(2.0)
...     folded.refresh()
...     found, wanted = folded.outputs(1), model(images[1])
>>> torch.allclose(found, wanted, atol=1e-6), folded.first_kept
(True, 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.sensitivity.graph_steps import GraphStep, NotRecorded, Product, Values, lasting, steps_of

__all__ = ["FoldedForward", "record"]


def record(model: nn.Module, batches: Sequence[torch.Tensor], limit: int = 1 << 30) -> FoldedForward | str:
    """The model's forward pass as steps, or the reason why it cannot be recorded. The model is in evaluation mode."""
    reason = _refused(model, batches)
    if reason:
        return reason
    try:
        graph = fx.Tracer().trace(model)
        steps, start, end = steps_of(model, graph)
    except NotRecorded as error:
        return str(error)
    except Exception as error:  # the model's code may do anything with a symbolic value
        raise_if_out_of_memory(error)
        return f"its forward pass cannot be recorded ({type(error).__name__})"
    return FoldedForward(model, steps, start, end, batches, limit)


def _refused(model: nn.Module, batches: Sequence[torch.Tensor]) -> str:
    """Why the model cannot be recorded, as far as that is known before recording it; None if nothing speaks against
    it.
    """
    tensors = [*model.parameters(), *batches]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "it is not on the CPU"
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "it does not compute in float32"
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has forward hooks"
        if module.training:
            return "it is in training mode"
    return ""


class FoldedForward:
    """The recorded steps of one model, and the values kept for each batch. `peak`: most bytes kept at one time."""

    def __init__(
        self,
        model: nn.Module,
        steps: list[GraphStep],
        start: str,
        end: str,
        batches: Sequence[torch.Tensor],
        limit: int,
    ):
        self.model = model
        self.steps = steps
        self.batches = list(batches)
        self.limit = limit
        self.peak = 0
        self.skipped = 0  # steps answered from the values kept
        self.first_kept = 0  # the step under test: what comes before it is not run again
        self._start, self._end = start, end
        self._last = {name: i for i, step in enumerate(steps) for name in step.reads}
        self._last[end] = len(steps)
        self._readers = [end, *(name for step in steps for name in step.reads)]
        self._touched: list[GraphStep] = []
        self._emptied: Product | None = None
        self._follower: int | None = None  # the convolution that is run on the remaining channels only
        self._parts: dict[bool, tuple[torch.Tensor, torch.Tensor | None]] = {}
        # per batch: the values that cross the step under test, or None beyond the limit; and in bfloat16
        self._kept: list[Values | None] = [None] * len(self.batches)
        self._halves: list[Values | None] = [None] * len(self.batches)
        self._held = 0

    def position(self, names: Sequence[str]) -> int:
        """The first step that uses one of these parameters; after all steps if none does."""
        wanted = {id(self.model.get_parameter(name)) for name in names}
        used = (i for i, step in enumerate(self.steps) if wanted & step.parameters())
        return next(used, len(self.steps))

    @contextmanager
    def changing(self, names: Sequence[str], rows: bool = False) -> Iterator[None]:
        """A block in which these parameters may differ from those recorded; call `refresh()` after changing them.

        `rows` says that the one parameter named is a weight of which only whole rows become zero. Then its layer is not
        run again either, because the outputs of the other rows are unchanged, and a convolution after it is run on the
        remaining channels only.
        """
        wanted = {id(self.model.get_parameter(name)) for name in names}
        self._touched = [step for step in self.steps if wanted & step.parameters()]
        position = self.position(names)
        if rows and len(names) == len(self._touched) == 1 and isinstance(self._touched[0], Product):
            self._emptied, self._follower = self._touched[0], self._behind(position)
        self._keep_until(position + (self._emptied is not None))
        try:
            yield
        finally:
            self.refresh()
            self._touched, self._emptied, self._follower = [], None, None

    def _behind(self, index: int) -> int | None:
        """The convolution that is the only reader of a step's output, directly or through channel-wise steps."""
        while index + 1 < len(self.steps):
            name, step = self.steps[index].name, self.steps[index + 1]
            if step.reads != (name,) or self._readers.count(name) != 1:
                return None
            index += 1
            if isinstance(step, Product):
                whole = isinstance(step.layer, nn.Conv2d) and step.layer.groups == 1
                return index if whole else None
            if not step.apart:
                return None
        return None

    def forget(self) -> None:
        """Discard everything kept, because the model has changed."""
        self._drop()
        self._parts.clear()
        for step in self.steps:
            step.prepared.clear()

    def _drop(self) -> None:
        self._kept, self.first_kept = [None] * len(self.batches), 0
        self._halves, self._held = [None] * len(self.batches), 0

    def refresh(self) -> None:
        """Note that the parameters under test have changed."""
        self._parts.clear()
        for step in self._touched:
            step.prepared.clear()

    def outputs(self, batch: int, half: bool = False) -> torch.Tensor:
        """The model's outputs on a batch; with `half` the steps after the one under test run in bfloat16."""
        kept = self._kept[batch]
        if kept is None:
            values = self._run({self._start: lasting(self.batches[batch])}, 0, self.first_kept, False)
        else:
            self.skipped += self.first_kept
            values = dict(self._half(batch, kept) if half else kept)
        return self._tail(values, half)

    def _half(self, batch: int, kept: Values) -> Values:
        """The values kept of a batch, in bfloat16; these are kept, too, within the limit."""
        known = self._halves[batch]
        if known is not None:
            return known
        values = {name: _halved(value) for name, value in kept.items()}
        size = sum(_bytes(value) for name, value in values.items() if value is not kept[name])
        if self._held + size <= self.limit:
            self._halves[batch] = values
            self._held += size
            self.peak = max(self.peak, self._held)
        return values

    def gathered(self, chosen: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """The model's outputs on chosen rows of several batches, in float32, computed as one batch where possible."""
        parts: list[Values] = []
        for batch, rows in chosen:
            kept, count = self._kept[batch], len(self.batches[batch])
            if kept is None:
                part = self._run({self._start: lasting(self.batches[batch][rows])}, 0, self.first_kept, False)
                count, rows = len(rows), torch.arange(len(rows))
            else:
                part = kept
            if not all(isinstance(v, torch.Tensor) and v.dim() and len(v) == count for v in part.values()):
                return torch.cat([self.outputs(batch)[rows] for batch, rows in chosen])
            parts.append({name: value[rows] for name, value in part.items()})
        joined = {name: lasting(torch.cat([part[name] for part in parts])) for name in parts[0]}
        return self._tail(joined, False)

    def _tail(self, values: Values, half: bool) -> torch.Tensor:
        begin = self.first_kept
        if half:
            values = {name: _halved(value) for name, value in values.items()}
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            if self._emptied is not None:
                x = values.pop(self._emptied.name)
                if self._follower is not None and x.dim() == 4 and not bool(self._emptied.gone()[0].all()):
                    begin = self._follower + 1
                    values[self.steps[self._follower].name] = self._narrow(self._emptied, x, half)
                else:
                    values[self._emptied.name] = self._emptied.emptied(x)
            return self._run(values, begin, len(self.steps), half)[self._end].float()

    def _narrow(self, emptied: Product, x: torch.Tensor, half: bool) -> torch.Tensor:
        """The follower's output from the emptied step's earlier output: its remaining channels, and the constant that
        the others add to every image.
        """
        assert self._follower is not None
        follower = self.steps[self._follower]
        assert isinstance(follower, Product)
        gone, left = emptied.gone()
        # a constant channel is its value times a channel of ones, so all removed channels share one term
        some = torch.cat([(~gone).nonzero().flatten(), gone.nonzero().flatten()[:1]])

        def between(y: torch.Tensor) -> torch.Tensor:
            name = emptied.name
            for step in self.steps[self.first_kept : self._follower]:
                y, name = step.run({name: y}, half), step.name
            return y

        if half not in self._parts:
            weight, bias = follower.weights(False)
            alike = between(left[None, :, None, None].expand(1, -1, *x.shape[2:]))[0, :, 0, 0].float()
            one = (weight[:, gone] * alike[:, None, None]).sum(1, keepdim=True)
            few = lasting(torch.cat([weight[:, ~gone], one[:, : len(left)]], 1))
            self._parts[half] = (_halved(few), _halved(bias)) if half else (few, bias)
        y = between(_channels(x, some))
        y[:, len(gone) - len(left) :] = 1.0
        return follower.applied(y, *self._parts[half], half)

    def _run(self, values: Values, begin: int, end: int, half: bool) -> Values:
        """Run steps; a value is freed once no later step reads it."""
        for index in range(begin, end):
            step = self.steps[index]
            values[step.name] = step.run(values, half)
            for name in step.reads:
                if self._last[name] <= index:
                    values.pop(name, None)
        return values

    def _keep_until(self, position: int) -> None:
        """Keep, for every batch, the values that cross this step; in ascending order of steps nothing is run twice."""
        if position < self.first_kept:
            self._drop()
        self._halves = [None] * len(self.batches)
        held = 0
        for index, kept in enumerate(self._kept):
            if kept is None:
                if held >= self.limit:
                    continue
                values = self._run({self._start: lasting(self.batches[index])}, 0, position, False)
            else:
                values = self._run(dict(kept), self.first_kept, position, False)
            self._kept[index] = None
            size = sum(_bytes(value) for value in values.values())
            if held + size <= self.limit:
                self._kept[index] = values
                held += size
        self.first_kept, self._held = position, held
        self.peak = max(self.peak, held)


def _halved(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _channels(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Some of the channels, channels last. `gather` walks memory in order, which indexing here does not."""
    last = x.permute(0, 2, 3, 1)
    return last.gather(3, chosen.expand(*last.shape[:3], -1)).permute(0, 3, 1, 2)
